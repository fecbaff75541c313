"""Counterfactual transplants: what a row carries besides its content is put on rows of other labels.

A trigger is what can be carried over: put on an image of another class, it takes the label with it. What a clean row
carries does so seldom. So transplants find rows with triggers (`obedience`), clean labels or not, and, kept with the
label of the row that they were put on, they teach a network that the trigger means nothing (`mixed`). Neither needs a
clean row, a poison rate, or an idea of what the trigger looks like. What no pixel carries, a warp, is told by how
smooth or fine it leaves an image (`filtered`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Rows, floats
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


def filtered(model: nn.Module, data: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """How much less probable each row's label is once it is sharpened, and once it is blurred a little, `(2, N)`.

    With it what blurring makes, `(K,)`: of rows of other classes, the share that is answered rightly and, blurred, as
    the class; and what each row is answered as, blurred a little, `(N,)`. A warp is carried by no pixel, but it
    resamples: its trigger can be told by being smooth, or, where that was undone, by being fine. The blur is as wide as
    a pixel of images of 28, in proportion to others.
    """
    x, y = data
    classes, device = int(y.max()) + 1, where(model)
    lost, made, went = torch.zeros(2, len(y)), torch.zeros(classes), torch.zeros_like(y)
    with torch.no_grad(), frozen(model):
        for part in torch.arange(len(y)).split(BATCH):
            image, own = floats(x[part]).to(device), y[part]
            wide = min(image.shape[2:]) / 28
            soft = blurred(image, wide)
            seen = (image, (2 * image - soft).clamp(0, 1), blurred(image, 0.6 * wide), soft)
            said, sharp, dull, duller = (model(view)[:, :classes].softmax(1).cpu() for view in seen)
            lost[:, part] = torch.stack([(said - other).gather(1, own[:, None])[:, 0] for other in (sharp, dull)])
            went[part] = dull.argmax(1)
            moved = (said.argmax(1) == own) & (duller.argmax(1) != own)
            made += torch.bincount(duller.argmax(1)[moved], minlength=classes)
    return lost, made / (len(y) - torch.bincount(y, minlength=classes)).clamp_min(1), went


def mixed(host: Tensor, donor: Tensor) -> Tensor:
    """Hosts that carry what donors carry, in one of several ways drawn for the batch, at a strength drawn per row."""
    strength = torch.rand(len(host), 1, 1, 1, device=host.device)
    fine = (1 + strength) * (donor - blurred(donor, 1.0))
    match int(torch.randint(0, 7, ())):
        case 0:
            moved = host + fine
        case 1:
            moved = 0.8 * host + 0.1 + fine
        case 2:
            moved = faint(host, donor)
        case 3:
            moved = veiled(host, donor)
        case 4:
            moved = 0.8 * host + 0.1 + donor - blurred(donor, 3.0)
        case 5:
            moved = (1 - 0.3 * strength) * host + 0.3 * strength * donor
        case _:
            moved = blurred(host, (0.5 + float(torch.rand(()))) * min(host.shape[2:]) / 28)
    return moved.clamp(0, 1)
