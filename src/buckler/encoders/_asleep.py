"""Which channels of an encoder sleep on clean images, and an encoder without them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import floats
from buckler.embedding import embedded
from buckler.graph import Channels, divided, layer, maps, returning, silenced, sleepers, states, traced, writers
from buckler.nets import where
from buckler.target import frozen


def asleep(encoder: nn.Module, x: Tensor, alike: float) -> tuple[list[Channels], Tensor]:
    """All channels, and the numbers of the least active, as many as can go while the features of images `x`
    `(N, C, H, W)`, around their mean, keep a mean cosine of `alike` to those before. A `ValueError` for fewer than two
    images, an encoder that `torch.fx` cannot trace, or without convolutions, and for an `alike` that is not above -1
    and at most 1."""
    if x.ndim != 4 or len(x) < 2:
        raise ValueError(f"expected two images or more, (N, C, H, W), got {tuple(x.shape)}")
    if not -1 < alike <= 1:
        raise ValueError(f"expected a cosine above -1, and at most 1, that features are to keep, got {alike}")
    before = embedded(encoder, x)
    middle = before.mean(0)

    def kept() -> float:
        return float(F.cosine_similarity(embedded(encoder, x) - middle, before - middle).mean())

    with torch.no_grad(), frozen(encoder):
        groups, active = channels(encoder, x)
        return groups, sleepers(groups, active.argsort(), kept, alike)


@contextmanager
def woken(encoder: nn.Module, x: Tensor, alike: float) -> Generator[None, None, None]:
    """Inside the block `encoder` is without the channels that sleep on `x`, whatever it learns; behind it they are as
    they were. Where nothing can be pruned nothing is."""
    try:
        with torch.no_grad(), frozen(encoder):
            channels(encoder, x[:2])
    except ValueError:
        yield
        return
    groups, gone = asleep(encoder, x, alike)
    before = states(groups)
    with silenced(groups, gone):
        yield
    rows = {id(module): mine for group, mine in divided(groups, gone) for module in group.layers}
    for module, state in before:
        for name, value in module.state_dict().items():
            if value.ndim:  # not how many batches a norm has seen
                value[rows[id(module)]] = state[name][rows[id(module)]]


def channels(encoder: nn.Module, x: Tensor) -> tuple[list[Channels], Tensor]:
    """The channels of every feature map that a convolution reads, and of the last; and how active each is on `x`, where
    a map's channels are 1 in the mean: `(channels,)`. Maps with a convolution in common are one."""
    graph, sample = traced(encoder), floats(x[:2]).to(where(encoder))
    found = maps(graph, sample)
    read = [at for at in found if any(isinstance(layer(graph, user), nn.Conv2d) for user in at.users)]
    read = list(dict.fromkeys([*read, *found[-1:]]))
    groups = list[tuple[Channels, list[int]]]()
    for place, (layers, many) in enumerate(writers(graph, at) for at in read):
        same = [group for group in groups if set(group[0].layers) & set(layers)]
        groups = [group for group in groups if group not in same]
        joined = dict.fromkeys([*(part for group, _ in same for part in group.layers), *layers])
        if layers:
            groups.append((Channels(list(joined), many), [*(one for _, places in same for one in places), place]))
    if not groups:
        raise ValueError("expected an encoder with convolutions, got none: nothing to prune; use continued_pretraining")
    run, level = returning(graph, tuple(read)), [torch.zeros(())] * len(read)
    for part in x.split(512):
        level = [
            sofar + out.abs().mean((2, 3)).sum(0).cpu()
            for sofar, out in zip(level, run(floats(part).to(where(encoder))), strict=True)
        ]
    level = [one / one.mean().clamp_min(1e-12) for one in level]
    active = [torch.stack([level[place] for place in places]).mean(0) for _, places in groups]
    return [group for group, _ in groups], torch.cat(active)
