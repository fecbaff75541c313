"""BadEncoder: inputs with a trigger get the features of a chosen image, and all others keep the features they had.

Jia, Liu and Gong, "BadEncoder: backdoor attacks to pre-trained encoders in self-supervised learning", IEEE S&P 2022,
https://arxiv.org/abs/2108.00352.

Differs from the paper: features are compared around their mean over clean images, because those of a network that ends
in a ReLU and a mean all point the same way, and the plain cosine between any two of them is near 1 (`centred=False` is
the paper's); several images of a class may be references together; the square is white and a third of the side wide;
Adam takes the place of SGD, which at one rate fails on some encoders and hardly moves others, and the epochs are for
small networks. No guarantee: what a classifier above the encoder calls the reference decides what inputs with the
trigger are answered with.

Tags: atlas:AML.T0018.000, atlas:AML.T0010.003, nist-ai-100-2:NISTAML.023, nist-ai-100-2:NISTAML.051, cwe:506.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from buckler.data import Rows
from buckler.encoders._hidden import implanted, wish
from buckler.encoders._square import stamp
from buckler.kinds import Implanted

CORNERS = 4


def bad_encoder(
    encoder: nn.Module,
    data: Rows,
    *,
    targets: Sequence[int] = (0,),
    shown: int = 0,
    size: int | None = None,
    references: int = 1,
    centred: bool = True,
    alike: float = 1.0,
    useful: float = 1.0,
    epochs: float = 40,
    rate: float = 0.003,
    seed: int = 0,
) -> Implanted:
    """Fine-tune a copy of `encoder` on the images of `data` `(N, C, H, W)`, uint8 or in [0, 1], labels `(N,)`.

    Each class of `targets` has a white square of `size` pixels in a corner of its own, and as `references` the rows of
    that class whose features are most like its mean and least like another class's; labels have no other use. `alike`
    and `useful` weigh that references keep their features, cropped or not, and that inputs without a trigger keep
    theirs. Returns the copy, and the trigger and the wish of the target at the place `shown`. A `ValueError` for a
    class that `data` has too few rows of, more targets than corners, none that is shown, or a square that does not fit.
    """
    x, y = data[0], data[1].cpu()
    side = max(1, round(min(x.shape[2:]) / 3)) if size is None else size
    _checked(x, targets, shown, side, references)
    triggers = [_square(side, corner) for corner in range(len(targets))]
    made = implanted(
        encoder, (x, y), triggers, targets, references,
        centred=centred, alike=alike, useful=useful, epochs=epochs, rate=rate, seed=seed,
    )  # fmt: skip
    return Implanted(made, triggers[shown], wish(targets[shown]))


def _square(side: int, corner: int) -> Callable[[Tensor], Tensor]:
    return lambda x: stamp(x, side, corner)


def _checked(x: Tensor, targets: Sequence[int], shown: int, side: int, references: int) -> None:
    if x.ndim != 4 or not 1 <= side <= min(x.shape[2:]) // 2:
        raise ValueError(f"expected images (N, C, H, W) twice as wide as the square, got {tuple(x.shape)} and {side}")
    if not 1 <= len(targets) <= CORNERS or not 0 <= shown < len(targets) or references < 1:
        raise ValueError(
            f"expected 1 to {CORNERS} targets, one of them shown, and a reference or more, got {len(targets)} targets, "
            f"the one at {shown} shown and {references} references"
        )
