"""Interval bound propagation: a certificate in linf from boxes pushed through the network.

Gowal, Dvijotham, Stanforth, Bunel, Qin, Uesato, Arandjelovic, Mann and Kohli, "On the effectiveness of interval bound
propagation for training verifiably robust models", 2018, https://arxiv.org/abs/1810.12715.

Guaranteed: no input in [0, 1] within `radius` of the row in linf gets another label from the model in evaluation mode.
Bounds are computed in float64 and widened at every layer by the worst rounding of the model's own precision, for sums
taken in any order (not for TF32, autocast, or convolutions by fast transforms); the box that is verified is larger than
the radius that is reported by the slack that `Ball.contains` allows. A certificate on a network trained without regard
to bounds is usually tiny: that says nothing about attacks.

Differs from the paper: the largest certified radius is searched by bisection, per row; the box is cut to [0, 1].
As in the paper, the last linear layer is folded into the difference of two logits. What is supported is listed below,
through `torch.fx`; anything else is an error that names it.

Tags: atlas:AML.M0003, nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from buckler.kinds import ABSTAIN, Certificate
from buckler.target import frozen
from buckler.threat import Ball

# Monotone and exact in floating point, by the name of the module, function or method.
_EXACT = (
    "ReLU ReLU6 Hardtanh MaxPool1d MaxPool2d AdaptiveMaxPool1d AdaptiveMaxPool2d Flatten Unflatten Identity Dropout "
    "Dropout1d Dropout2d relu relu_ relu6 max_pool1d max_pool2d adaptive_max_pool1d adaptive_max_pool2d flatten "
    "unflatten view reshape permute transpose squeeze unsqueeze contiguous cat concat getitem"
)
# Monotone, with rounding that is bounded by the number of terms.
_ROUNDED = (
    "AvgPool1d AvgPool2d AdaptiveAvgPool1d AdaptiveAvgPool2d LeakyReLU Sigmoid Tanh avg_pool1d avg_pool2d "
    "adaptive_avg_pool1d adaptive_avg_pool2d mean sum sigmoid tanh add add_ iadd"
)


class _Box(NamedTuple):
    """All tensors between `low` and `high`, element by element."""

    low: Tensor
    high: Tensor

    def size(self) -> Tensor:
        return torch.maximum(self.low.abs(), self.high.abs())


class _Head(NamedTuple):
    """A last linear layer that is not yet applied."""

    box: _Box
    weight: Tensor
    bias: Tensor


def ibp(model: nn.Module, x: Tensor, *, ball: Ball, halvings: int = 10, batch: int = 256) -> Certificate:
    """The largest radius up to `ball.radius` at which interval bounds prove that a row keeps its label.

    `x` `(B, ...)` in [0, 1]; `ball` linf (a `ValueError` otherwise), one radius or one per row, at most 1 counts.
    `halvings` is how often the radius is bisected, `batch` how many rows are bounded together. Returns the model's
    labels `(B,)` int64 and radii `(B,)`: 0 where no positive radius is proven, and `ABSTAIN` where rounding alone could
    change the label. Raises `ValueError` naming any layer or operation that bounds do not go through.
    """
    if ball.norm != "linf":
        raise ValueError(f"expected a ball in linf, got {ball.norm}: use evasion/randomized_smoothing for l2")
    with torch.no_grad(), frozen(model):
        twin = copy.deepcopy(model).double()
        try:
            graph = fx.symbolic_trace(twin)
        except Exception as problem:  # fx refuses what it cannot trace with many types of error
            raise ValueError(f"expected a model that torch.fx can trace, got: {problem}") from None
        most = ball.radii(x).flatten().double().clamp_max(1)
        parts = [
            _search(model, graph, some, limit, halvings)
            for some, limit in zip(x.split(batch), most.split(batch), strict=True)
        ]
    return Certificate(torch.cat([part.label for part in parts]), torch.cat([part.radius for part in parts]), "linf")


def _search(model: nn.Module, graph: fx.GraphModule, x: Tensor, most: Tensor, halvings: int) -> Certificate:
    label = model(x).argmax(1)
    rounding = torch.finfo(x.dtype).eps

    def proven(rows: Tensor, radius: Tensor) -> Tensor:
        reach = (radius * (1 + 1e-5) + 1e-6).view(-1, *[1] * (x.ndim - 1))
        clean = x[rows].double()
        box = _Box((clean - reach).clamp_min(0), (clean + reach).clamp_max(1))
        return _margins(_propagate(graph, box, rounding), label[rows], rounding) > 0

    everything = torch.arange(len(x), device=x.device)
    sure, all_of_it = proven(everything, torch.zeros_like(most)), proven(everything, most)
    low, high = torch.where(all_of_it, most, 0), most.clone()
    rows = everything[sure & ~all_of_it]
    for _ in range(halvings):
        if len(rows) == 0:
            break
        middle = (low[rows] + high[rows]) / 2
        holds = proven(rows, middle)
        low[rows], high[rows] = torch.where(holds, middle, low[rows]), torch.where(holds, high[rows], middle)
    return Certificate(torch.where(sure, label, ABSTAIN), torch.where(sure, low, 0).to(x.dtype), "linf")


def _margins(end: _Box | _Head, label: Tensor, rounding: float) -> Tensor:
    """A lower bound of the labelled logit less the best other one, over the box: `(B,)`."""
    if isinstance(end, _Box):
        own = end.low.gather(1, label[:, None]).squeeze(1)
        return own - end.high.scatter(1, label[:, None], -torch.inf).amax(1)
    middle, half = (end.box.low + end.box.high) / 2, (end.box.high - end.box.low) / 2
    logits = F.linear(middle, end.weight, end.bias)
    error = _gamma(end.weight.shape[1], rounding) * F.linear(end.box.size(), end.weight.abs(), end.bias.abs())
    spread = torch.empty_like(logits)
    for own in label.unique().tolist():
        rows = label == own
        spread[rows] = half[rows] @ (end.weight[own] - end.weight).abs().T
    margins = logits.gather(1, label[:, None]) - logits - spread - error - error.gather(1, label[:, None])
    return margins.scatter(1, label[:, None], torch.inf).amin(1)


def _propagate(graph: fx.GraphModule, box: _Box, rounding: float) -> _Box | _Head:
    """Bounds of the output, or of the input of a last linear layer together with that layer."""
    values: dict[fx.Node, object] = {}
    modules = dict(graph.named_modules())
    last = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    until = {source: node for node in graph.graph.nodes for source in node.all_input_nodes}
    started = False
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            if started:
                raise ValueError(f"expected a model of one input, got another one, {node.name}")
            values[node], started = _Box(box.low.clone(), box.high.clone()), True
        elif node.op == "get_attr":
            values[node] = _attribute(graph, str(node.target))
        elif node.op != "output":
            module = modules.get(str(node.target)) if node.op == "call_module" else None
            head = _linear(node, module, values)
            if head is None:
                values[node] = _step(node, module, values, rounding)
            elif node is last:
                return head
            else:
                values[node] = _applied(head, rounding)
            for source in node.all_input_nodes:
                if until[source] is node:
                    del values[source]
    end = values[last] if isinstance(last, fx.Node) else None
    if not isinstance(end, _Box) or end.low.ndim != 2:
        raise ValueError("expected a model that returns logits (B, K), got something else")
    return end


def _called(node: fx.Node) -> str:
    """The name of the function or method that a node calls."""
    return node.target if isinstance(node.target, str) else node.target.__name__  # pyright: ignore


def _step(node: fx.Node, module: nn.Module | None, values: dict[fx.Node, object], rounding: float) -> object:
    """What one node makes of boxes: monotone operations end by end, the others by their own rule."""
    name = type(module).__name__ if module is not None else _called(node)
    taken = {source: values[source] for source in node.all_input_nodes}
    boxes = [value for value in taken.values() if isinstance(value, _Box)]
    if not boxes or name in ("size", "dim") or (name == "getattr" and node.args[1] in ("shape", "ndim", "dtype")):
        return _run(node, module, values, high=False)
    first = boxes[0]
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return _convolved(module, first, rounding)
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and module.running_mean is not None:
        return _normalised(module, first, rounding)
    if name in ("sub", "mul", "truediv", "div", "neg"):
        return _arithmetic(node, name, values, rounding)
    slope = module.negative_slope if isinstance(module, nn.LeakyReLU) else 0
    stock = module is None or type(module).__module__.startswith("torch.nn.")
    if stock and name in _EXACT.split():
        return _Box(_run(node, module, values, high=False), _run(node, module, values, high=True))
    if stock and name in _ROUNDED.split() and slope >= 0:
        if name in ("add", "add_", "iadd") and (len(node.args) != 2 or node.kwargs):
            raise ValueError(f"expected an addition without options, got {node.format_node()}")
        pooled = math.prod(first.low.shape[2:]) if "pool" in name.lower() else 1
        terms = first.low[0].numel() if name in ("mean", "sum") else pooled
        sizes = {source: value.size() if isinstance(value, _Box) else value for source, value in taken.items()}
        error = _gamma(terms, rounding) * _run(node, module, sizes, high=True).abs()
        low, high = _run(node, module, values, high=False), _run(node, module, values, high=True)
        return _Box(low.sub_(error), high.add_(error))
    raise ValueError(
        f"expected layers that interval bounds go through, got {name} at {node.name}: use linear, convolution, batch "
        "norm with running statistics, pooling, ReLU and its like, flatten, mean, addition"
    )


def _run(node: fx.Node, module: nn.Module | None, values: dict[fx.Node, object], *, high: bool) -> Tensor:
    """Do what the node does to one end of every box."""

    def end(source: fx.Node) -> Any:
        value = values[source]
        return (value.high if high else value.low) if isinstance(value, _Box) else value

    args, options = fx.map_arg(node.args, end), fx.map_arg(node.kwargs, end)
    if module is not None:
        return module(*args, **options)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **options)
    assert callable(node.target)
    return node.target(*args, **options)


def _linear(node: fx.Node, module: nn.Module | None, values: dict[fx.Node, object]) -> _Head | None:
    """The linear layer that a node applies to a box, if that is what it is."""
    if isinstance(module, nn.Linear):
        source, weight, bias = node.args[0], module.weight, module.bias
    elif node.target is F.linear and len(node.args) >= 2:
        source = node.args[0]
        given = [*node.args[1:], node.kwargs.get("bias")][:2]
        weight, bias = (values[value] if isinstance(value, fx.Node) else value for value in given)
    else:
        return None
    box = values[source] if isinstance(source, fx.Node) else None
    if not isinstance(box, _Box) or not isinstance(weight, Tensor):
        return None
    return _Head(box, weight, bias if isinstance(bias, Tensor) else weight.new_zeros(len(weight)))


def _applied(head: _Head, rounding: float) -> _Box:
    middle, half = (head.box.low + head.box.high) / 2, (head.box.high - head.box.low) / 2
    gamma, size = _gamma(head.weight.shape[1], rounding), head.weight.abs()
    centre = F.linear(middle, head.weight, head.bias)
    reach = F.linear(half + gamma * head.box.size(), size, gamma * head.bias.abs())
    return _Box(centre - reach, centre + reach)


def _convolved(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, box: _Box, rounding: float) -> _Box:
    middle, half = (box.low + box.high) / 2, (box.high - box.low) / 2
    gamma = _gamma(layer.weight[0].numel(), rounding)
    bias = None if layer.bias is None else gamma * layer.bias.abs()
    centre = layer._conv_forward(middle, layer.weight, layer.bias)
    reach = layer._conv_forward(half + gamma * box.size(), layer.weight.abs(), bias)
    return _Box(centre - reach, centre + reach)


def _normalised(layer: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, box: _Box, rounding: float) -> _Box:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    shape = (1, -1, *[1] * (box.low.ndim - 2))
    scale = (layer.running_var + layer.eps).rsqrt()
    scale = (scale * layer.weight if layer.affine else scale).view(shape)
    mean = layer.running_mean.view(shape)
    bias = layer.bias.view(shape) if layer.affine else torch.zeros_like(mean)
    one, two = (box.low - mean) * scale + bias, (box.high - mean) * scale + bias
    error = _gamma(1, rounding) * ((box.size() + mean.abs()) * scale.abs() + bias.abs())
    return _Box(torch.minimum(one, two) - error, torch.maximum(one, two) + error)


def _arithmetic(node: fx.Node, name: str, values: dict[fx.Node, object], rounding: float) -> _Box:
    """Differences of boxes, and products and quotients of a box and a constant."""
    if node.kwargs:
        raise ValueError(f"expected {name} without options, got {sorted(node.kwargs)} at {node.name}")
    args = [values[value] if isinstance(value, fx.Node) else value for value in node.args]
    if name == "neg" and isinstance(args[0], _Box):
        return _Box(-args[0].high, -args[0].low)
    first, second = (value if isinstance(value, _Box) else _point(value) for value in args)
    gamma = _gamma(1, rounding)
    if name == "sub":
        error = gamma * (first.size() + second.size())
        return _Box(first.low - second.high - error, first.high - second.low + error)
    if isinstance(args[0], _Box) == isinstance(args[1], _Box) or (name != "mul" and isinstance(args[1], _Box)):
        raise ValueError(f"expected {name} of an activation and a constant, got two activations at {node.name}")
    if name == "mul":
        one, two = first.low * second.low, first.high * second.high
    else:
        one, two = first.low / second.low, first.high / second.high
    error = gamma * torch.maximum(one.abs(), two.abs())
    return _Box(torch.minimum(one, two) - error, torch.maximum(one, two) + error)


def _point(value: object) -> _Box:
    exact = torch.as_tensor(value, dtype=torch.float64)
    return _Box(exact, exact)


def _gamma(terms: int, rounding: float) -> float:
    """More than twice the relative error of a sum of `terms` products in any order (Higham, 2002, section 3.1)."""
    bound = (terms + 8) * rounding
    return bound if bound < 0.5 else math.inf


def _attribute(graph: fx.GraphModule, path: str) -> object:
    place: object = graph
    for name in path.split("."):
        place = getattr(place, name)
    return place.double() if isinstance(place, Tensor) and place.is_floating_point() else place
