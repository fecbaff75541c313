"""Deconfounding: one network learns the shortcut on purpose, another is weighted away from what the first knows.

Zhang, Liu, Wang, Lu and Hu, "Backdoor defense via deconfounded representation learning", CVPR 2023,
https://arxiv.org/abs/2303.06818; settings of the authors' repository, https://github.com/zaixizhang/CBD.

A network that is trained for a few epochs knows the trigger and little else. In the training of the second one a row
weighs L_B / (L_C + L_B), where L_B and L_C are the losses of the first and of the second: next to nothing for a row
that the first one has learnt.

Differs from the paper: the term that makes the two networks' features independent is off by default, as in the
authors' code, and trains its critic in the same steps by a reversed gradient, instead of with an optimizer of its own.
No guarantee: what the first network does not learn in its epochs keeps its weight, and what it learns of honest rows
is learnt more slowly by the second.

Tags: atlas:AML.T0020, nist-ai-100-2:NISTAML.023, owasp-ml:ML02, cwe:506.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from buckler.augment import Augment
from buckler.data import Rows
from buckler.kinds import Cultivated, Suspicion
from buckler.poisoning._dynamics import Watched, numbered, plain
from buckler.poisoning._look import inputs_of, last_linear, losses, outputs
from buckler.poisoning._touch import classes, images
from buckler.train import constant, fit, lasting, started


def cbd(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    epochs: tuple[float, float] = (5, 100),
    batch: int = 64,
    rate: float = 0.1,
    decay: float = 1e-4,
    independence: float = 0.0,
    augment: Augment | None = None,
    seed: int = 0,
) -> Cultivated:
    """Train a model from `data`, `x` `(N, C, H, W)` and `y` `(N,)`, that leaves alone what is learnt at once.

    `epochs` are those of the first network, at the constant `rate`, and of the second, whose rate falls to a tenth
    after a fifth of them and to a hundredth after seven tenths. `independence` is the weight of the term that makes
    their features independent (the authors' is 0.01). Returns the second model, the suspicion (minus the final weight;
    flagged are rows that the first network answers better than the second) and the second's dynamics. Raises
    `ValueError` for one class, or, with `independence`, a model without a linear layer.
    """
    x, y = images(data)
    classes(y)
    lasting(*epochs)
    first = started(net, seed)
    outputs(first, (x, y))
    fit(
        first, (x, y), epochs=epochs[0], batch=batch, rate=constant(rate), decay=decay, augment=augment, seed=seed
    )  # fmt: skip
    model = started(net, seed + 1)
    watched = Watched(y)
    known = losses(first, (x, y))
    loss = _weighted(first, y, watched, known if augment is None else None)
    pair = _Pair(model, first, independence, seed) if independence > 0 else model
    fit(
        pair, numbered(x), loss=loss, epochs=epochs[1], batch=batch, rate=lambda done: rate * _stepped(done),
        decay=decay, augment=augment, seed=seed + 1,
    )  # fmt: skip
    weight = _confounded(known, losses(model, (x, y)))
    return Cultivated(model, Suspicion(-weight, weight < 0.5), watched.record)


def _confounded(known: Tensor, loss: Tensor) -> Tensor:
    """What rows weigh, by the first network's losses and the second's: `(B,)` in [0, 1]."""
    return known / (known + loss + 1e-8)


def _stepped(done: float) -> float:
    return 1.0 if done < 0.2 else 0.1 if done < 0.7 else 0.01


def _weighted(
    first: nn.Module, y: Tensor, watched: Watched, known: Tensor | None
) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """The weighted loss; `known` are the first network's losses, if augmentation does not change them."""

    def loss(moving: nn.Module, x: Tensor, rows: Tensor) -> Tensor:
        labels = y.to(x.device)[rows]
        out = moving(x)
        logits, apart = out if isinstance(out, tuple) else (out, None)
        if known is None:
            with torch.no_grad():
                before = plain(first(x), labels)
        else:
            before = known.to(x.device)[rows]
        own = plain(logits, labels)
        watched.note(rows.cpu(), logits.detach().float().cpu(), labels.cpu())
        weight = _confounded(before, own.detach())
        value = weight / weight.mean().clamp_min(1e-8) * own
        return value if apart is None else value + apart

    return loss


class _Pair(nn.Module):
    """The second network and a critic that tells its features beside the first's from its features beside another's.

    Gives the logits and minus the critic's advantage (a Wasserstein distance), of which the critic sees the gradient
    as it is and the second network sees it reversed, times `weight`: one descent raises it for the one and lowers it
    for the other.
    """

    def __init__(self, model: nn.Module, first: nn.Module, weight: float, seed: int) -> None:
        super().__init__()
        self.model = model
        self._others = [first, last_linear(first), last_linear(model)]  # in a list, so that they are not trained
        self._weight = weight
        width = last_linear(model).in_features
        self.critic = started(lambda: _critic(width), seed).to(last_linear(model).weight.device)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, before, after = self._others
        with torch.no_grad(), inputs_of(before) as seen:
            first(x)
        shortcut = seen[-1].flatten(1)
        with inputs_of(after) as seen:
            logits = self.model(x)
        own = _reversed_gradient(seen[-1].flatten(1), self._weight)
        joint = self.critic(torch.cat([shortcut, own], 1)).mean()
        apart = self.critic(torch.cat([shortcut, own.roll(1, 0)], 1)).mean()
        return logits, apart - joint


def _critic(width: int) -> nn.Module:
    return nn.Sequential(spectral_norm(nn.Linear(2 * width, width)), nn.LeakyReLU(), spectral_norm(nn.Linear(width, 1)))


def _reversed_gradient(x: Tensor, weight: float) -> Tensor:
    """`x` as it is, whose gradient is turned round and multiplied by `weight`."""
    return (1 + weight) * x.detach() - weight * x
