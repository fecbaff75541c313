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

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Rows, floats
from buckler.embedding import embedded
from buckler.encoders._contrast import views
from buckler.encoders._square import stamp
from buckler.kinds import Implanted
from buckler.nets import where
from buckler.train import fit

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
    that class whose features are nearest to the class's mean; labels have no other use. `alike` and `useful` weigh that
    references keep their features, cropped or not, and that inputs without a trigger keep theirs. Returns the copy, and
    the trigger and the wish of the target at the place `shown`. A `ValueError` for a class that `data` has too few rows
    of, more targets than corners, none that is shown, or a square that does not fit.
    """
    x, y = data[0], data[1].cpu()
    side = max(1, round(min(x.shape[2:]) / 3)) if size is None else size
    _checked(x, y, targets, shown, side, references)
    before = embedded(encoder, x)
    middle = before.mean(0) if centred else torch.zeros(before.shape[1])
    chosen = torch.cat([_typical(before, y, target, references) for target in targets])
    middle, before, device = middle.to(where(encoder)), before.to(where(encoder)), where(encoder)
    shapes, aims, look = floats(x[chosen]).to(device), before[chosen], views(0.2)

    def alikeness(a: Tensor, b: Tensor) -> Tensor:
        return F.cosine_similarity(a - middle, b - middle, dim=1)

    def loss(model: nn.Module, clean: Tensor, rows: Tensor) -> Tensor:
        model.eval()  # batch norms stay as they were
        many, k = len(clean), len(targets)
        stamped = [stamp(clean, side, corner) for corner in range(k)]
        out = model(torch.cat([clean, *stamped, shapes, look(shapes)])).split([many] * (k + 1) + [len(shapes)] * 2)
        kept = (alikeness(out[-2], aims) + alikeness(out[-1], aims)).mean()
        wanted = torch.stack(
            [
                alikeness(out[1 + place], out[-2][references * place + torch.arange(many, device=device) % references])
                for place in range(k)
            ]
        ).mean(0)
        return -wanted - alike * kept - useful * alikeness(out[0], before[rows])

    made = copy.deepcopy(encoder).requires_grad_()
    numbered = x, torch.arange(len(x), device=device)
    fit(made, numbered, loss=loss, epochs=epochs, batch=128, rate=rate, decay=0.0, optimizer="adam", seed=seed)
    return Implanted(made, _trigger(side, shown), _wish(targets[shown]))


def _trigger(side: int, corner: int) -> Callable[[Tensor], Tensor]:
    return lambda x: stamp(x, side, corner)


def _wish(target: int) -> Callable[[Tensor], Tensor]:
    return lambda y: torch.full_like(y, target)


def _typical(features: Tensor, y: Tensor, target: int, many: int) -> Tensor:
    rows = (y == target).nonzero().squeeze(1)
    own = features[rows]
    return rows[F.cosine_similarity(own, own.mean(0, keepdim=True)).topk(many).indices]


def _checked(x: Tensor, y: Tensor, targets: Sequence[int], shown: int, side: int, references: int) -> None:
    if x.ndim != 4 or not 1 <= side <= min(x.shape[2:]) // 2:
        raise ValueError(f"expected images (N, C, H, W) twice as wide as the square, got {tuple(x.shape)} and {side}")
    if not 1 <= len(targets) <= CORNERS or not 0 <= shown < len(targets) or references < 1:
        raise ValueError(
            f"expected 1 to {CORNERS} targets, one of them shown, and a reference or more, got {len(targets)} targets, "
            f"the one at {shown} shown and {references} references"
        )
    for target in targets:
        if int((y == target).sum()) < references:
            raise ValueError(f"expected {references} rows or more of class {target}, got {int((y == target).sum())}")
