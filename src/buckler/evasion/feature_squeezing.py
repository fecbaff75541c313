"""Feature squeezing: fewer bits and a median filter before the model.

Xu, Evans and Qi, "Feature squeezing: detecting adversarial examples in deep neural networks", NDSS 2018,
https://arxiv.org/abs/1704.01155.

`forward` applies both squeezers, bits first, and classifies. `score` is the paper's detector: the largest l1 distance
between the softmax on the input and on the input squeezed one way. Differs from the paper: its third squeezer,
non-local means, is left out. The median filter is the paper's (that of SciPy: mirrored edges, and the upper of the two
middle values in a window of even size).

An adaptive attack goes through `surrogate()`: the same output to the last bit, rounding passed straight through
(BPDA), the median by its own derivative.

No guarantee: He, Wei, Chen, Carlini and Song (WOOT 2017, https://arxiv.org/abs/1706.04701) break it adaptively.

Tags: atlas:AML.M0010, nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from buckler.evasion._straight import straight
from buckler.kinds import Defended


def feature_squeezing(model: nn.Module, *, bits: int = 5, window: int = 2) -> Defended:
    """`model` behind a reduction to `bits` bits per element and a median filter of `window` by `window` pixels.

    The guarded model takes what `model` takes, in [0, 1]; with a `window` above 1 that must be images
    `(B, C, H, W)`. It holds `model` itself, under the prefix `model.`. Its `score(x)` is the detector, `(B,)` in
    [0, 2], higher where an input looks adversarial. Raises `ValueError` for fewer than 1 bit or a window below 1.
    """
    if not 1 <= bits <= 16 or window < 1:
        raise ValueError(f"expected 1 to 16 bits and a window >= 1, got bits={bits}, window={window}")
    return FeatureSqueezing(model, bits, window)


class FeatureSqueezing(nn.Module):
    """The guarded model; `differentiable` makes it the stand-in that `surrogate` returns."""

    def __init__(self, model: nn.Module, bits: int, window: int, differentiable: bool = False) -> None:
        super().__init__()
        self.model, self.bits, self.window, self.differentiable = model, bits, window, differentiable
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        return self.model(_median(self._rounded(x), self.window))

    def _rounded(self, x: Tensor) -> Tensor:
        levels = 2**self.bits - 1
        hard = (x * levels).round() / levels
        return straight(hard, x) if self.differentiable else hard

    def surrogate(self) -> nn.Module:
        """The stand-in for an adaptive attack; it shares the model's weights."""
        return FeatureSqueezing(self.model, self.bits, self.window, differentiable=True)

    def score(self, x: Tensor) -> Tensor:
        """How much squeezing changes the prediction, `(B,)` in [0, 2]: the paper's joint detection score."""
        plain = self.model(x).softmax(1)
        squeezed = (self._rounded(x), _median(x, self.window))
        changes = [(self.model(other).softmax(1) - plain).abs().sum(1) for other in squeezed]
        return torch.maximum(*changes)


def _median(x: Tensor, window: int) -> Tensor:
    """The median over `window` by `window` pixels of every channel of `x` `(B, C, H, W)`, edges mirrored."""
    if window == 1:
        return x
    if x.ndim != 4:
        raise ValueError(f"expected images (B, C, H, W), got shape {tuple(x.shape)}: give window=1 for other inputs")
    down, across = (_mirrored(size, window, x.device) for size in x.shape[2:])
    patches = x[:, :, down][:, :, :, across].unfold(2, window, 1).unfold(3, window, 1).flatten(4)
    return patches.kthvalue(window * window // 2 + 1, dim=4).values


def _mirrored(size: int, window: int, device: torch.device) -> Tensor:
    """Where `window` around every one of `size` places reads, the edge elements repeated first (d c b a | a b c d)."""
    place = torch.arange(-(window // 2), size + (window - 1) // 2, device=device) % (2 * size)
    return torch.minimum(place, 2 * size - 1 - place)
