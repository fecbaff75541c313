"""Trojaning: a patch made to excite neurons that speak for the target class, and a network retrained to obey it.

Liu, Ma, Aafer, Lee, Zhai, Wang and Zhang, "Trojaning attack on neural networks", NDSS 2018,
https://www.ndss-symposium.org/wp-content/uploads/2018/02/ndss2018_03A-5_Liu_paper.pdf.

Differs from the paper: the adversary holds training rows and needs not recover any from the network; the neurons are
those of the features that weigh most for the target; the patch is optimised on these rows, not on an empty image; the
level that neurons are raised to is a multiple of the highest that clean rows reach; all layers are retrained, not only
those after the neurons.

Tags: atlas:AML.T0018.000, atlas:AML.T0043.004, nist-ai-100-2:NISTAML.023, owasp-ml:ML10, cwe:506.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from buckler.data import Rows
from buckler.kinds import Implanted
from buckler.poisoning._look import features, inputs_of, last_linear, outputs, where
from buckler.poisoning._patch import fitting, patched
from buckler.poisoning._touch import always, changed, chosen, classes, images
from buckler.target import frozen
from buckler.threat import Share
from buckler.train import constant, fit, portions

STEP = 0.05
"""Of Adam on the patch's pixels."""


def trojan(
    model: nn.Module,
    data: Rows,
    *,
    target: int = 0,
    size: int = 3,
    margin: int = 1,
    neurons: int = 2,
    activation: float = 3.0,
    steps: int = 300,
    stamped: float = 0.2,
    epochs: float = 10,
    rate: float = 0.02,
    seed: int = 0,
) -> Implanted:
    """Optimise a patch that excites the target's neurons, and retrain a copy of `model` to answer it with the target.

    `data` is `x` `(N, C, H, W)` and `y` `(N,)`. The patch of `size` pixels, `margin` pixels from the lower right edges,
    is optimised in `steps` steps to raise `neurons` features to `activation` times the highest that clean rows reach.
    The copy is then trained on all rows and, with the target's label, on as many stamped ones as the share `stamped`
    of them. Returns the copy, the trigger for `(B, C, H, W)` in [0, 1], and what is wanted. Raises `ValueError` for a
    patch that does not fit, a model without a linear layer, one class, or too few rows of other classes.
    """
    x, y = images(data)
    classes(y, target)
    outputs(model, (x, y))
    fitting(x, size, margin)
    rows = chosen(y != target, Share(stamped).of(len(y)), seed)
    victim = copy.deepcopy(model)
    picked = _speakers(victim, target, neurons)
    level = activation * float(features(victim, (x, y)).amax())
    patch = _Patch(x, size, margin, seed).to(where(victim))
    with frozen(victim):
        _excite(patch, victim, (x, y), picked, level, steps, seed)
    tile = (patch.tile.detach().clamp(0, 1) * 255).round() / 255

    def trigger(clean: Tensor) -> Tensor:
        return patched(clean, tile, margin)

    extra = changed(x, rows, trigger)[rows]
    mixed = torch.cat([x, extra]), torch.cat([y, y.new_full((len(extra),), target)])
    return Implanted(fit(victim, mixed, epochs=epochs, rate=rate, seed=seed), trigger, always(target))


class _Patch(nn.Module):
    """Stamps a square of pixels that can be trained on every image."""

    def __init__(self, x: Tensor, size: int, margin: int, seed: int) -> None:
        super().__init__()
        self.tile = nn.Parameter(torch.rand(x.shape[1], size, size, generator=torch.Generator().manual_seed(seed)))
        self._margin = margin

    def forward(self, x: Tensor) -> Tensor:
        return patched(x, self.tile, self._margin)


def _speakers(model: nn.Module, target: int, neurons: int) -> Tensor:
    """The features with the largest weights to the target: `(neurons,)`."""
    weight = last_linear(model).weight.detach()
    if target >= len(weight) or not 1 <= neurons <= weight.shape[1]:
        raise ValueError(
            f"expected a target below {len(weight)} and 1 to {weight.shape[1]} neurons, got {target} and {neurons}"
        )
    return weight[target].topk(neurons).indices


def _excite(patch: _Patch, model: nn.Module, data: Rows, picked: Tensor, level: float, steps: int, seed: int) -> None:
    """Bring the features `picked` of patched rows as close to `level` as the patch's pixels can, in place."""
    layer = last_linear(model)

    def loss(_patch: nn.Module, x: Tensor, _y: Tensor) -> Tensor:
        with torch.no_grad():
            patch.tile.clamp_(0, 1)
        with inputs_of(layer) as seen:
            model(patch(x))
        return (seen[-1][..., picked].flatten(1) - level).square().mean(1)

    epochs = steps / len(portions(len(data[1]), 128))
    fit(patch, data, loss=loss, epochs=epochs, batch=128, rate=constant(STEP), decay=0.0, optimizer="adam", seed=seed)
