"""What an encoder is good for: its features, and what is learnt above them while it stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Rows, floats
from buckler.nets import where
from buckler.target import Oracle, frozen
from buckler.train import fit


def embedded(encoder: nn.Module | Oracle, x: Tensor, chunk: int = 512) -> Tensor:
    """The features `(N, D)` of `x` `(N, C, H, W)`, uint8 or in [0, 1], on the CPU.

    A `ValueError` for features that are no matrix, are not finite, or are the same for all of several rows.
    """
    asked = isinstance(encoder, Oracle)
    device = x.device if asked else where(encoder)
    with torch.no_grad(), nullcontext() if asked else frozen(encoder):
        answers = (encoder(floats(part).to(device)) for part in x.split(chunk))
        parts = [out.cpu() if isinstance(out, Tensor) else _refused(out) for out in answers]
    if any(part.ndim != 2 or not part.is_floating_point() for part in parts):
        raise ValueError(
            f"expected an encoder that gives a matrix of floats (B, D), got {tuple(parts[0].shape)} of "
            f"{parts[0].dtype}: flatten it, or pool it"
        )
    features = torch.cat(parts).float()
    if not bool(features.isfinite().all()):
        raise ValueError("expected finite features, got NaN or infinity: the encoder is broken, or diverged")
    if len(features) > 1 and bool((features == features[0]).all()):
        raise ValueError(f"expected features that differ, got one point for all {len(x)} inputs: the encoder collapsed")
    return features


def _refused(out: object) -> Tensor:
    raise ValueError(f"expected features (B, D) of the encoder, got a {type(out).__name__}: return the tensor alone")


class Probe(nn.Module):
    """A linear classifier of features, which it first brings to mean 0 and deviation 1 as they were in training."""

    def __init__(self, features: Tensor, classes: int) -> None:
        super().__init__()
        self.mean = nn.Buffer(features.mean(0))
        spread = features.std(0, correction=0)
        self.deviation = nn.Buffer(torch.where(spread > 1e-6, spread, 1.0))  # what was constant must not blow up later
        self.linear = nn.Linear(features.shape[1], classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear((features - self.mean) / self.deviation)


class Probed(nn.Module):
    """An encoder and a linear probe above it: a classifier like any other."""

    def __init__(self, encoder: nn.Module, probe: Probe) -> None:
        super().__init__()
        self.encoder, self.probe = encoder, probe

    def forward(self, x: Tensor) -> Tensor:
        return self.probe(self.encoder(x))


def probe(features: Tensor, y: Tensor, *, classes: int, epochs: float = 60, seed: int = 0) -> Probe:
    """The linear probe learnt from `features` `(N, D)` and labels `y` `(N,)`: logistic regression."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Probe(features, classes)
    fit(made, (features, y), epochs=epochs, batch=256, rate=0.05, decay=1e-4, seed=seed)
    return made


def probed(encoder: nn.Module, data: Rows, *, classes: int | None = None, seed: int = 0) -> Probed:
    """The classifier that a linear probe learnt from the labels of `data` makes of `encoder`, which stays as it is."""
    many = int(data[1].max()) + 1 if classes is None else classes
    above = probe(embedded(encoder, data[0]), data[1].cpu(), classes=many, seed=seed)
    return Probed(encoder, above.to(where(encoder))).eval()


def elected(votes: Tensor, *, classes: int) -> tuple[Tensor, Tensor]:
    """The class `(N,)` that most of `votes` `(V, N)` are for, of several the lowest, and the radius `(N,)`: how many
    voters may say whatever they like without changing it (Levine and Feizi, ICLR 2021,
    https://arxiv.org/abs/2006.14768, theorem 1). One voter more can change it. A `ValueError` for fewer than two
    classes."""
    if classes < 2:
        raise ValueError(f"expected two classes or more to vote for, got {classes}")
    names = torch.arange(classes, device=votes.device)
    many = F.one_hot(votes, classes).sum(0)
    label = (many * classes - names).argmax(1, keepdim=True)
    rival = (many + (names < label)).scatter(1, label, -1).amax(1)  # a lower class wins with as many votes
    return label.squeeze(1), (many.gather(1, label).squeeze(1) - rival) // 2


def headed(encoder: nn.Module, x: Tensor, *, classes: int) -> Callable[[], nn.Module]:
    """What builds a copy of `encoder` with a fresh linear head, all of it to be learnt: a subject's `net`, with which
    whatever trains a classifier begins above the encoder. `x` `(N, C, H, W)` are rows that it takes, two or more."""
    wide = embedded(encoder, x[:2]).shape[1]

    def build() -> nn.Module:
        below = copy.deepcopy(encoder).requires_grad_()
        return nn.Sequential(below, nn.BatchNorm1d(wide, affine=False), nn.Linear(wide, classes)).to(where(encoder))

    return build


def nearest(features: Tensor, y: Tensor, asked: Tensor, *, classes: int, k: int = 20) -> Tensor:
    """The label `(M,)` of each of `asked` `(M, D)` by its `k` nearest in cosine, each with the weight exp(cosine / .1)
    (Wu, Xiong, Yu and Lin, CVPR 2018, https://arxiv.org/abs/1805.01978)."""
    known, labels = F.normalize(features, dim=1), list[Tensor]()
    for part in F.normalize(asked, dim=1).split(1024):
        close, index = (part @ known.T).topk(min(k, len(known)))
        votes = torch.zeros(len(part), classes).scatter_add_(1, y[index], (close / 0.1).exp())
        labels.append(votes.argmax(1))
    return torch.cat(labels)
