"""MemGuard: every answer is moved until a classifier of membership can say nothing of it, and its label is kept.

Jia, Salem, Backes, Zhang and Gong, "MemGuard: defending against black-box membership inference attacks via adversarial
examples", CCS 2019, https://arxiv.org/abs/1909.10594.

A classifier learns to tell answers to members from answers to other rows. The noise is an adversarial example against
it: the logits are moved along its gradient until it changes its mind. It is added with such a chance that the distance
to the true answer (l1, of probabilities) is on average no more than `distortion`; whether it is, is said by the input,
so that asking again shows nothing new.

Differs from the paper: the noise is cut back to where the classifier changes its mind, which leaves it unsure and not
just as sure of the contrary, with less distortion; the paper searches for that with growing weights of distortion,
which then gains nothing, and is left out. The chance belongs to the content of the input, and not to the digits of the
answer: rows that are answered alike share no coin, and an input that hardly differs has its own. The classifier has two
hidden layers and not three.

No guarantee: labels are as they were, so attacks that look at labels alone find what they found (Choquette-Choo,
Tramer, Carlini and Papernot, ICML 2021, https://arxiv.org/abs/2007.14321); and thresholds that are fitted to guarded
answers find most of what they found (Song and Mittal, USENIX Security 2021, https://arxiv.org/abs/2003.10595). Where
the chance is below 1, who asks about inputs that hardly differ sees true answers among them.

Tags: atlas:AML.M0002, nist-ai-100-2:NISTAML.033, owasp-ml:ML04.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Rows, as_tensors, count, drawn, raw
from buckler.dice import Dice
from buckler.kinds import Defended
from buckler.target import Oracle, frozen
from buckler.train import fit, started

MOST = 2000
"""How many members, and as many other rows, the classifier learns from at most."""
LABEL, NEAR = 10.0, 0.1
"""The paper's weights: of a label that changes, and of distortion."""
HALVINGS = 10
"""How often the noise is halved around the place where the classifier changes its mind."""


def memguard(
    model: nn.Module,
    *,
    members: Rows,
    public: Rows,
    distortion: float = 1.0,
    steps: int = 300,
    size: float = 0.1,
    width: int = 64,
    epochs: float = 40,
    batch: int = 64,
    rate: float = 0.003,
    seed: int = 0,
) -> Defended:
    """`model` with answers moved by at most `distortion`, on average, so that a classifier of membership is unsure.

    The classifier, with layers of `width` and half of it, learns by Adam from answers to `members`, rows `(N, ...)`
    with labels that the model learnt from, and to `public`, rows alike that it did not. The noise is found in at most
    `steps` of length `size` in the logits. Returns a module `(B, ...)` to logits `(B, K)`. Raises `ValueError` for a
    distortion outside [0, 2], no step, or no rows on a side.
    """
    if not 0 <= distortion <= 2 or steps < 1 or not size > 0:
        raise ValueError(f"expected distortion in [0, 2], a step and a size, got {distortion}, {steps} and {size}")
    many = min(count(members), count(public), MOST)
    if many < 1:
        raise ValueError("expected members and public rows, got none on a side")
    with frozen(model):
        said = [Oracle(model, "scores")(_inputs(model, rows, many, seed)) for rows in (members, public)]
    lesson = torch.cat(said), torch.arange(2 * many, device=said[0].device) < many
    judge = started(partial(_classifier, said[0].shape[1], width), seed).to(lesson[0].device)
    fit(judge, lesson, loss=_log_loss, epochs=epochs, batch=batch, rate=rate, decay=0.0, optimizer="adam", seed=seed)
    return MemGuarded(model, judge.requires_grad_(False), distortion, steps, size, seed)


class MemGuarded(nn.Module):
    """The guarded model; an adaptive attack on inputs goes through `model` itself."""

    def __init__(
        self, model: nn.Module, judge: nn.Module, distortion: float, steps: int, size: float, seed: int
    ) -> None:
        super().__init__()
        self.model, self.judge = model, judge
        self.distortion, self.steps, self.size, self.seed = distortion, steps, size, seed
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        noise = self._unsure(z.detach())
        before, after = (logits.detach().softmax(1) for logits in (z, z + noise))
        moved = (after - before).abs().sum(1)
        helps = self.judge(after).abs() < self.judge(before).abs()
        chance = torch.where(helps, self.distortion / moved.clamp_min(1e-12), 0)
        return torch.where((Dice(x, self.seed).uniform() < chance)[:, None], z + noise, z)

    def surrogate(self) -> nn.Module:
        return self.model

    def _unsure(self, z: Tensor) -> Tensor:
        """The noise on logits `z` `(B, K)` at which the classifier changes its mind, and none where it never does."""
        scores, label = z.softmax(1), F.one_hot(z.argmax(1), z.shape[1]).bool()
        side = self.judge(scores).sign()
        noise, going = torch.zeros_like(z), torch.arange(len(z), device=z.device)
        for _ in range(self.steps):
            e = noise[going].requires_grad_()
            with torch.enable_grad():
                moved = z[going] + e
                after, own = moved.softmax(1), label[going]
                sure = self.judge(after)
                lost = (moved.masked_fill(own, -torch.inf).amax(1) - moved[own]).relu()
                loss = sure.abs() + LABEL * lost + NEAR * (after - scores[going]).abs().sum(1)
                (slope,) = torch.autograd.grad(loss.sum(), e)
            stands = (sure * side[going] > 0) | (lost > 0)
            stepped = e.detach() - self.size * F.normalize(slope, dim=1)
            going = going[stands]
            if not len(going):
                break
            noise[going] = stepped[stands]
        changed = z + noise
        kept = changed.masked_fill(label, -torch.inf).amax(1) < changed[label]
        works = kept & (self.judge(changed.softmax(1)) * side <= 0)
        return torch.where(works[:, None], self._cut(z, noise, side), 0)

    def _cut(self, z: Tensor, noise: Tensor, side: Tensor) -> Tensor:
        """The share of the noise at which the classifier changes its mind: beyond, it would be sure of the contrary."""
        low, high = torch.zeros_like(side), torch.ones_like(side)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            stands = self.judge((z + middle[:, None] * noise).softmax(1)) * side > 0
            low, high = torch.where(stands, middle, low), torch.where(stands, high, middle)
        return ((low + high) / 2)[:, None] * noise


def _inputs(model: nn.Module, rows: Rows, many: int, seed: int) -> Tensor:
    """The inputs of so many rows, where the model is."""
    where = next(model.parameters(), torch.empty(0)).device
    return as_tensors(raw(rows, drawn(rows, many, seed)))[0].to(where)


def _classifier(classes: int, width: int) -> nn.Module:
    half = max(1, width // 2)
    layers = nn.Linear(classes, width), nn.ReLU(), nn.Linear(width, half), nn.ReLU(), nn.Linear(half, 1)
    return _Ranked(nn.Sequential(*layers))


class _Ranked(nn.Module):
    """The log-odds `(B,)` of a member, out of scores `(B, K)` in falling order."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, scores: Tensor) -> Tensor:
        return self.inner(scores.sort(dim=1, descending=True).values).squeeze(1)


def _log_loss(model: nn.Module, scores: Tensor, member: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(scores), member.float(), reduction="none")
