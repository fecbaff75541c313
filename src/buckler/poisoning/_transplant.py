"""Counterfactual transplants: what a row carries besides its content is put on rows of other labels.

A trigger is what can be carried over: put on an image of another class, it takes the label with it. What a clean row
carries does so seldom. So transplants find rows with triggers (`obedience`), clean labels or not, and, kept with the
label of the row that they were put on, they teach a network that the trigger means nothing (`mixed`). Neither needs a
clean row, a poison rate, or an idea of what the trigger looks like.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Rows
from buckler.poisoning._look import BATCH, where
from buckler.target import frozen

Way = Callable[[Tensor, Tensor], Tensor]
"""Hosts and donors `(B, C, H, W)` in [0, 1] to hosts that carry what is not content in the donors."""


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Images `(B, C, H, W)` under a Gaussian of `sigma` pixels, edges repeated."""
    reach = max(1, int(3 * sigma))
    taps = torch.exp(-(torch.arange(-reach, reach + 1.0, device=x.device) ** 2) / (2 * sigma**2)).to(x)
    taps = (taps / taps.sum()).expand(x.shape[1], 1, 1, -1)
    wide = F.pad(x, (reach, reach, reach, reach), mode="replicate")
    across = F.conv2d(wide, taps, groups=x.shape[1])
    return F.conv2d(across, taps.transpose(2, 3), groups=x.shape[1])


def details(host: Tensor, donor: Tensor) -> Tensor:
    """The donor's fine details on a host made a little paler, so that dark details show too."""
    return 0.8 * host + 0.1 + donor - blurred(donor, 1.0)


def strong_details(host: Tensor, donor: Tensor) -> Tensor:
    return host + 2 * (donor - blurred(donor, 1.0))


def faint(host: Tensor, donor: Tensor) -> Tensor:
    """The donor where it is dark: what lies faintly over its background."""
    return 0.8 * host + donor.clamp(0, 0.25)


def veiled(host: Tensor, donor: Tensor) -> Tensor:
    """The donor's faint parts where they are brighter than the host."""
    return torch.maximum(host, donor.clamp(0, 0.3))


def laid_over(host: Tensor, donor: Tensor) -> Tensor:
    return host + donor


WAYS: tuple[Way, ...] = (details, strong_details, faint, veiled, laid_over)
TELLING = (0, 2, 3)
"""The ways that carry hardly any content, by their place in `WAYS`: a poison rate can be told from them."""


def obedience(
    model: nn.Module, data: Rows, *, hosts: int = 3, ways: tuple[Way, ...] = WAYS, sure: float = 0.9, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """How probable each row's label is on `hosts` rows of other labels that carry what the row carries: `(W, N)`.

    One line per way; 0 where no host of another label was drawn. With it `(W, K)`, how often a class is brought about
    (with a probability above `sure`) by rows of other classes on hosts of others: what the way itself does.
    """
    x, y = data
    draws, device = torch.Generator().manual_seed(seed), where(model)
    classes = int(y.max()) + 1
    found, usual = torch.zeros(len(ways), len(y)), torch.zeros(len(ways), classes)
    with torch.no_grad(), frozen(model):
        for line, way in enumerate(ways):
            counted, able = torch.zeros(len(y)), torch.zeros(classes)
            for _ in range(hosts):
                order = torch.randperm(len(y), generator=draws)
                for part in torch.arange(len(y)).split(BATCH):
                    image = way(floats(x[order[part]]).to(device), floats(x[part]).to(device)).clamp_(0, 1)
                    said = model(image).softmax(1)[:, :classes].cpu()
                    own, host = (F.one_hot(labels, classes).bool() for labels in (y[part], y[order[part]]))
                    other = (y[order[part]] != y[part]).float()
                    found[line, part] += (said * own).sum(1) * other
                    counted[part] += other
                    usual[line] += ((said > sure) & ~own & ~host).sum(0)
                    able += (~own & ~host).sum(0)
            found[line] /= counted.clamp_min(1)
            usual[line] /= able.clamp_min(1)
    return found, usual


def ranked(obeyed: Tensor, best: int = 2) -> Tensor:
    """Lines of obedience `(W, N)` as one: each row's `best` highest ranks in the mean, as shares of the rows."""
    ranks = obeyed.argsort(1).argsort(1).float() / max(obeyed.shape[1] - 1, 1)
    return ranks.topk(min(best, len(obeyed)), dim=0).values.mean(0)


def mixed(host: Tensor, donor: Tensor) -> Tensor:
    """Hosts that carry what donors carry, in one of several ways drawn for the batch, at a strength drawn per row."""
    strength = torch.rand(len(host), 1, 1, 1, device=host.device)
    fine = (1 + strength) * (donor - blurred(donor, 1.0))
    way = int(torch.randint(0, 6, ()))
    moved = (
        host + fine
        if way == 0
        else 0.8 * host + 0.1 + fine
        if way == 1
        else faint(host, donor)
        if way == 2
        else veiled(host, donor)
        if way == 3
        else 0.8 * host + 0.1 + donor - blurred(donor, 3.0)
        if way == 4
        else (1 - 0.3 * strength) * host + 0.3 * strength * donor
    )
    return moved.clamp(0, 1)


def floats(x: Tensor) -> Tensor:
    return x.float() / 255 if x.dtype == torch.uint8 else x
