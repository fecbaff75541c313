"""Accounts of a service that answers features: honest ones with a task, what each is answered, and thieves with many.

Noise grows with what a detector says of an account, and every account's features are turned by a rotation of its own,
so that answers of several accounts do not belong together (Dubiński et al., NeurIPS 2023,
https://arxiv.org/abs/2310.08571). A rotation keeps what features say of each other, and so what an honest user learns;
a thief with many accounts learns that as well (`related`), from each account's own answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.claims import secret
from buckler.data import Rows, floats
from buckler.encoders._copying import begun
from buckler.kinds import Watched
from buckler.train import fit

FAINT, LARGE, FULL = 1e-6, 1.0, 1.25
"""The noise is the first of these, as a share of a feature's size, while nothing is covered, and the second where the
score is as many times the alarm as the third says: at the alarm it is a sixteenth."""
MOST = 1.25
"""The score is counted up to so many times that at which noise is large: where the paper's ends, all being covered."""
TINY = 1e-9
"""The least alarm: where no honest account has a score, the least one is met with all the noise."""
FRAMES, LIGHT, NOISE = 5, 0.1, 0.02
"""How often a patient account sends an image, each time in light other by such a share, with so much noise."""
Watcher = Callable[[Rows], Watched]


class Account:
    """An account with an encoder behind `watch`: call it with images `(B, C, H, W)`, get features `(B, D)`.

    With an `alarm` noise grows with the score; with a `key` features are turned. All that was asked is in `stream`.
    """

    def __init__(
        self, encoder: nn.Module, watch: Watcher, *, alarm: float = math.inf, key: int | None = None, seed: int = 0
    ) -> None:
        self._encoder, self._watch, self._alarm, self._key = encoder, watch, alarm, key
        self._draw = secret(seed, "account")
        self._sent, self._features = list[Tensor](), list[Tensor]()

    def __call__(self, x: Tensor) -> Tensor:
        features = self._encoder(x)
        self._sent.append(x.detach().cpu())
        self._features.append(features.detach().cpu())
        if not math.isinf(self._alarm):
            size = features.square().mean(1, keepdim=True).sqrt()
            noise = torch.randn(features.shape, generator=self._draw).to(features)
            spread = noise_at(self._watch(self.stream).score[-len(x) :], self._alarm).to(features)
            features = features + spread[:, None] * size * noise
        return turned(features, self._key)

    @property
    def stream(self) -> Rows:
        """All that was sent, in order, and its features as they are."""
        return torch.cat(self._sent), torch.cat(self._features)


def noise_at(score: Tensor, alarm: float) -> Tensor:
    """The standard deviation of noise at each score `(N,)`, as a share of a feature's size; none without an alarm."""
    if math.isinf(alarm):
        return torch.zeros_like(score)
    part = (score / (FULL * max(alarm, TINY))).clamp(max=MOST)
    return FAINT * ((math.log(LARGE / FAINT) * part).exp() - 1)


def turned(features: Tensor, key: int | None) -> Tensor:
    """`features` `(B, D)` in a rotation that `key` draws; as they are without one."""
    if key is None:
        return features
    wide = features.shape[1]
    turn, _ = torch.linalg.qr(torch.randn(wide, wide, generator=secret(key, "turned")))
    return features @ turn.to(features)


def some(data: Rows, which: Sequence[int], many: int, draw: torch.Generator) -> Tensor:
    """The numbers of `many` different rows, or all if they are fewer, of the classes `which`, in random order."""
    rows = torch.isin(data[1].cpu(), torch.tensor(which)).nonzero().flatten()
    return rows[torch.randperm(len(rows), generator=draw)[:many]]


def often(x: Tensor, draw: torch.Generator) -> Tensor:
    """Every image of `x` `(B, C, H, W)` `FRAMES` times, each in other light and with other noise."""
    x = floats(x).repeat_interleave(FRAMES, 0)
    light = 1 + LIGHT * (2 * torch.rand(len(x), 1, 1, 1, generator=draw) - 1)
    return (light * x + NOISE * torch.randn(x.shape, generator=draw)).clamp(0, 1)


def related(
    net: Callable[[], nn.Module], x: Tensor, answers: Sequence[Tensor], *, epochs: float, seed: int
) -> nn.Module:
    """A copy that learns how alike features are to others of the same account: rotations do not change it.

    `answers` are each account's `(n, D)`, in the order of the rows `x` `(N, C, H, W)`.
    """
    whose = torch.cat([torch.full((len(part),), one) for one, part in enumerate(answers)]).to(x.device)
    given = F.normalize(torch.cat([*answers]), dim=1).to(x.device)

    def loss(model: nn.Module, images: Tensor, row: Tensor) -> Tensor:
        own = F.normalize(model(images), dim=1)
        pairs = (whose[row][:, None] == whose[row]).float().fill_diagonal_(0)
        apart = (own @ own.T - given[row] @ given[row].T).square()
        return (apart * pairs).sum(1) / pairs.sum(1).clamp_min(1)

    rows = torch.arange(len(x), device=x.device)
    copy = begun(net, x, given.shape[1], seed)
    return fit(copy, (x, rows), loss=loss, epochs=epochs, batch=64, rate=0.3, seed=seed)
