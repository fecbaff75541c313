"""Generative model inversion: classes drawn out of a model, among pictures that look like public ones.

Zhang, Jia, Pei, Wang, Li and Song, "The secret revealer: generative model-inversion attacks against deep neural
networks", CVPR 2020, https://arxiv.org/abs/1911.07135.

Differs from the paper: in place of a GAN a small autoencoder learns from the public rows, whose decoder is what is
searched; how far a code may be from those of public rows is priced by a normal distribution in place of a
discriminator; the model is asked about noisy copies, as in `model_inversion`. What public rows of the same classes look
like is in the pictures from the start: measure it against an untrained network.

Tags: atlas:AML.T0024.001, nist-ai-100-2:NISTAML.032, owasp-ml:ML03.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from buckler.data import Rows
from buckler.kinds import Reconstructed
from buckler.target import frozen
from buckler.train import fit, started


def generative_inversion(
    model: nn.Module,
    classes: Tensor,
    *,
    shape: tuple[int, ...],
    public: Rows,
    codes: int = 16,
    epochs: float = 60,
    steps: int = 300,
    rate: float = 0.05,
    noise: float = 0.3,
    pull: float = 0.05,
    seed: int = 0,
) -> Reconstructed:
    """Draw an input of `shape` for each of `classes` `(V,)` that `model` takes to be of that class and a decoder makes.

    `public` are rows `(N, *shape)` in [0, 1] that the model need not have learnt from; an autoencoder with so many
    `codes` learns from them for `epochs`. Adam takes `steps` at `rate` on the codes, from the mean one; `noise` is the
    standard deviation of what is added to the inputs that the model is asked about, drawn by `seed`, and `pull` the
    price of a code's squared distance from the mean, in standard deviations. Returns `(V, *shape)` with `classes`.
    Raises `ValueError` for other rows, or knobs out of range.
    """
    rows = public[0].to(classes.device)
    if tuple(rows.shape[1:]) != shape or len(rows) < 2:
        raise ValueError(f"expected two public rows or more, each {shape}, got {tuple(rows.shape)}")
    if min(codes, steps) < 1 or rate <= 0 or min(noise, pull) < 0:
        raise ValueError("expected codes, steps and rate above 0, and noise and pull of 0 or more")
    learner = cast(_Autoencoder, started(partial(_Autoencoder, rows[0].numel(), codes), seed)).to(classes.device)
    fit(
        learner,
        (rows, public[1]),
        loss=_unlike,
        epochs=epochs,
        batch=64,
        rate=3e-3,
        decay=0,
        optimizer="adam",
        seed=seed,
    )
    draw = torch.Generator().manual_seed(seed)
    with frozen(model), frozen(learner), torch.enable_grad():
        with torch.no_grad():
            known = learner.encode(rows.flatten(1))
        centre, spread = known.mean(0), known.std(0).clamp_min(1e-6)
        code = torch.zeros(len(classes), codes, device=classes.device)
        slope, square = torch.zeros_like(code), torch.zeros_like(code)
        for count in range(1, steps + 1):
            code = code.detach().requires_grad_()
            x = learner.decode(centre + spread * code).view(-1, *shape)
            asked = x + noise * torch.randn(x.shape, generator=draw).to(x)
            unlikely = -model(asked).log_softmax(1).gather(1, classes[:, None]).sum()
            (down,) = torch.autograd.grad(unlikely + pull * code.square().sum(), code)
            slope, square = slope.lerp(down, 0.1), square.lerp(down.square(), 0.001)
            code = code.detach() - rate * slope / (1 - 0.9**count) / ((square / (1 - 0.999**count)).sqrt() + 1e-8)
        x = learner.decode(centre + spread * code).detach()
    return Reconstructed(x.view(-1, *shape).clamp(0, 1), classes)


class _Autoencoder(nn.Module):
    """Rows of `wide` numbers in [0, 1] through so many `codes` and back."""

    def __init__(self, wide: int, codes: int, inner: int = 128) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(wide, inner), nn.ReLU(), nn.Linear(inner, codes))
        self.decode = nn.Sequential(nn.Linear(codes, inner), nn.ReLU(), nn.Linear(inner, wide), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x.flatten(1)))


def _unlike(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
    """The squared difference of each row from what comes back, summed: `(B,)`."""
    return (model(x) - x.flatten(1)).square().sum(1)
