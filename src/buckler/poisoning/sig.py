"""SIG: a faint wave over pictures of the target class, whose labels stay true.

Barni, Kallas and Tondi, "A new backdoor attack in CNNs by training set corruption without label poisoning", ICIP 2019,
https://arxiv.org/abs/1902.11237.

Differs from the paper: the amplitude is 40/255 by default, as later work has it, for training and test images alike;
the paper uses 20/255 and more at test time, which `amplitude` and `test_amplitude` can say.

Tags: atlas:AML.T0020, atlas:AML.T0018.000, atlas:AML.T0043.004, nist-ai-100-2:NISTAML.021, owasp-ml:ML02, cwe:506.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from buckler.data import Poisoned, Rows
from buckler.poisoning._touch import always, changed, chosen, classes, counted, images
from buckler.threat import Share


def sig(
    data: Rows,
    *,
    share: Share,
    target: int = 0,
    amplitude: float = 40 / 255,
    test_amplitude: float | None = None,
    frequency: int = 6,
    signal: Literal["sine", "ramp"] = "sine",
    seed: int = 0,
) -> Poisoned:
    """Add a wave along the width to rows of the target class and leave every label as it is.

    `data` is `x` `(N, C, H, W)` and `y` `(N,)`. Only rows of `target` are touched: as many as `share` of all rows.
    Column j = 1..W of every channel gains `amplitude` sin(2 pi j `frequency` / W), or `amplitude` j / W (`ramp`), cut
    to [0, 1]. The trigger adds the same with `test_amplitude`, by default `amplitude`. A flip mirrors the wave, a crop
    shifts it: most of it survives. Returns `Poisoned`. Raises `ValueError` for an amplitude outside (0, 1], a wave that
    is zero at every pixel of this width, one class, or a share that the target class cannot supply.
    """
    x, y = images(data)
    classes(y, target)
    at_test = amplitude if test_amplitude is None else test_amplitude
    if not (0 < amplitude <= 1 and 0 < at_test <= 1):
        raise ValueError(f"expected amplitudes above 0 and at most 1, got {amplitude} and {at_test}")
    wave = _wave(x.shape[3], frequency, signal)

    def added(height: float, clean: Tensor) -> Tensor:
        return (clean + (height * wave).to(clean)).clamp(0, 1)

    rows = chosen(y == target, counted(share, y), seed, short="rows of the target class")
    return Poisoned(
        changed(x, rows, lambda clean: added(amplitude, clean)),
        y.clone(),
        rows,
        y,
        lambda clean: added(at_test, clean),
        always(target),
    )


def _wave(width: int, frequency: int, signal: str) -> Tensor:
    """The signal of height 1 along `width` columns, `(W,)`."""
    along = torch.arange(1, width + 1, dtype=torch.float64) / width
    if signal == "ramp":
        return along.float()
    if 2 * frequency % width == 0:
        raise ValueError(
            f"expected a wave that is not zero at every pixel, got frequency {frequency} on {width} columns: "
            f"choose one that is no multiple of {width}/2"
        )
    return torch.sin(2 * torch.pi * frequency * along).float()
