"""What scores of membership are worth: on log-scale false alarms, with intervals, and on a control."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.privacy._game import Game
from buckler.stats import Estimate
from buckler.target import Oracle
from buckler.trial import Check

SHOWN = 10
"""How many rows are kept as pictures."""
CONTROL = "a model that learnt from neither side tells them apart no better than chance"
STRICT = 0.999
"""The level at which a control is called out: one in a thousand sound ones."""


def ranked(scores: Tensor, game: Game) -> dict[str, Tensor]:
    """Evidence `ranked` `(N, 2)`, score and membership; `judged` `(N, 2)`, guess and membership; and the exposed rows.

    The guess of a row is by the threshold that serves best among the rows of the other half, so that none is judged by
    a threshold that was chosen with it.
    """
    score, truth = scores.float(), game.member.float()
    halves = torch.arange(len(score)) % 2 == 0
    guess = torch.zeros_like(truth)
    for here in (halves, ~halves):
        guess[here] = (score[here] > threshold(score[~here], game.member[~here])).float()
    order = score.masked_fill(~game.member, -torch.inf).argsort(descending=True, stable=True)
    top = order[: min(SHOWN, int(game.member.sum()))]
    return {
        "ranked": torch.stack([score, truth], 1),
        "judged": torch.stack([guess, truth], 1),
        "row": game.places,
        "label": game.y,
        "exposed": game.x[top],
        "exposed_at": top,
    }


def threshold(score: Tensor, member: Tensor) -> float:
    """The score above which rows are best called members: where true less false alarms is the most."""
    order = score.argsort(descending=True, stable=True)
    ordered, inside = score[order], member[order].double()
    gain = (inside / inside.sum().clamp_min(1) - (1 - inside) / (1 - inside).sum().clamp_min(1)).cumsum(0)
    last = torch.ones_like(inside, dtype=torch.bool)
    last[:-1] = ordered[1:] < ordered[:-1]  # rows of one score are called alike
    gain = gain.masked_fill(~last, -torch.inf)
    best = int(gain.argmax())
    if float(gain[best]) <= 0:
        return float("inf")
    return float(ordered[best + 1]) if best + 1 < len(ordered) else float("-inf")


def answered(target: nn.Module | Oracle, game: Game, device: torch.device) -> dict[str, Tensor]:
    """Which rows the target answers right, of members and of the rest: the gap is what a naive adversary sees."""
    oracle = target if isinstance(target, Oracle) else Oracle(target, "labels")
    right = oracle.labels(game.x.to(device)).cpu() == game.y
    return {"correct": right[~game.member], "member_correct": right[game.member]}


def estimates(evidence: dict[str, Tensor]) -> dict[str, Estimate]:
    """Every number out of the evidence; the first two are accuracies, of rows not learnt from and of members."""
    scores = evidence["ranked"]
    return {
        "accuracy": stats.share(evidence["correct"], "correct"),
        "auc": stats.area(scores, "ranked"),
        "found_at_one_percent": stats.found(scores, "ranked", alarms=0.01),
        "found_at_one_permille": stats.found(scores, "ranked", alarms=0.001),
        "balanced_accuracy": stats.balanced(evidence["judged"], "judged"),
        "right_among_flagged": stats.trusted(scores, "ranked", alarms=0.01, prior=0.1),
        "member_accuracy": stats.share(evidence["member_correct"], "member_correct"),
    }


def null(control: Tensor) -> Check:
    """Whether members stand out to a model that did not learn from them, `control` `(N, 2)`; they must not."""
    area = stats.area(control, "control_ranked", STRICT)
    good = area.low <= 0.5 <= area.high
    says = f"On a control the area under the curve is {area.value:.3f} [{area.low:.3f}, {area.high:.3f}]."
    more = "" if good else " The two sides differ in something else than membership, so this does not measure it."
    return Check(CONTROL, good, says + more, area.value)
