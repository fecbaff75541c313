"""The graph of a network: what is computed from what, instead of the order in which modules were written down; and
channels of its feature maps that can be switched off."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata


class Channels(NamedTuple):
    """So `many` channels, and the `layers` that write them together: switched off in one, another would wake them."""

    layers: list[nn.Module]
    many: int


def traced(model: nn.Module) -> fx.GraphModule:
    """The graph of `model`, whose modules it shares; a `ValueError` if it cannot be traced."""
    try:
        return fx.symbolic_trace(model)
    except Exception as error:  # fx refuses what it cannot trace with many types of error
        raise ValueError(
            f"expected a model whose graph torch.fx can trace, got {type(error).__name__}: {error}: "
            "use a repair that needs no graph, such as fine-tuning"
        ) from error


def layer(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that `node` calls, if it calls one."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def convolved(graph: fx.GraphModule) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Every batch norm whose input is a convolution's output, with that convolution."""
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    for node in graph.graph.nodes:
        norm = layer(graph, node)
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        source = node.all_input_nodes[0]
        while isinstance(layer(graph, source), nn.Identity):
            source = source.all_input_nodes[0]
        convolution = layer(graph, source)
        if isinstance(convolution, nn.Conv2d):
            pairs.append((convolution, norm))
    return pairs


def maps(graph: fx.GraphModule, sample: Tensor) -> list[fx.Node]:
    """What is computed from `sample` `(B, C, H, W)` and is feature maps itself, in order; each knows its `shape`."""
    ShapeProp(graph).propagate(sample)
    return [node for node in graph.graph.nodes if len(shape(node)) == 4 and node.op not in ("placeholder", "output")]


def shape(node: fx.Node) -> tuple[int, ...]:
    found = node.meta.get("tensor_meta")
    return tuple(found.shape) if isinstance(found, TensorMetadata) else ()


def returning(graph: fx.GraphModule, given: fx.Node | tuple[fx.Node, ...]) -> fx.GraphModule:
    """`graph`, which now returns what is computed at `given`, and computes nothing else."""
    output = next(node for node in graph.graph.nodes if node.op == "output")
    output.args = (given,)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def writers(graph: fx.GraphModule, at: fx.Node) -> Channels:
    """The convolutions that write the channels of the map `at`, up to additions and what acts channel by channel, and
    the norms in between: those that the graph shows. Whether silencing them is enough `silent` finds out."""
    many, ahead = shape(at)[1], [at]
    found: list[nn.Module] = []
    seen: set[fx.Node] = set()
    while ahead:
        node = ahead.pop()
        if node in seen or len(shape(node)) != 4 or shape(node)[1] != many:
            continue
        seen.add(node)
        module = layer(graph, node)
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.GroupNorm | nn.InstanceNorm2d):
            found.append(module)
        if not isinstance(module, nn.Conv2d):
            ahead += node.all_input_nodes
    return Channels(found, many)


def divided(groups: Sequence[Channels], which: Tensor) -> list[tuple[Channels, Tensor]]:
    """Each group, and whether each of its channels `(C,)` is one of `which` `(M,)`, numbers that go through the
    channels of all groups in turn."""
    among = torch.zeros(sum(group.many for group in groups), dtype=torch.bool)
    among[which.cpu()] = True
    return list(zip(groups, among.split([group.many for group in groups]), strict=True))


def states(groups: Sequence[Channels]) -> list[tuple[nn.Module, dict[str, Tensor]]]:
    """What every layer of `groups` holds, copied."""
    layers = (module for group in groups for module in group.layers)
    return [(module, {name: value.clone() for name, value in module.state_dict().items()}) for module in layers]


def silence(groups: Sequence[Channels], which: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Set what writes the channels `which` to zero; return each parameter with its rows that are zero now, `(C,)`."""
    found = list[tuple[Tensor, Tensor]]()
    for group, mine in divided(groups, which):
        for parameter in (each for module in group.layers for each in module.parameters(recurse=False)):
            rows = mine.to(parameter.device)
            with torch.no_grad():
                parameter[rows] = 0
            found.append((parameter, rows))
    return found


def silent(group: Channels, run: Callable[[], Sequence[Tensor]]) -> bool:
    """Whether silencing every second channel of `group` leaves zeros there in each map `(B, C, H, W)` that `run`
    returns: not so where something else writes them too, or shuffles them. Nothing stays silenced."""
    with _restored([group]):
        silence([group], torch.arange(0, group.many, 2))
        return not any(bool(out[:, ::2].any()) for out in run())


@contextmanager
def _restored(groups: Sequence[Channels]) -> Generator[None, None, None]:
    kept = states(groups)
    try:
        yield
    finally:
        for module, state in kept:
            module.load_state_dict(state)


@contextmanager
def silenced(groups: Sequence[Channels], which: Tensor) -> Generator[None, None, None]:
    """Silence the channels `which`, for good; training inside the block does not wake them."""
    handles = [
        parameter.register_hook(partial(_still, rows.nonzero().squeeze(1)))
        for parameter, rows in silence(groups, which)
        if parameter.requires_grad
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _still(rows: Tensor, slope: Tensor) -> Tensor:
    return slope.index_fill(0, rows, 0)


def sleepers(groups: Sequence[Channels], order: Tensor, good: Callable[[], float], least: float) -> Tensor:
    """The first channels of `order`, as many as can be silenced and leave `good()` at `least`, by bisection: a number
    that does, or none, while the next does not, or is all. Nothing stays silenced."""

    def without(many: int) -> float:
        with _restored(groups):
            silence(groups, order[:many])
            return good()

    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if without(middle) >= least else (low, middle)
    return order[:low]
