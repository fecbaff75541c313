"""Which channels of an encoder sleep on clean images, and an encoder without them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from buckler.data import floats
from buckler.embedding import embedded
from buckler.graph import Channels, divided, layer, maps, returning, silenced, silent, sleepers, states, traced, writers
from buckler.nets import where
from buckler.target import frozen


def asleep(encoder: nn.Module, x: Tensor, alike: float) -> tuple[list[Channels], Tensor]:
    """All channels that can be silenced, and the numbers of the least active, as many as can go while the features of
    images `x` `(N, C, H, W)`, around their mean, keep a mean cosine of `alike` to those before.

    A `ValueError` for fewer than two images, an encoder that `torch.fx` cannot trace, or without such channels, and for
    an `alike` that is not above -1 and at most 1.
    """
    _cosine(alike)
    if x.ndim != 4 or len(x) < 2:
        raise ValueError(f"expected two images or more, (N, C, H, W), got {tuple(x.shape)}")
    before = embedded(encoder, x)
    middle = before.mean(0)

    def kept() -> float:
        try:
            return float(F.cosine_similarity(embedded(encoder, x) - middle, before - middle).mean())
        except ValueError:  # so much is gone that all images look the same
            return -1.0

    with torch.no_grad(), frozen(encoder):
        groups, active = channels(encoder, x)
        return groups, sleepers(groups, active.argsort(), kept, alike)


@contextmanager
def woken(encoder: nn.Module, x: Tensor, alike: float) -> Generator[None, None, None]:
    """Inside the block `encoder` is without the channels that sleep on `x`, whatever it learns; behind it they are as
    they were. Where nothing can be pruned nothing is. A `ValueError` for an `alike` that `asleep` does not take."""
    _cosine(alike)
    try:
        groups, gone = asleep(encoder, x, alike)
    except ValueError:
        groups, gone = list[Channels](), torch.zeros(0, dtype=torch.long)
    before = states(groups)
    rows = {id(module): mine for group, mine in divided(groups, gone) for module in group.layers}
    try:
        with silenced(groups, gone):
            yield
    finally:
        for module, state in before:
            for name, value in module.state_dict().items():
                if value.ndim:  # not how many batches a norm has seen
                    value[rows[id(module)]] = state[name][rows[id(module)]]


def _cosine(alike: float) -> None:
    if not -1 < alike <= 1:
        raise ValueError(f"expected a cosine above -1, and at most 1, that features are to keep, got {alike}")


def channels(encoder: nn.Module, x: Tensor) -> tuple[list[Channels], Tensor]:
    """The channels of every feature map that a convolution reads, and of the last, as far as they can be silenced; and
    how active each is on `x`, where a map's channels are 1 in the mean: `(channels,)`. Maps with a convolution in
    common are one."""
    graph, sample = traced(encoder), floats(x[:2]).to(where(encoder))
    read = _read(graph, maps(graph, sample))
    groups = _tied([writers(graph, at) for at in read])
    run = returning(graph, tuple(read)) if read else graph
    groups = [
        (group, mine) for group, mine in groups if silent(group, lambda mine=mine: [run(sample)[i] for i in mine])
    ]
    if not groups:
        raise ValueError("expected an encoder with convolutions, got none: nothing to prune; use continued_pretraining")
    level = [torch.zeros(())] * len(read)
    for part in x.split(512):
        outs = run(floats(part).to(where(encoder)))
        level = [sofar + out.abs().mean((2, 3)).sum(0).cpu() for sofar, out in zip(level, outs, strict=True)]
    level = [one / one.mean().clamp_min(1e-12) for one in level]
    active = [torch.stack([level[i] for i in mine]).mean(0) for _, mine in groups]
    return [group for group, _ in groups], torch.cat(active)


def _read(graph: fx.GraphModule, found: list[fx.Node]) -> list[fx.Node]:
    """Of the maps `found` those that a convolution reads, and the last; of one that is joined of others, those."""
    read = list[fx.Node]()
    ahead = [at for at in found if any(isinstance(layer(graph, user), nn.Conv2d) for user in at.users)] + found[-1:]
    seen = set[fx.Node]()
    while ahead:
        at = ahead.pop(0)
        if at in seen:
            continue
        seen.add(at)
        if writers(graph, at).layers:
            read.append(at)
        else:
            ahead += [each for each in at.all_input_nodes if each in found]
    return read


def _tied(written: list[Channels]) -> list[tuple[Channels, list[int]]]:
    """Groups of maps that have a layer in common, and the maps of each, by their place."""
    groups = list[tuple[Channels, list[int]]]()
    for place, (layers, many) in enumerate(written):
        same = [group for group in groups if set(group[0].layers) & set(layers)]
        joined = dict.fromkeys([*(part for group, _ in same for part in group.layers), *layers])
        places = [*(one for _, mine in same for one in mine), place]
        groups = [*(group for group in groups if group not in same), (Channels(list(joined), many), places)]
    return groups
