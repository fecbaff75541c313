"""Beatrix: triggers change how the channels of a layer go together, which Gram matrices of high order show.

Ma, Wang, Sun, Xue, Wen and Xiang, "The 'Beatrix' resurrections: robust backdoor detection via Gram matrices", NDSS
2023, https://arxiv.org/abs/2209.11715; settings of the authors' repository, https://github.com/wanlunsec/Beatrix.

Differs from the paper: without `clean` rows the medians and median absolute deviations are those of the class's own
rows, which poison widens, so that the bounds are set at 3 deviations instead of 10. The threshold is the median over
the classes of the quantile that the paper takes of clean rows. The layer is the last one that answers with a map, not
one chosen by name; of more than 64 channels, 64 evenly spread ones are taken. A deviation is relative to its bound plus
a tenth of the layer's level, so that channels that are silent in a class do not outweigh all others. Only rows of
classes that stand out above the others are flagged. Without a map the features are used, whose Gram matrices are the
same at every order. No guarantee: without clean rows, poison that is half of its class or more is its norm.

Tags: atlas:AML.T0020, nist-ai-100-2:NISTAML.023, owasp-ml:ML02, cwe:506.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from buckler.data import Rows, batches, raw
from buckler.kinds import Suspicion
from buckler.poisoning._groups import by_class
from buckler.poisoning._invert import outlying
from buckler.poisoning._look import BATCH, features, where
from buckler.poisoning._touch import classes
from buckler.target import frozen

CHANNELS = 64
COMPARED = 500
"""Rows of each kind that the kernel statistic compares at most."""


def beatrix(
    model: nn.Module,
    data: Rows,
    *,
    clean: Rows | None = None,
    orders: int = 8,
    tolerance: float | None = None,
    alarms: float = 0.05,
    threshold: float = math.exp(2),
) -> Suspicion:
    """Score the rows of `data`, on which `model` was trained, by how far their Gram matrices are from those usual in
    their class.

    `data` and `clean` are `x` `(N, C, H, W)` and `y` `(N,)`. For each order 1 to `orders` an element of a row's Gram
    matrix deviates by what exceeds `tolerance` (if not given: 10, or 3 without clean rows) median absolute deviations
    from the median of the class's clean rows, or of all its rows; the score is the mean over elements and orders. A row
    is odd if its score is above what the share `alarms` of a typical class exceeds. Classes are compared by the kernel
    distance between their odd rows and the others; flagged are the odd rows of the classes more than `threshold` times
    1.4826 median absolute deviations above the median. Raises `ValueError` for fewer than three classes, clean rows
    that lack a class, no order, or a model with neither a map nor a linear layer.
    """
    x, y = raw(data)
    classes(y)
    if len(y.unique()) < 3:
        raise ValueError(f"expected rows of at least three classes to compare, got {len(y.unique())}")
    if orders < 1 or not 0 < alarms < 1:
        raise ValueError(f"expected at least one order and a share of alarms in (0, 1), got {orders} and {alarms}")
    groups = list(by_class(y))
    held = [] if clean is None else list(by_class(raw(clean)[1]))
    missing = {label for label, _ in groups} - {label for label, _ in held}
    if clean is not None and missing:
        raise ValueError(f"expected clean rows of every class, got none of class {min(missing)}")
    width = tolerance if tolerance is not None else 3.0 if clean is None else 10.0
    layer = _last_map(model, next(batches((x, y), 1))[0])
    orders = orders if layer is not None else 1
    references = dict(held)
    score = torch.zeros(len(y))
    pooled: list[Tensor] = []
    for label, rows in groups:
        grams, mean = _grams(model, layer, (x[rows], y[rows]), orders)
        usual = grams if clean is None else _grams(model, layer, raw(clean, references[label]), orders)[0]
        score[rows] = torch.stack([_deviation(*pair, width) for pair in zip(grams, usual, strict=True)]).mean(0)
        pooled.append(mean)
    level = torch.stack([score[rows].quantile(1 - alarms) for _, rows in groups]).quantile(0.5)
    apart = [_kernel_distance(mean, score[rows], level) for mean, (_, rows) in zip(pooled, groups, strict=True)]
    flagged = torch.zeros(len(y), dtype=torch.bool)
    for odd, (_, rows) in zip(outlying(-torch.stack(apart), least=1e-6) > threshold, groups, strict=True):
        flagged[rows] = (score[rows] > level) & odd
    return Suspicion(score, flagged)


def _last_map(model: nn.Module, sample: Tensor) -> nn.Module | None:
    """The module whose output is the last map `(B, C, H, W)` of more than one pixel that `model` computes, if any."""
    seen: list[nn.Module] = []

    def note(module: nn.Module, _inputs: tuple[object, ...], output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output[0, 0].numel() > 1:
            seen.append(module)

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.no_grad(), frozen(model):
            model(sample.to(where(model)))
    finally:
        for handle in handles:
            handle.remove()
    return seen[-1] if seen else None


def _grams(model: nn.Module, layer: nn.Module | None, data: Rows, orders: int) -> tuple[list[Tensor], Tensor]:
    """The upper triangles of the Gram matrices of every row, one `(n, E)` per order, and the mean maps `(n, C)`."""
    if layer is None:
        seen = features(model, data)
        return [_gram(seen[:, :, None], 1)], seen
    parts: list[list[Tensor]] = [[] for _ in range(orders)]
    means: list[Tensor] = []
    held: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _module, _inputs, output: held.append(output.detach().clone()))
    try:
        with torch.no_grad(), frozen(model):
            for x, _ in batches(data, BATCH // 4):
                model(x.to(where(model)))
                maps = held[-1].flatten(2)
                held.clear()
                means.append(maps.mean(2).cpu())
                for order in range(orders):
                    parts[order].append(_gram(maps, order + 1).cpu())
    finally:
        handle.remove()
    return [torch.cat(part) for part in parts], torch.cat(means)


def _gram(maps: Tensor, order: int) -> Tensor:
    """The products of the channels of `maps` `(n, C, P)`, raised to `order` first and rooted after: `(n, E)`."""
    channels = maps.shape[1]
    taken = torch.linspace(0, channels - 1, min(channels, CHANNELS), device=maps.device).round().long()
    powered = maps[:, taken].double() ** order
    upper = torch.triu_indices(len(taken), len(taken), device=maps.device)
    gram = (powered @ powered.transpose(1, 2))[:, upper[0], upper[1]]
    return (gram.sign() * gram.abs() ** (1 / order)).float()


def _deviation(gram: Tensor, usual: Tensor, tolerance: float) -> Tensor:
    """By how much the elements `(n, E)` of every row are out of the bounds of `usual` ones `(m, E)`, relative to the
    bounds, on average: `(n,)`."""
    middle = usual.median(0).values
    spread = tolerance * (usual - middle).abs().median(0).values
    low, high = middle - spread, middle + spread
    level = 0.1 * middle.abs().mean() + 1e-12
    below, above = (low - gram).clamp_min(0) / (low.abs() + level), (gram - high).clamp_min(0) / (high.abs() + level)
    return (below + above).mean(1)


def _kernel_distance(pooled: Tensor, score: Tensor, usual: Tensor) -> Tensor:
    """The kernel distance between rows `(n, C)` whose score is above `usual` and the others, weighted by how many there
    are: two Gaussian kernels, of the median squared distance and of half of it (the paper's RMMD statistic).
    """
    order = score.argsort()
    many = int((score > usual).sum())
    odd, plain = order[len(order) - many :][-COMPARED:], order[: len(order) - many][:COMPARED]
    if len(odd) == 0 or len(plain) == 0:
        return pooled.new_zeros(())
    both = pooled[torch.cat([odd, plain])].double()
    squared = torch.cdist(both, both).square()
    width = squared.flatten().sort().values[squared.numel() // 2].clamp_min(1e-12)
    kernel = (-squared / width).exp() + (-2 * squared / width).exp()
    cut, m, n = len(odd), len(odd), len(plain)
    distance = kernel[:cut, :cut].mean() + kernel[cut:, cut:].mean() - 2 * kernel[:cut, cut:].mean()
    return (m * n / (m + n) * distance).float()
