"""Jacobian-based data augmentation: a substitute that learns from a few inputs and where its own gradients lead.

Papernot, McDaniel, Goodfellow, Jha, Celik and Swami, "Practical black-box attacks against machine learning", AsiaCCS
2017, https://arxiv.org/abs/1602.02697. Steps towards random labels (T-RND): Juuti, Szyller, Marchal and Asokan,
"PRADA: protecting against DNN model stealing attacks", EuroS&P 2019, https://arxiv.org/abs/1805.02628.

Differs from the papers: points are kept in [0, 1]; the Jacobian's sign is taken from the log-probability, which has the
sign of the probability's and does not vanish where the substitute is sure; when the oracle's budget ends, the last
round is trained on what was answered. Rounds train the same network further with the library's one loop (SGD with
momentum). Every answer is kept with the point that it was given for.

Tags: atlas:AML.T0024.002, atlas:AML.T0043.002, nist-ai-100-2:NISTAML.025, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from buckler.dice import Dice
from buckler.kinds import Copy
from buckler.target import LabelOracle, frozen
from buckler.theft._thief import ask, begun
from buckler.train import fit, portions

CHUNK, BATCH, RATE = 1024, 32, 0.05
"""Rows whose Jacobian is taken at once, rows to a training step, and its rate."""
LAST = 300
"""Training steps on all points when there are no more, so that a few points are learnt too."""


def jbda(
    oracle: LabelOracle,
    pool: Tensor,
    *,
    net: Callable[[], nn.Module],
    towards: Literal["label", "random"] = "label",
    rounds: int = 6,
    step: float = 0.1,
    turn: int = 3,
    full: int = 3,
    keep: int = 400,
    start: int | None = None,
    epochs: float = 10,
    seed: int = 0,
) -> Copy:
    """Train `net()` on the oracle's labels for a few inputs and for the points its own Jacobian leads to.

    `pool` `(N, ...)` in [0, 1], or its first `start` rows, is what the adversary starts from: some 100 inputs of the
    oracle's domain, without labels. Each round but the last adds one point per input held, a step of `step` along the
    sign of the gradient of the probability of a label: the oracle's, and then the step changes sign every `turn` rounds
    (0: never), or another one at `random`. After `full` rounds only `keep` points, drawn by chance, are added per
    round. Each round trains for `epochs`. `net` builds an untrained model with logits for the oracle's labels. Returns
    that model, evaluating. Where the oracle's budget ends, training ends with what was answered. A `ValueError` for an
    empty `pool`, no rounds and no points.
    """
    if rounds < 1 or keep < 1 or (start is not None and start < 1):
        raise ValueError(f"expected at least 1 round, 1 point kept and 1 to start, got {rounds}, {keep} and {start}")
    model = begun(net, pool, seed)
    held, labels = pool[:0], torch.empty(0, dtype=torch.long, device=pool.device)
    fresh = pool[:start].detach()
    for index in range(rounds):
        asked, answers = ask(oracle, fresh)
        held, labels = (
            torch.cat([held, asked]),
            torch.cat([labels, answers if answers.ndim == 1 else answers.argmax(1)]),
        )
        if len(asked) > 0:
            fit(model, (held, labels), epochs=epochs, batch=BATCH, rate=RATE, seed=seed + index)
        if len(asked) < len(fresh) or index + 1 == rounds:
            break
        chosen = torch.arange(len(held), device=held.device)
        if index >= full and len(held) > keep:
            chance = Dice(held, seed * 1_000_003 + index).uniform(1).squeeze(1)
            chosen = chance.topk(keep).indices.sort().values
        signed = -step if towards == "label" and turn > 0 and (index // turn) % 2 == 1 else step
        draw = Dice(held[chosen], seed * 1_000_003 + rounds + index) if towards == "random" else None
        fresh = (held[chosen] + signed * _uphill(model, held[chosen], labels[chosen], draw)).clamp(0, 1)
    if len(held) > 0:
        fit(
            model,
            (held, labels),
            epochs=LAST / len(portions(len(held), BATCH)),
            batch=BATCH,
            rate=RATE,
            seed=seed + rounds,
        )
    return model


def _uphill(model: nn.Module, x: Tensor, labels: Tensor, draw: Dice | None) -> Tensor:
    """The sign of the gradient of the probability of `labels`, or of others that are drawn, at every row of `x`."""
    signs: list[Tensor] = []
    with frozen(model):
        if draw is not None:
            classes = model(x[:1]).shape[1]
            labels = (labels + 1 + draw.below(classes - 1, 1).squeeze(1)) % classes
        for rows, wanted in zip(x.split(CHUNK), labels.split(CHUNK), strict=True):
            rows = rows.detach().requires_grad_()
            sure = model(rows).log_softmax(1).gather(1, wanted[:, None]).sum()
            signs.append(torch.autograd.grad(sure, rows)[0].sign())
    return torch.cat(signs)
