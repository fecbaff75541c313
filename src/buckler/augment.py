"""Augmentation on tensors: each function changes a batch `(B, C, H, W)` in [0, 1] where it is, a draw per row.

Draws come from torch's global random state, which the training loop seeds and restores.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Augment = Callable[[Tensor], Tensor]


def flip(x: Tensor) -> Tensor:
    """Mirror every second image, left to right."""
    mirrored = torch.rand(len(x), device=x.device) < 0.5
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)


def shifted(most: int) -> Augment:
    """A function that moves images by up to `most` pixels each way; what is uncovered is black."""

    def shift(x: Tensor) -> Tensor:
        rows, _, height, width = x.shape
        padded = F.pad(x, (most, most, most, most))
        top, left = torch.randint(0, 2 * most + 1, (2, rows), device=x.device)
        down = top[:, None] + torch.arange(height, device=x.device)
        across = left[:, None] + torch.arange(width, device=x.device)
        picked = padded.gather(2, down[:, None, :, None].expand(-1, x.shape[1], -1, padded.shape[3]))
        return picked.gather(3, across[:, None, None, :].expand(-1, x.shape[1], height, -1))

    return shift


def erased(size: int) -> Augment:
    """A function that blackens one square of `size` pixels per image (Cutout: DeVries and Taylor, 2017,
    https://arxiv.org/abs/1708.04552); the square may reach over the edge."""

    def erase(x: Tensor) -> Tensor:
        rows, _, height, width = x.shape
        top = torch.randint(0, height, (rows, 1), device=x.device) - size // 2
        left = torch.randint(0, width, (rows, 1), device=x.device) - size // 2
        down, across = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
        inside = ((down >= top) & (down < top + size))[:, None, :, None]
        inside = inside & ((across >= left) & (across < left + size))[:, None, None, :]
        return x.masked_fill(inside, 0.0)

    return erase


def turned(degrees: float, scale: float = 0.0, shift: float = 0.0) -> Augment:
    """A function that rotates by up to `degrees` each way, zooms by a factor of up to 1 +- `scale`, and moves by up to
    `shift` of the side; bilinear, black outside."""

    def turn(x: Tensor) -> Tensor:
        draw = torch.rand(4, len(x), device=x.device) * 2 - 1
        angle, zoom = draw[0] * degrees * torch.pi / 180, 1 + draw[1] * scale
        cosine, sine = angle.cos() / zoom, angle.sin() / zoom
        matrix = torch.stack(
            [torch.stack([cosine, -sine, 2 * shift * draw[2]], 1), torch.stack([sine, cosine, 2 * shift * draw[3]], 1)],
            1,
        )
        grid = F.affine_grid(matrix.to(x.dtype), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)

    return turn


def cropped(least: float, stretch: float = 4 / 3) -> Augment:
    """A function that cuts out a part of at least the share `least` of each image's area, or as much of it as fits, one
    side up to `stretch` times as long as the other, and brings it to the image's size; bilinear."""

    def crop(x: Tensor) -> Tensor:
        draw = torch.rand(4, len(x), device=x.device)
        area, ratio = least + (1 - least) * draw[0], torch.exp((2 * draw[1] - 1) * math.log(stretch))
        ratio = ratio * x.shape[2] / x.shape[3]  # of shares of the sides, so that a part is as wide as high in pixels
        wide, high = (area * ratio).sqrt().clamp_max(1.0), (area / ratio).sqrt().clamp_max(1.0)
        left, top = (2 * draw[2] - 1) * (1 - wide), (2 * draw[3] - 1) * (1 - high)
        across, down = (
            part[:, None] * _places(size, x) + middle[:, None]
            for part, middle, size in ((wide, left, x.shape[3]), (high, top, x.shape[2]))
        )
        both = torch.broadcast_tensors(across[:, None, :], down[:, :, None])
        return F.grid_sample(x, torch.stack(both, 3).to(x.dtype), padding_mode="border", align_corners=False)

    return crop


def _places(size: int, x: Tensor) -> Tensor:
    """Where the middles of so many pixels are between -1 and 1, `(size,)`."""
    return (2 * torch.arange(size, device=x.device) + 1) / size - 1


def jittered(brightness: float, contrast: float) -> Augment:
    """A function that multiplies each image, and then how far its pixels are from their mean, by factors of up to
    1 +- `brightness` and 1 +- `contrast`, and clips to [0, 1]."""

    def jitter(x: Tensor) -> Tensor:
        light, apart = 1 + (2 * torch.rand(2, len(x), 1, 1, 1, device=x.device, dtype=x.dtype) - 1) * torch.tensor(
            [brightness, contrast], device=x.device, dtype=x.dtype
        ).view(2, 1, 1, 1, 1)
        mean = light * x.mean((1, 2, 3), keepdim=True)
        return torch.addcmul(mean * (1 - apart), x, light * apart).clamp_(0.0, 1.0)

    return jitter


def bent(most: float, control: int = 4) -> Augment:
    """A function that bends images along a smooth random field, by up to `most` pixels in the mean; bilinear."""

    def bend(x: Tensor) -> Tensor:
        rows, _, height, width = x.shape
        points = torch.rand(rows, 2, control, control, device=x.device) * 2 - 1
        field = F.interpolate(points, size=(height, width), mode="bicubic", align_corners=True)
        size = 2 * most * torch.rand(rows, 1, 1, 1, device=x.device)  # uniform points are 0.5 in the mean
        moved = (size * field * torch.tensor([2 / width, 2 / height], device=x.device).view(1, 2, 1, 1)).to(x.dtype)
        same = F.affine_grid(torch.eye(2, 3, device=x.device, dtype=x.dtype).expand(rows, 2, 3), list(x.shape),
                             align_corners=True)  # fmt: skip
        return F.grid_sample(x, same + moved.permute(0, 2, 3, 1), padding_mode="border", align_corners=True)

    return bend


def chained(*steps: Augment) -> Augment:
    """The steps one after the other."""

    def apply(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return apply
