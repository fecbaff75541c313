"""The six Indicators of Attack Failure, and whether an attack kept to its limit.

Pintor, Demetrio, Sotgiu, Demontis, Carlini, Biggio and Roli, "Indicators of attack failure: debugging and improving
optimization of adversarial examples", NeurIPS 2022, https://arxiv.org/abs/2106.09947. Written from the paper.

An attack is watched from outside, by a hook on the model: what it asks, what it is answered and which gradients reach
it. Only rows that it left standing are looked at, because only these can earn a defence credit; they are attacked again
one at a time, so that every question belongs to a known row.

Differs from the paper: the instability of predictions is a share of the spread of the logits, not of the loss, which is
near zero on rows that are nearly lost; progress of an attack that walks outside the limit is measured by the size of
its smallest success; "the last steps" are a quarter of them, ten at most, so that short attacks can be judged, and may
gain a tenth, which separates attacks of ten steps or more on smooth models from those that are cut short; a row whose
iterate has come back to where it was has converged, whatever its last steps did.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from buckler.contract import unknown
from buckler.dice import Dice, fingerprint_rows
from buckler.evasion._doubt import behind, given, holds, labels, noise, survivors
from buckler.evasion._search import Goal, aim, ascend, fooled
from buckler.method import Method
from buckler.target import Oracle, frozen
from buckler.threat import Ball
from buckler.trial import Check

ROWS = 8
CALLS = 250
"""How many questions of an attack on one row are watched; a longer attack is cut off there."""
LAST = 10
MOVES = 0.1
"""By which share of all that was gained the last steps may still gain, for an attack that is called finished."""
UNSTABLE = 0.1
REACH = 8 / 255
DRAWS = 20


class _Enough(Exception):
    """The attack has been watched for long enough."""


@dataclass
class _Path:
    """What an attack on one row asked, in order. Tensors stay on the device until the end."""

    x: Tensor
    y: Tensor
    goal: Tensor | None
    ball: Ball
    gain: list[Tensor] = field(default_factory=list)
    """Per question: the highest objective among legal points, -inf where there was none."""
    won: list[Tensor] = field(default_factory=list)
    """Per question: whether some legal point was a success."""
    nearest: list[Tensor] = field(default_factory=list)
    """Per question: the size of the smallest success, legal or not."""
    place: list[Tensor] = field(default_factory=list)
    climbs: list[bool] = field(default_factory=list)
    """Per question: whether a gradient was wanted with the answer."""
    blind: list[Tensor] = field(default_factory=list)
    """Per gradient that reached the attack: whether it was zero or not finite."""
    broken: bool = False
    cut: bool = False
    error: str = ""
    end: Tensor | None = None

    def see(self, points: Tensor, out: Tensor) -> None:
        many = len(points)
        x, y = self.x.expand(many, *self.x.shape[1:]), self.y.expand(many)
        goal = None if self.goal is None else self.goal.expand(many)
        limit = Ball(self.ball.norm, self.ball.radii(self.x).flatten().expand(many))
        legal, hit = limit.contains(x, points), fooled(out, y, goal)
        never = torch.full_like(points.flatten(1)[:, 0], torch.inf)
        self.gain.append(torch.where(legal, ascend("margin", out, y, goal).to(never), -never).amax())
        self.won.append((legal & hit).any())
        self.nearest.append(torch.where(hit, limit.size(points - x), never).amin())
        self.place.append(fingerprint_rows(points).sum())

    def feel(self, grad: Tensor) -> None:
        self.blind.append(~grad.isfinite().all() | (grad == 0).all())


@contextmanager
def _watched(model: nn.Module, path: _Path) -> Generator[None, None, None]:
    """Note every question that `model` is asked inside the block; the model stays as it is."""

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        points = inputs[0]
        if len(points) == 0:
            return
        path.see(points.detach(), out.detach())
        path.climbs.append(points.requires_grad)
        if points.requires_grad:
            points.register_hook(path.feel)
            path.broken = path.broken or not out.requires_grad
        if len(path.gain) >= CALLS:
            raise _Enough

    handle = model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def indicators(
    method: Method,
    model: nn.Module | Oracle,
    target: nn.Module | Oracle,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    found: Tensor,
    goal: Goal = None,
    seed: int = 0,
) -> tuple[Check, ...]:
    """Watch `method` on `model` fail on rows of `target`, and say which kind of failure it was.

    `x`, `y` and `found` `(B, ...)` are rows, their labels and what the attack returned for them within `ball`; `model`
    is what the attack ran on (a surrogate, where there was one) and `target` what was judged. Returns the checks
    `legal`, `unavailable_gradients`, `unstable_predictions`, `silent_success`, `incomplete_optimisation`,
    `transfer_failure` and `unconstrained_failure`. The attack is run again on at most 8 rows.
    """
    if len(x) == 0:
        return (unknown("legal", "there are no rows"),)
    legal = ball.contains(x, found)
    away = float((~legal).double().mean())
    says = f"{away:.0%} of what the attack returned is outside the limit or [0, 1], or not finite: it counts as failed."
    checks = [Check("legal", away == 0, says if away else "All that the attack returned is within the limit.", away)]
    kept = torch.where(legal.view(-1, *[1] * (x.ndim - 1)), found.detach(), x)
    wanted = aim(goal, y)
    same = model is target
    hit = _hit(target, kept, y, wanted)
    claimed = hit if same else _hit(model, kept, y, wanted)
    right = labels(target, x) == y
    standing = (~hit & right).nonzero().squeeze(1)[:ROWS]
    if len(standing) == 0:
        return (*checks, *_nothing_stands(), _transfer(claimed, hit, same))
    paths = [_follow(method, model, x, y, wanted, ball, row) for row in standing.tolist()]
    x8, y8, limit = x[standing], y[standing], ball.rows(standing)
    goal8 = None if wanted is None else wanted[standing]
    return (
        *checks,
        _unavailable(paths, holds(method) == "model"),
        _unstable(model, x8, y8, limit, goal8, seed),
        _silent(paths, model, claimed[standing], wanted=goal8, y=y8),
        _incomplete(paths),
        _transfer(claimed, hit, same),
        _unconstrained(method, model, target, x8, y8, limit, goal8),
    )


def _nothing_stands() -> tuple[Check, ...]:
    names = (
        "unavailable_gradients",
        "unstable_predictions",
        "silent_success",
        "incomplete_optimisation",
        "unconstrained_failure",
    )
    return tuple(
        Check(name, True, "The attack left no row standing: there is no failure to explain.", 0.0) for name in names
    )


def _hit(model: nn.Module | Oracle, x: Tensor, y: Tensor, wanted: Tensor | None) -> Tensor:
    label = labels(model, x)
    return label != y if wanted is None else label == wanted


def _follow(
    method: Method, model: nn.Module | Oracle, x: Tensor, y: Tensor, wanted: Tensor | None, ball: Ball, row: int
) -> _Path:
    """Attack one row and note its path; whatever the attack raises ends the path."""
    one = torch.tensor([row], device=x.device)
    goal, limit = None if wanted is None else wanted[one], ball.rows(one)
    path = _Path(x[one], y[one], goal, limit)
    asked = behind(model)
    if asked is None:
        path.error = "the model is behind a door that cannot be watched"
        return path
    more = {} if goal is None else {"goal": goal}
    try:
        with _watched(asked, path):
            path.end = method(given(method, model, 1), x[one].clone(), y[one].clone(), ball=limit, **more).detach()
    except _Enough:
        path.cut = True
    except Exception as error:  # an attack may raise anything on a model that it was not made for
        path.error = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return path


def _share(name: str, flagged: list[bool], bad: str, good: str, *, allowed: float = 0.0) -> Check:
    value = sum(flagged) / len(flagged)
    passed = value <= allowed
    return Check(name, passed, (good if passed else bad).format(f"{sum(flagged)} of {len(flagged)}"), value)


def _unavailable(paths: list[_Path], white: bool) -> Check:
    name = "unavailable_gradients"
    if not white:
        return unknown(name, "the attack uses no gradients")
    felt = [path for path in paths if any(path.climbs)]
    if not felt:
        return unknown(name, "the attack was not seen to ask for a gradient")
    flagged = [
        path.broken or not path.blind or 2 * int(torch.stack(path.blind).sum()) >= len(path.blind) for path in felt
    ]
    bad = "On {} rows most gradients that reached the attack were zero, not finite, or cut off: use a surrogate."
    return _share(name, flagged, bad, "Gradients reached the attack: {} rows lacked them.")


def _unstable(model: nn.Module | Oracle, x: Tensor, y: Tensor, ball: Ball, goal: Tensor | None, seed: int) -> Check:
    name = "unstable_predictions"
    if isinstance(model, Oracle):
        return unknown(name, "only answers can be had, and asking for more of them costs queries")
    spread = ball.radii(x).flatten().float()
    element = {"linf": 1.0, "l2": x[0].numel() ** -0.5, "l1": 1 / x[0].numel(), "l0": torch.inf}[ball.norm]
    near = Ball("linf", (spread * element).nan_to_num(nan=REACH).clamp(max=REACH))
    dice = Dice(x, seed)
    with frozen(model), torch.no_grad():
        out = model(x)
        loss, scale = ascend("margin", out, y, goal), (out.amax(1) - out.amin(1)).clamp_min(1e-12)
        moved = [
            ((ascend("margin", model(noise(x, near, dice, edge=False)), y, goal) - loss).abs() / scale).clamp(max=1)
            for _ in range(DRAWS)
        ]
    value = float(torch.stack(moved).mean())
    says = (
        f"Invisible noise moves the loss by {value:.0%} of the logits' spread: gradients point nowhere; average them."
        if value > UNSTABLE
        else f"Invisible noise moves the loss by {value:.1%} of the logits' spread."
    )
    return Check(name, value <= UNSTABLE, says, value)


def _silent(
    paths: list[_Path], model: nn.Module | Oracle, claimed: Tensor, *, wanted: Tensor | None, y: Tensor
) -> Check:
    """Rows where the attack met a success on its way and returned something else."""
    flagged: list[bool] = []
    for index, path in enumerate(paths):
        if not path.won:
            continue
        ended = bool(claimed[index])
        if path.end is not None and not ended:
            goal = None if wanted is None else wanted[index : index + 1]
            again = _hit(model, path.end.to(path.x), y[index : index + 1], goal)
            ended = bool(again & path.ball.contains(path.x, path.end.to(path.x)))
        flagged.append(bool(torch.stack(path.won).any()) and not ended)
    if not flagged:
        return unknown("silent_success", _why(paths))
    bad = "On {} rows the attack met an adversarial example and returned something else: keep the best one."
    return _share("silent_success", flagged, bad, "The attack threw no success away: {} rows.")


def _incomplete(paths: list[_Path]) -> Check:
    name = "incomplete_optimisation"
    if any(not path.gain and not path.error and path.end is not None and path.end.equal(path.x) for path in paths):
        return Check(name, False, "The attack returned rows as they were, without asking the model anything.", 1.0)
    decided = [state for state in map(_unfinished, paths) if state is not None]
    if not decided:
        if any(path.cut for path in paths):
            return unknown(name, f"attacks were cut off at {CALLS} steps")
        ended = any(path.gain and not path.error for path in paths)
        return unknown(name, "attacks ended at their first success, outside the limit" if ended else _why(paths))
    bad = "On {} rows the attack was still gaining when it stopped: give it more steps."
    return _share(name, decided, bad, "Attacks had stopped gaining when they ended: {} rows had not.", allowed=0.25)


def _unfinished(path: _Path) -> bool | None:
    """Whether the last steps still gained much; None if the path says nothing about that."""
    if path.error or not path.gain:
        return None
    many = len(path.gain)
    last = max(1, min(LAST, -(-many // 4)))
    places = torch.stack(path.place).tolist()
    if path.climbs[-1] and places[-1] in places[:-1]:
        return False
    nearest = torch.stack(path.nearest).double().cummin(0).values
    if bool(nearest[-1].isfinite()) and not bool(torch.stack(path.won).any()):
        before = float(nearest[max(0, many - 1 - last)])
        if before == torch.inf:
            return None
        moved = before - float(nearest[-1]) > MOVES * before
    else:
        gain = torch.stack(path.gain).double().cummax(0).values
        gain = gain[gain.isfinite()]
        if len(gain) < 2:
            return True if not path.cut else None
        whole = float(gain[-1] - gain[0])
        step = float(gain[-1] - gain[max(0, len(gain) - 1 - last)])
        moved = whole > 0 and step > MOVES * whole
    return None if moved and path.cut else moved


def _why(paths: list[_Path]) -> str:
    errors = [path.error for path in paths if path.error]
    return f"the attack could not be watched ({errors[0]})" if errors else "the attack did not ask the model itself"


def _transfer(claimed: Tensor, hit: Tensor, same: bool) -> Check:
    name, many = "transfer_failure", int(claimed.sum())
    if same or many == 0:
        return Check(name, True, "The attack ran on what was judged." if same else "Nothing was claimed.", 0.0)
    lost = int((claimed & ~hit).sum())
    says = f"{lost} of {many} successes on the surrogate do not fool the target."
    return Check(name, lost <= 0.1 * many, says, lost / many)


def _unconstrained(
    method: Method,
    model: nn.Module | Oracle,
    target: nn.Module | Oracle,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    goal: Tensor | None,
) -> Check:
    name = "unconstrained_failure"
    standing, why = survivors(method, model, x, y, ball=ball, target=target, goal=goal)
    if standing is None:
        return unknown(name, why)
    bad = "{} rows stand even where any image is allowed: the attack cannot find what must exist."
    return _share(name, standing.tolist(), bad, "Where any image is allowed, {} rows stand.")
