"""JPEG compression before the model.

Das, Shanbhogue, Chen, Hohman, Chen, Kounavis and Chau, "Keeping the bad guys out: protecting and vaccinating deep
learning with JPEG compression", 2017, https://arxiv.org/abs/1705.02900; Guo, Rana, Cisse and van der Maaten,
"Countering adversarial images using input transformations", ICLR 2018, https://arxiv.org/abs/1711.00117 (quality 75,
the default). Tables and quality scale: ITU-T T.81, annex K, and the Independent JPEG Group's library.

Written in tensor code, so that a batch is compressed where it lies: 8 by 8 cosine transform, standard tables, chroma
halved in both directions and smoothly restored, every value rounded where a codec rounds it. Pixels differ from
Pillow's by less than one level of 255 on average, because single coefficients may round the other way. The lossless
part (entropy coding) is left out.

An adaptive attack goes through `surrogate()`: the same output to the last bit, rounding and clamping passed straight
through (BPDA: Athalye, Carlini and Wagner, ICML 2018, https://arxiv.org/abs/1802.00420), the linear parts by their own
derivative; for grey images that is the identity.

No guarantee.

Tags: atlas:AML.M0010, nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.evasion._straight import straight
from buckler.kinds import Defended

_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
# JFIF: red, green, blue to Y, Cb - 128, Cr - 128, and back
_MIX = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
_UNMIX = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


def jpeg(model: nn.Module, *, quality: int = 75, subsample: bool = True) -> Defended:
    """`model` behind JPEG compression and decompression of its input.

    The guarded model takes images `(B, 1 or 3, H, W)` in [0, 1] (a `ValueError` otherwise). `subsample` halves the
    resolution of colour, as codecs do by default. It holds `model` itself, under the prefix `model.`. Raises
    `ValueError` for a `quality` outside 1 to 100.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"expected a quality from 1 to 100, got {quality}")
    return Jpeg(model, quality, subsample)


class Jpeg(nn.Module):
    """The guarded model; `differentiable` makes it the stand-in that `surrogate` returns."""

    luma: Tensor
    chroma: Tensor
    cosines: Tensor
    mix: Tensor
    unmix: Tensor

    def __init__(self, model: nn.Module, quality: int, subsample: bool, differentiable: bool = False) -> None:
        super().__init__()
        self.model, self.quality, self.subsample, self.differentiable = model, quality, subsample, differentiable
        self.training = model.training
        anchor = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        constants = {
            "luma": _scaled(_LUMA, quality),
            "chroma": _scaled(_CHROMA, quality),
            "cosines": _cosines(),
            "mix": torch.tensor(_MIX),
            "unmix": torch.tensor(_UNMIX),
        }
        for name, value in constants.items():
            self.register_buffer(name, value.to(anchor), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.compressed(x))

    def surrogate(self) -> nn.Module:
        """The stand-in for an adaptive attack; it shares the model's weights."""
        return Jpeg(self.model, self.quality, self.subsample, differentiable=True)

    def compressed(self, x: Tensor) -> Tensor:
        """Images `(B, 1 or 3, H, W)` in [0, 1] after compression and decompression, same shape."""
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"expected images (B, 1 or 3, H, W), got shape {tuple(x.shape)}")
        pixels = self._level(x.to(torch.promote_types(x.dtype, torch.float32)) * 255)
        if x.shape[1] == 1:
            return (self._coded(pixels, self.luma) / 255).to(x.dtype)
        offset = pixels.new_tensor([0, 128, 128]).view(3, 1, 1)
        parts = self._level(torch.einsum("ij,bjhw->bihw", self.mix.to(pixels), pixels) + offset)
        luma, chroma = self._coded(parts[:, :1], self.luma), self._colour(parts[:, 1:])
        restored = torch.einsum("ij,bjhw->bihw", self.unmix.to(pixels), torch.cat([luma, chroma], 1) - offset)
        return (self._level(restored) / 255).to(x.dtype)

    def _colour(self, parts: Tensor) -> Tensor:
        height, width = parts.shape[2:]
        if not self.subsample:
            return self._coded(parts, self.chroma)
        # codecs fill up the last blocks to the right before halving, and below after it
        means = F.avg_pool2d(_padded(parts, 2, 16), 2)
        # ties go down in one column and up in the next
        halved = self._level(means - 0.125 + 0.25 * (torch.arange(means.shape[3], device=means.device) % 2))
        coded = self._coded(halved, self.chroma)[:, :, :, : (width + 1) // 2]
        doubled = F.interpolate(coded, scale_factor=2, mode="bilinear", align_corners=False)
        return self._level(doubled[:, :, :height, :width])

    def _coded(self, plane: Tensor, table: Tensor) -> Tensor:
        """Every 8 by 8 block to frequencies, to multiples of `table`, and back."""
        height, width = plane.shape[2:]
        whole = _padded(plane, 8, 8)
        blocks = whole.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4) - 128
        cosines, table = self.cosines.to(plane), table.to(plane)
        frequencies = self._whole(cosines @ blocks @ cosines.T / table) * table
        restored = cosines.T @ frequencies @ cosines + 128
        return self._level(restored.transpose(3, 4).flatten(4, 5).flatten(2, 3)[:, :, :height, :width])

    def _whole(self, values: Tensor) -> Tensor:
        return straight(values.round(), values) if self.differentiable else values.round()

    def _level(self, values: Tensor) -> Tensor:
        """Whole numbers from 0 to 255."""
        hard = values.round().clamp(0, 255)
        return straight(hard, values) if self.differentiable else hard


def _scaled(table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    scaled = (torch.tensor(table) * percent + 50) // 100
    return scaled.clamp(1, 255).float()


def _cosines() -> Tensor:
    """The orthonormal cosine transform of 8 values, as a matrix."""
    place = torch.arange(8, dtype=torch.float64)
    matrix = torch.cos((2 * place + 1) * place[:, None] * math.pi / 16) / 2
    matrix[0] = math.sqrt(1 / 8)
    return matrix.float()


def _padded(plane: Tensor, down: int, across: int) -> Tensor:
    """The last row and column repeated until the height is a multiple of `down` and the width of `across`."""
    height, width = plane.shape[2:]
    return F.pad(plane, (0, -width % across, 0, -height % down), mode="replicate")
