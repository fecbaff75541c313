"""How like two inputs are: PSNR, SSIM, and which of several rebuilt ones belongs to which true one."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

MOST = 100.0
"""The PSNR, in dB, that equal inputs are given."""
WINDOW = 7
"""The side of the window that SSIM looks through, as is usual with flat ones; smaller images have a smaller one."""


def apart(a: Tensor, b: Tensor) -> Tensor:
    """The mean squared difference of every row of `a` `(A, ...)` and of `b` `(B, ...)`, `(A, B)` float64."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square() / a.shape[1]


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """The peak signal-to-noise ratio of rows in [0, 1], in dB, at most `MOST`: `(B,)`."""
    wrong = (a.double() - b.double()).square().flatten(1).mean(1)
    return (-10 * wrong.clamp_min(1e-30).log10()).clamp_max(MOST).float()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """The mean structural similarity of images `(B, C, H, W)` in [0, 1] (Wang et al., IEEE TIP 13, 2004): `(B,)`.

    Through a flat window, with unbiased variances, over all places where the window fits, and over channels.
    """
    side = min(WINDOW, (min(a.shape[2:]) - 1) // 2 * 2 + 1)
    many = side * side

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, side, 1)

    a, b = a.double(), b.double()
    wide = many / max(many - 1, 1)
    near = mean(a), mean(b)
    spread = wide * (mean(a * a) - near[0].square()), wide * (mean(b * b) - near[1].square())
    both = wide * (mean(a * b) - near[0] * near[1])
    light = (2 * near[0] * near[1] + 0.01**2) / (near[0].square() + near[1].square() + 0.01**2)
    return (light * (2 * both + 0.03**2) / (spread[0] + spread[1] + 0.03**2)).flatten(1).mean(1).float()


def matched(rebuilt: Tensor, true: Tensor) -> Tensor:
    """For each of the `true` rows the place of the one of the `rebuilt`, as many, so that all are as like as can be."""
    _, place = linear_sum_assignment(apart(true, rebuilt).cpu().numpy())
    return torch.as_tensor(place, device=rebuilt.device)


def identified(rebuilt: Tensor, places: Tensor, pool: Tensor) -> Tensor:
    """Whether each rebuilt row is nearer to its own row, which `places` `(B,)` names in `pool`, than to any other.

    A row that is in the pool twice is its own both times.
    """
    far = apart(rebuilt, pool)
    own = far.gather(1, places[:, None]).squeeze(1)
    twin = apart(pool[places], pool) == 0
    return own < far.masked_fill(twin, torch.inf).amin(1)
