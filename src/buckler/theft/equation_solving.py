"""Equation solving: a linear model is read off its answers to as many inputs as it has numbers per class.

Tramer, Zhang, Juels, Reiter and Ristenpart, "Stealing machine learning models via prediction APIs", USENIX Security
2016, https://arxiv.org/abs/1609.02943.

Differs from the paper: rows of the pool are asked about before random ones, so that a model that is not linear is
copied where inputs lie; more answers than unknowns are met in the least-squares sense, fewer with the smallest weights.

Tags: atlas:AML.T0024.002, atlas:AML.T0040, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

import torch
from torch import Tensor

from buckler.kinds import Copy
from buckler.nets import LinearModel
from buckler.target import ScoreOracle
from buckler.theft._thief import ask

SMALLEST = 1e-12
"""Probabilities below it are taken as it: rounding, and answers that hide some classes, leave no equation there."""


def equation_solving(oracle: ScoreOracle, pool: Tensor, *, spare: float = 3.0, seed: int = 0) -> Copy:
    """Solve log p_k(x) - log p_0(x) = (w_k - w_0) x + b_k - b_0 for all answers of the oracle at once.

    All of `pool` `(N, ...)` in [0, 1] is asked about, and noise where that is less than `spare` times the d + 1
    equations for d numbers per input; one time is enough for a softmax regression, which is then known to float
    precision. Answers are scores or logits. Returns a `LinearModel`, evaluating. A `ValueError` for an empty pool,
    labels, or no answer.
    """
    if oracle.reveals == "labels":
        raise ValueError("expected an oracle that reveals scores, got one that reveals labels only: try theft/copycat")
    if spare < 1 or len(pool) == 0:
        raise ValueError(f"expected spare of 1 or more and a row in the pool, got {spare:g} and {len(pool)} rows")
    missing = max(0, round(spare * (pool[0].numel() + 1)) - len(pool))
    noise = torch.rand(missing, *pool.shape[1:], generator=torch.Generator().manual_seed(seed)).to(pool)
    x, scores = ask(oracle, torch.cat([pool, noise]))
    if len(x) == 0:
        raise ValueError("expected at least one answer to solve for, got none: the oracle's budget is spent")
    inputs = torch.cat([x.flatten(1), torch.ones_like(x.flatten(1)[:, :1])], 1).double().cpu()
    log = scores.double().cpu().clamp_min(SMALLEST).log()
    solved = torch.linalg.lstsq(inputs, log - log[:, :1], driver="gelsd").solution.to(pool)
    return LinearModel(solved[:-1].T.contiguous(), solved[-1].contiguous()).eval()
