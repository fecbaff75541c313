"""Fine-pruning: remove the channels that sleep on clean rows, as far as accuracy allows, then fine-tune.

Liu, Dolan-Gavitt and Garg, "Fine-pruning: defending against backdooring attacks on deep neural networks", RAID 2018,
https://arxiv.org/abs/1805.12185.

Differs from the paper: how many channels go is found by bisection, about log2 of the channels in evaluations; it is a
number that keeps accuracy within the budget while the next does not, and accuracy is that of held-out clean rows.
Where convolutions are added up (residual networks), the channel of the sum is what sleeps, and it is removed from every
convolution that writes to it. Channels stay removed during fine-tuning. No guarantee: a backdoor that uses channels
that clean rows use too stays.

Tags: atlas:AML.T0018.000, nist-ai-100-2:NISTAML.023, owasp-ml:ML10, cwe:506.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from buckler.data import Rows, batches, floats, raw, split
from buckler.graph import Channels, layer, maps, returning, silenced, silent, sleepers, traced, writers
from buckler.kinds import Repaired
from buckler.poisoning._look import BATCH, accuracy, outputs, where
from buckler.poisoning._touch import classes
from buckler.target import frozen
from buckler.train import fit


def fine_prune(
    model: nn.Module,
    clean: Rows,
    *,
    budget: float = 0.04,
    held: float = 0.3,
    epochs: float = 20,
    batch: int = 128,
    rate: float = 0.01,
    seed: int = 0,
) -> Repaired:
    """Prune a copy of `model` by `clean` rows `x` `(N, C, H, W)`, `y` `(N,)`, fine-tune it on them, and return it.

    Channels of the last feature map are removed in ascending order of their mean activation on the clean rows, as long
    as accuracy on the share `held` of them falls by at most `budget`: their filters, biases and batch norm are set to
    zero and stay so. Fine-tuning takes `epochs` epochs with the peak `rate`. Raises `ValueError` for a model that
    cannot be traced or has no convolution, for one class, or for too few rows to hold some out.
    """
    x, y = raw(clean)
    kept_out = round(held * len(y))
    if not 0 < kept_out < len(y):
        raise ValueError(
            f"expected clean rows to prune by and some to hold out, got {len(y)} rows and a share of {held}"
        )
    classes(y)
    outputs(model, (x, y))
    repaired = copy.deepcopy(model).eval()
    checked, rest = cast("tuple[Rows, Rows]", split((x, y), held, seed=seed))
    with torch.no_grad(), frozen(repaired):
        body, channels = _last_map(repaired, floats(x[:2].to(where(repaired))))
        order = _activation(body, repaired, rest).argsort()
        enough = accuracy(repaired, checked) - budget
        asleep = sleepers([channels], order, lambda: accuracy(repaired, checked), enough)
    with silenced([channels], asleep):
        fit(repaired, (x, y), epochs=epochs, batch=batch, rate=rate, seed=seed)
    return repaired


def _last_map(model: nn.Module, sample: Tensor) -> tuple[nn.Module, Channels]:
    """The graph from the input to the last feature map that a layer reads, and its channels."""
    graph = traced(model)
    found, nodes = maps(graph, sample), list(graph.graph.nodes)
    readers = [i for i, node in enumerate(nodes) if isinstance(layer(graph, node), nn.Linear | nn.Conv2d)]
    read = [node for node in found if node in nodes[: max(readers, default=0)]]
    channels = writers(graph, read[-1]) if read else Channels([], 0)
    body = returning(graph, read[-1]) if channels.layers else graph
    if not channels.layers or not silent(channels, lambda: [body(sample)]):
        raise ValueError("expected a model whose last layer reads what convolutions write, got none: nothing to prune")
    return body, channels


def _activation(body: nn.Module, model: nn.Module, data: Rows) -> Tensor:
    """The mean of every channel of the last feature map: `(C,)`, on the CPU."""
    total, rows = torch.zeros(()), 0
    for x, _ in batches(data, BATCH):
        total = total + body(x.to(where(model))).mean((2, 3)).sum(0).cpu()
        rows += len(x)
    return total / rows
