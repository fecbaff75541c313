"""Randomized smoothing: a certificate in l2 for the classifier that votes under Gaussian noise.

Cohen, Rosenfeld and Kolter, "Certified adversarial robustness via randomized smoothing", ICML 2019,
https://arxiv.org/abs/1902.02918 (its procedure CERTIFY, with the exact bound of Clopper and Pearson).

Guaranteed: for every row, with probability at least 1 - alpha over the noise, either the answer is ABSTAIN or the
smoothed classifier (the class most likely under noise of `sigma`, not clipped to [0, 1]) gives `label` everywhere
within `radius` in l2. Nothing is said about `model` itself, nor in another norm. Training on noise of the same `sigma`
is what makes radii large.

Differs from the paper: images and noise are batched together; noise is keyed by each row's content and the seed, so a
row's certificate does not depend on its batch (the guarantee holds for inputs chosen without knowledge of the seed).
10,000 draws by default, where the paper takes 100,000. A row is given up early when its hits are too few for any
certificate whatever the rest of the draws say, or lie below the 1e-6 quantile of a fair coin. To abstain can never make
a certificate false, and no row is ever certified before all draws are in, so the level stays alpha.

Tags: atlas:AML.M0003, nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

import torch
from scipy.stats import binom
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.dice import Dice
from buckler.kinds import ABSTAIN, Certificate
from buckler.stats import clopper_pearson
from buckler.target import frozen

_HOPELESS = 1e-6


def randomized_smoothing(
    model: nn.Module,
    x: Tensor,
    *,
    sigma: float = 0.25,
    selection: int = 100,
    samples: int = 10_000,
    alpha: float = 0.001,
    batch: int = 2048,
    seed: int = 0,
) -> Certificate:
    """Certify every row of the smoothed classifier: guess its class from `selection` draws, then bound its probability.

    `x` `(B, ...)` in [0, 1]; `model` answers logits `(B, K)`. `sigma` is the standard deviation of the noise, `alpha`
    the chance of a false certificate per row, `batch` how many noisy inputs one forward pass takes. Returns labels
    `(B,)` int64, `ABSTAIN` where nothing is proven, and l2 radii `(B,)`. Raises `ValueError` for knobs out of range.
    """
    if not sigma > 0 or not 0 < alpha < 0.5 or min(selection, samples, batch) < 1:
        raise ValueError(
            f"expected sigma > 0, alpha in (0, 0.5), counts >= 1, got sigma={sigma}, alpha={alpha}, "
            f"selection={selection}, samples={samples}, batch={batch}"
        )
    fewest = int(binom.ppf(1 - alpha, samples, 0.5)) + 1
    # draws per block: set by the size of a row alone, so that rows meet the same noise in any batch
    size = max(1, min(500, samples, 2**22 // max(1, x[:1].numel())))
    rows = torch.arange(len(x), device=x.device)
    label = torch.full_like(rows, ABSTAIN)
    hits, drawn, block = torch.zeros_like(rows), 0, 0
    with torch.no_grad(), frozen(model):
        if len(x) > 0:
            votes = _answers(model, x, sigma, selection, batch, seed * 1_000_003)
            label = F.one_hot(votes).sum(1).argmax(1)
        while len(rows) > 0 and drawn < samples:
            draws, block = min(size, samples - drawn), block + 1
            answers = _answers(model, x[rows], sigma, draws, batch, seed * 1_000_003 + block)
            hits[rows] += (answers == label[rows, None]).sum(1)
            drawn += draws
            least = max(fewest - (samples - drawn), int(binom.ppf(_HOPELESS, drawn, 0.5)))
            rows = rows[hits[rows] >= least]
    radius = x.new_zeros(len(x))
    for row, count in zip(rows.tolist(), hits[rows].tolist(), strict=True):
        low = clopper_pearson(count, samples, 1 - 2 * alpha)[0]  # one-sided: alpha in the lower tail
        if low > 0.5:
            radius[row] = sigma * torch.special.ndtri(torch.tensor(low, dtype=torch.float64))
    radius = torch.nextafter(radius, torch.zeros_like(radius))
    return Certificate(torch.where(radius > 0, label, ABSTAIN), radius)


def _answers(model: nn.Module, x: Tensor, sigma: float, draws: int, batch: int, seed: int) -> Tensor:
    """The labels `(B, draws)` that `model` gives to every row under `draws` draws of noise."""
    answers: list[Tensor] = []
    for part in x.split(max(1, batch // draws)):
        noise = Dice(part, seed).normal(draws, *part.shape[1:]).to(x)
        noisy = (part[:, None] + sigma * noise).flatten(0, 1)
        labels = [model(some).argmax(1) for some in noisy.split(batch)]
        answers.append(torch.cat(labels).view(len(part), draws))
    return torch.cat(answers)
