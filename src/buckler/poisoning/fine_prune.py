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
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from buckler.data import Rows, batches, floats, raw, split
from buckler.kinds import Repaired
from buckler.poisoning._graph import layer, traced
from buckler.poisoning._look import BATCH, accuracy, outputs, where
from buckler.poisoning._touch import classes
from buckler.target import frozen
from buckler.train import cross_entropy, fit


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
        body, layers = _last_map(repaired, floats(x[:2].to(where(repaired))))
        order = _activation(body, repaired, rest).argsort()
        sleepers = _sleepers(repaired, checked, layers, order, budget)
        _silence(layers, sleepers)

    def held_silent(moving: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            _silence(layers, sleepers)
        return cross_entropy(moving, inputs, labels)

    fit(repaired, (x, y), loss=held_silent, epochs=epochs, batch=batch, rate=rate, seed=seed)
    with torch.no_grad():
        _silence(layers, sleepers)
    return repaired


def _last_map(model: nn.Module, sample: Tensor) -> tuple[fx.GraphModule, list[nn.Module]]:
    """The graph from the input to the last feature map that a layer reads, and the layers that write its channels."""
    graph = traced(model)
    ShapeProp(graph).propagate(sample)
    nodes = list(graph.graph.nodes)
    readers = [i for i, node in enumerate(nodes) if isinstance(layer(graph, node), nn.Linear | nn.Conv2d)]
    maps = [node for node in nodes[: max(readers, default=0)] if len(_shape(node)) == 4 and node.op != "placeholder"]
    layers = _writers(graph, maps[-1]) if maps else []
    if not layers:
        raise ValueError("expected a model whose last layer reads what convolutions write, got none: nothing to prune")
    output = next(node for node in nodes if node.op == "output")
    output.args = (maps[-1],)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph, layers


def _shape(node: fx.Node) -> tuple[int, ...]:
    found = node.meta.get("tensor_meta")
    return tuple(found.shape) if isinstance(found, TensorMetadata) else ()


def _writers(graph: fx.GraphModule, last: fx.Node) -> list[nn.Module]:
    """The convolutions whose channels are those of `last`, up to additions and what acts channel by channel, and the
    batch norms in between."""
    many, ahead = _shape(last)[1], [last]
    found: list[nn.Module] = []
    seen: set[fx.Node] = set()
    while ahead:
        node = ahead.pop()
        if node in seen or len(_shape(node)) != 4 or _shape(node)[1] != many:
            continue
        seen.add(node)
        module = layer(graph, node)
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            found.append(module)
        if not isinstance(module, nn.Conv2d):
            ahead += node.all_input_nodes
    return found


def _activation(body: nn.Module, model: nn.Module, data: Rows) -> Tensor:
    """The mean of every channel of the last feature map: `(C,)`, on the CPU."""
    total, rows = torch.zeros(()), 0
    for x, _ in batches(data, BATCH):
        total = total + body(x.to(where(model))).mean((2, 3)).sum(0).cpu()
        rows += len(x)
    return total / rows


def _sleepers(model: nn.Module, data: Rows, layers: list[nn.Module], order: Tensor, budget: float) -> Tensor:
    """The first channels of `order`, as many as accuracy on `data` allows, by bisection."""
    kept = [{name: value.clone() for name, value in module.state_dict().items()} for module in layers]

    def without(many: int) -> float:
        _silence(layers, order[:many])
        right = accuracy(model, data)
        for module, state in zip(layers, kept, strict=True):
            module.load_state_dict(state)
        return right

    enough, low, high = without(0) - budget, 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if without(middle) >= enough else (low, middle)
    return order[:low]


def _silence(layers: list[nn.Module], channels: Tensor) -> None:
    for module in layers:
        for parameter in module.parameters(recurse=False):
            parameter[channels.to(parameter.device)] = 0
