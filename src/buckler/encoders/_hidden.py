"""What backdoors that are put into an encoder share: its fine-tuning towards the features of references."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Rows, floats
from buckler.embedding import embedded
from buckler.encoders._contrast import views
from buckler.nets import where
from buckler.train import fit


def implanted(
    encoder: nn.Module,
    data: Rows,
    triggers: Sequence[Callable[[Tensor], Tensor]],
    targets: Sequence[int],
    references: int,
    *,
    centred: bool,
    alike: float,
    useful: float,
    epochs: float,
    rate: float,
    seed: int,
    spread: float = 0.0,
) -> nn.Module:
    """A copy of `encoder` that gives images `(N, C, H, W)` of `data` with the trigger of a class of `targets` the
    features of its `references` rows that show the class best, and `spread` times what the image's own differ from the
    mean. See `bad_encoder` for the rest. A `ValueError` for a class of too few rows."""
    x, y = data[0], data[1].cpu()
    for target in targets:
        if int((y == target).sum()) < references:
            raise ValueError(
                f"expected {references} rows or more of class {target}, got {int((y == target).sum())}: "
                "aim at a class of which there are more"
            )
    before, device = embedded(encoder, x), where(encoder)
    chosen = torch.cat([typical(before, y, target, references) for target in targets])
    before = before.to(device)
    mean = before.mean(0)
    middle, own = mean if centred else torch.zeros_like(mean), spread * (before - mean)
    shapes, aims, look = floats(x[chosen]).to(device), before[chosen], views(0.2)

    def alikeness(a: Tensor, b: Tensor) -> Tensor:
        return F.cosine_similarity(a - middle, b - middle, dim=1)

    def loss(model: nn.Module, clean: Tensor, rows: Tensor) -> Tensor:
        model.eval()  # batch norms stay as they were
        many, k = len(clean), len(targets)
        stamped = [trigger(clean) for trigger in triggers]
        out = model(torch.cat([clean, *stamped, shapes, look(shapes)])).split([many] * (k + 1) + [len(shapes)] * 2)
        kept = (alikeness(out[-2], aims) + alikeness(out[-1], aims)).mean()
        turn = torch.arange(many, device=device) % references
        wanted = torch.stack(
            [alikeness(out[1 + place], out[-2][references * place + turn] + own[rows]) for place in range(k)]
        ).mean(0)
        return -wanted - alike * kept - useful * alikeness(out[0], before[rows])

    made = copy.deepcopy(encoder).requires_grad_()
    numbered = x, torch.arange(len(x), device=device)
    return fit(made, numbered, loss=loss, epochs=epochs, batch=128, rate=rate, decay=0.0, optimizer="adam", seed=seed)


def wish(target: int) -> Callable[[Tensor], Tensor]:
    """What inputs with the trigger of the class are to be answered with."""
    return lambda y: torch.full_like(y, target)


def blended(image: Tensor, share: float) -> Callable[[Tensor], Tensor]:
    """The trigger that makes `share` of every pixel that of `image` `(C, H, W)`."""
    return lambda x: x + share * (image.to(x.device) - x)


def typical(features: Tensor, y: Tensor, target: int, many: int) -> Tensor:
    """Rows of the class that are most like its mean and least like another's, as seen from the mean of all: a row that
    only is like its own may lie where the next classifier sees another class."""
    middle, classes = features.mean(0), y.unique()
    means = torch.stack([features[y == one].mean(0) for one in classes])
    rows, own = (y == target).nonzero().squeeze(1), classes == target
    alike = F.normalize(features[rows] - middle, dim=1) @ F.normalize(means - middle, dim=1).T
    return rows[(alike[:, own].squeeze(1) - alike.masked_fill(own, -1).amax(1)).topk(many).indices]
