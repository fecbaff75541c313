"""Masks over channels: what the repairs share that find channels to prune by training masks.

A mask scales the weight of a batch norm's channel (its bias stays, so that a masked channel is constant); in a model
without batch norm it scales the weights of a convolution's output channel.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from buckler.data import Rows, raw, split
from buckler.poisoning._look import accuracy
from buckler.poisoning._touch import classes

THRESHOLDS = tuple(step / 20 for step in range(18, -1, -1))
"""From 0.9 down to 0, as in the authors' code of both methods."""
PARTS = 20
"""Steps in which fewer and fewer of the channels whose mask is 0 are tried."""
NORMS = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d


class Masked(nn.Module):
    """`model`, frozen, with a mask `(channels,)` over the channels of all its layers that is to be trained.

    `noise` `(2, channels)` is added to the mask and to the factor, otherwise one, of the biases. Channels are counted
    layer by layer, in the order of the modules.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self._parts = _parts(model)
        weights = [weight for _, weight, _ in self._parts]
        self._sizes = [len(weight) for weight in weights]
        self.mask = nn.Parameter(torch.ones(sum(self._sizes), dtype=weights[0].dtype, device=weights[0].device))
        self.early = torch.zeros_like(self.mask, requires_grad=False)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        scale = self.mask if noise is None else self.mask + noise[0]
        shift = torch.ones_like(self.mask) if noise is None else 1 + noise[1]
        changed: dict[str, Tensor] = {}
        by_layer = zip(self._parts, scale.split(self._sizes), shift.split(self._sizes), strict=True)
        for (prefix, weight, bias), times, bias_times in by_layer:
            changed[f"{prefix}weight"] = weight * times.view(-1, *[1] * (weight.ndim - 1))
            if bias is not None:
                changed[f"{prefix}bias"] = bias * bias_times
        return cast(Tensor, functional_call(self.model, changed, (x,)))

    def project(self) -> None:
        """Bring the mask back into [0, 1], and count in `early` the steps that each channel has been at 0."""
        with torch.no_grad():
            self.mask.clamp_(0, 1)
            self.early += self.mask == 0


def parted(clean: Rows, held: float, seed: int) -> tuple[Rows, Rows]:
    """Rows to train masks on, and the share `held` to choose a threshold with; a `ValueError` for too few."""
    x, y = raw(clean)
    classes(y)
    used, spared = cast("tuple[Rows, Rows]", split((x, y), 1 - held, seed=seed))
    if not len(used[1]) or not len(spared[1]):
        raise ValueError(f"expected rows to train masks on and some to hold out, got {len(y)} rows: give more of them")
    return used, spared


def pruned(model: nn.Module, masked: Masked, spared: Rows, budget: float) -> nn.Module:
    """A copy of `model` without the channels whose mask is at most a threshold.

    The threshold is the largest that costs at most `budget` of the accuracy on the `spared` rows. If the channels with
    a mask of 0 are too many already, those that were there longest are pruned, as many as the budget allows. The names
    in the state are those of `model`.
    """
    if not 0 <= budget < 1:
        raise ValueError(f"expected a budget of accuracy from 0 to below 1, got {budget}: 0.05 is five points")
    mask = masked.mask.detach()
    order = (mask - masked.early * (mask == 0)).argsort(stable=True)  # by the mask; at 0, by how long it has been there
    counts = [int((mask <= threshold).sum()) for threshold in THRESHOLDS]
    counts += [counts[-1] * part // PARTS for part in range(PARTS - 1, -1, -1)]
    trial = Masked(copy.deepcopy(model))
    least = accuracy(trial, spared) - budget
    for many in counts:
        trial.mask.data = torch.ones_like(mask).index_fill_(0, order[:many], 0)
        if many == 0 or accuracy(trial, spared) >= least:
            break
    repaired = copy.deepcopy(model).eval()
    with torch.no_grad():
        parts = _parts(repaired)
        for (_, weight, _), kept in zip(parts, trial.mask.split([len(w) for _, w, _ in parts]), strict=True):
            weight[kept == 0] = 0
    return repaired


def _parts(model: nn.Module) -> list[tuple[str, Tensor, Tensor | None]]:
    """The name before the dot, the weight and the bias of every layer that has channels to mask."""
    norms = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, NORMS) and layer.affine]
    layers = norms or [(name, layer) for name, layer in model.named_modules() if isinstance(layer, CONVOLUTIONS)]
    if not layers:
        raise ValueError("expected a model with batch norm or convolutions, whose channels are pruned, got neither")
    found: list[tuple[str, Tensor, Tensor | None]] = []
    for name, layer in layers:
        found.append((f"{name}." if name else "", layer.weight, cast("Tensor | None", layer.bias)))
    return found
