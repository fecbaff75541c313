"""A substitute model, trained from an oracle's labels, through which white-box attacks reach a black box.

Papernot, McDaniel, Goodfellow, Jha, Celik and Swami, "Practical black-box attacks against machine learning", AsiaCCS
2017, https://arxiv.org/abs/1602.02697.

Differs from the paper: points are kept in [0, 1]; the Jacobian's sign is taken from the log-probability, which has the
sign of the probability's and does not vanish where the substitute is sure; when the oracle's budget ends, the last
round is trained on what was answered. Rounds train the same network further with the library's one loop (SGD with
momentum).

Tags: atlas:AML.T0005.001, atlas:AML.T0043.002, atlas:AML.T0040, nist-ai-100-2:NISTAML.025, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from buckler.dice import Dice
from buckler.evasion._search import gradient
from buckler.kinds import Copy
from buckler.target import LabelOracle, QueryBudgetExceeded, frozen
from buckler.train import fit

CHUNK = 1024
"""Rows whose Jacobian is taken at once."""


def substitute(
    oracle: LabelOracle,
    pool: Tensor,
    *,
    net: Callable[[], nn.Module],
    rounds: int = 6,
    step: float = 0.1,
    turn: int = 3,
    full: int = 3,
    keep: int = 400,
    epochs: int = 10,
    batch: int = 32,
    rate: float = 0.05,
    seed: int = 0,
) -> Copy:
    """Train `net()` on the oracle's labels for a few inputs and for the points its own Jacobian leads to.

    `pool` `(N, ...)` in [0, 1] is what the adversary starts from: some 100 inputs of the oracle's domain, without
    labels. Each round but the last adds one point per input held, a step of `step` along the sign of the gradient of
    the probability of the oracle's label; the step changes sign every `turn` rounds (0: never), and after `full` rounds
    only `keep` points, drawn by chance, are added per round. `net` builds an untrained model with logits for the
    oracle's labels. Returns that model, evaluating. Where the oracle's budget ends, training ends with what was
    answered. An empty `pool` is a `ValueError`.
    """
    if len(pool) == 0:
        raise ValueError("expected at least one row in the pool, got none: give some inputs of the oracle's domain")
    if rounds < 1 or keep < 1:
        raise ValueError(f"expected at least 1 round and 1 point kept, got {rounds} and {keep}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = net().to(pool.device)
    held, labels = pool[:0], torch.empty(0, dtype=torch.long, device=pool.device)
    fresh = pool.detach()
    for index in range(rounds):
        asked, answers = _ask(oracle, fresh)
        held, labels = torch.cat([held, asked]), torch.cat([labels, answers])
        if len(asked) > 0:
            fit(model, (held, labels), epochs=epochs, batch=batch, rate=rate, seed=seed + index)
        if len(asked) < len(fresh) or index + 1 == rounds:
            break
        chosen = torch.arange(len(held), device=held.device)
        if index >= full and len(held) > keep:
            chance = Dice(held, seed * 1_000_003 + index).uniform(1).squeeze(1)
            chosen = chance.topk(keep).indices.sort().values
        signed = -step if turn > 0 and (index // turn) % 2 == 1 else step
        fresh = (held[chosen] + signed * _uphill(model, held[chosen], labels[chosen])).clamp(0, 1)
    return model.eval()


def _ask(oracle: LabelOracle, x: Tensor) -> tuple[Tensor, Tensor]:
    """As many of the rows as the oracle's budget allows, and their labels."""
    if oracle.budget is not None:
        x = x[: max(0, oracle.budget - oracle.asked)]
    try:
        return x, oracle.labels(x) if len(x) > 0 else torch.empty(0, dtype=torch.long, device=x.device)
    except QueryBudgetExceeded:
        return x[:0], torch.empty(0, dtype=torch.long, device=x.device)


def _uphill(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """The sign of the gradient of the probability of `labels` at every row of `x`."""
    signs: list[Tensor] = []
    with frozen(model):
        for rows, wanted in zip(x.split(CHUNK), labels.split(CHUNK), strict=True):

            def sure(logits: Tensor, wanted: Tensor = wanted) -> Tensor:
                return logits.log_softmax(1).gather(1, wanted[:, None]).squeeze(1)

            signs.append(gradient(model, rows, sure)[2].sign())
    return torch.cat(signs)
