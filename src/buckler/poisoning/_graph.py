"""The graph of a network: what is computed from what, instead of the order in which modules were written down."""

from __future__ import annotations

from torch import fx, nn


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
