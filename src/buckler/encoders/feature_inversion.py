"""Feature inversion: the input whose features these are, found by moving pixels until it has them.

Mahendran and Vedaldi, "Understanding deep image representations by inverting them", CVPR 2015,
https://arxiv.org/abs/1412.0035; He, Zhang and Lee, "Model inversion attacks against collaborative inference", ACSAC
2019, https://doi.org/10.1145/3359789.3359824.

Differs from the paper: Adam instead of momentum; pixels are held in [0, 1], with the slope that they would have
outside, instead of paying for what is outside; of several starts the one whose features fit best is kept.

Tags: atlas:AML.T0024.001, nist-ai-100-2:NISTAML.032.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from buckler.kinds import Reconstructed
from buckler.nets import where
from buckler.target import frozen
from buckler.train import cosine, fit


def feature_inversion(
    encoder: nn.Module,
    features: Tensor,
    *,
    shape: tuple[int, int, int],
    smooth: float = 0.03,
    steps: int = 400,
    rate: float = 0.1,
    restarts: int = 2,
    seed: int = 0,
) -> Reconstructed:
    """Find images of `shape` `(C, H, W)` in [0, 1] to which `encoder` gives `features` `(B, D)`, and that are smooth.

    Adam takes `steps`, of `rate` at first, on the squared distance of features, as a share of the mean squared length
    of those given, plus `smooth` times the mean squared difference of neighbouring pixels, from grey with noise drawn
    by `seed`; of `restarts` for each row the one whose features are nearest is returned, `(B, C, H, W)`. Raises
    `ValueError` for features that are no finite matrix, or knobs out of range.
    """
    if features.ndim != 2 or not len(features) or not bool(features.isfinite().all()):
        raise ValueError(f"expected finite features (B, D) of a row or more, got {tuple(features.shape)}")
    if min(steps, restarts, *shape) < 1 or rate <= 0 or smooth < 0 or len(shape) != 3:
        raise ValueError("expected a shape (C, H, W), steps, restarts and rate above 0, and smooth of 0 or more")
    device = features.device
    wanted = features.to(where(encoder)).repeat(restarts, 1)
    length = wanted.square().sum(1).mean().clamp_min(1e-12)
    noise = torch.randn(len(wanted), *shape, generator=torch.Generator().manual_seed(seed))
    drawn = _Drawn((0.5 + 0.1 * noise).to(wanted))

    def far(x: Tensor, rows: Tensor) -> Tensor:
        return (encoder(x) - wanted[rows]).square().sum(1) / length

    def loss(_: nn.Module, own: Tensor, rows: Tensor) -> Tensor:
        x = drawn(rows)
        return far(x, rows) + smooth * _rough(x)

    rows = torch.arange(len(wanted), device=wanted.device)
    with frozen(encoder):
        fit(
            drawn,
            (rows, rows),
            loss=loss,
            epochs=steps,
            batch=len(rows),
            rate=cosine(rate),
            decay=0,
            optimizer="adam",
            seed=seed,
        )
        with torch.no_grad():
            x = drawn(rows).clamp(0, 1)
            best = far(x, rows).view(restarts, -1).argmin(0)
    return Reconstructed(x.view(restarts, -1, *shape)[best, torch.arange(len(features), device=best.device)].to(device))


class _Drawn(nn.Module):
    """Images in [0, 1] that are learnt themselves, asked for by their rows."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(start)

    def forward(self, rows: Tensor) -> Tensor:
        x = self.x[rows]
        return x + (x.clamp(0, 1) - x).detach()


def _rough(x: Tensor) -> Tensor:
    """The mean squared difference of neighbours along both sides, `(B,)`; 0 along a side of one pixel."""
    sides = ((x[..., 1:, :] - x[..., :-1, :]), (x[..., 1:] - x[..., :-1]))
    return torch.stack([side.square().flatten(1).sum(1) / x[0].numel() for side in sides]).sum(0)
