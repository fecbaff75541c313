"""What an adversary holds: a model in white-box hygiene, or an oracle that reveals only what it may.

Nothing here wraps a user's model to observe it. Cost comes from `metered`, a context manager; hygiene from `frozen`,
another one; and `inference_form` gives a faster copy that answers the same.
"""

from __future__ import annotations

import copy
import operator
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.utils.hooks import RemovableHandle

from buckler.endpoint import probable

Reveals = Literal["labels", "scores", "logits", "features"]
Precision = Literal["float32", "bfloat16", "auto"]


class QueryBudgetExceeded(Exception):
    """An attack asked an oracle for more answers than it may have."""


class Oracle:
    """A model behind a door: call it with inputs `(B, ...)` in [0, 1], get what it reveals, and pay for every row.

    `reveals`: `labels` gives `(B,)` int64; `scores` gives `(B, K)` probabilities; `logits` and `features` give what
    the model returns. Answers are detached. `asked` counts rows that were answered, `refused` those for which there was
    no budget: a call that would pass `budget` raises `QueryBudgetExceeded` before anything is asked. `answer` is an
    `nn.Module` that returns logits (or features), or any callable; a callable's answers are taken as they come, as
    scores or labels. A `ValueError` for labels below 0, and for scores that are no probabilities.
    """

    def __init__(
        self,
        answer: Callable[[Tensor], Tensor],
        reveals: Reveals = "scores",
        budget: int | None = None,
        batch: int = 1024,
    ) -> None:
        self._answer, self.budget, self.batch = answer, budget, batch
        self.reveals: Reveals = reveals
        self.asked = self.refused = 0

    def __call__(self, x: Tensor) -> Tensor:
        answers = list[Tensor]()
        try:
            if self.budget is not None and self.asked + len(x) > self.budget:
                raise QueryBudgetExceeded(f"expected at most {self.budget} queries, got {self.asked + len(x)}")
            with torch.no_grad():
                for part in x.detach().split(self.batch):
                    answers.append(self._shown(self._answer(part)))
                    self.asked += len(part)
        except QueryBudgetExceeded:  # its own, or that of an oracle behind it
            self.refused += len(x)
            raise
        return answers[0] if len(answers) == 1 else torch.cat(answers)

    def _shown(self, out: Tensor) -> Tensor:
        if self.reveals == "labels":
            out = out.argmax(1) if out.ndim == 2 else out.long()
            if bool((out < 0).any()):
                raise ValueError(f"expected labels from 0, got {int(out.min())}")
            return out
        if out.ndim == 1:
            raise ValueError(f"this oracle reveals labels only, and {self.reveals} were asked for")
        if self.reveals == "scores":
            behind = self._answer
            if isinstance(behind, nn.Module) or (isinstance(behind, Oracle) and behind.reveals == "logits"):
                out = out.softmax(1)
            if not probable(out):
                raise ValueError(f"expected scores that are probabilities, got {out.min():.4g} to {out.max():.4g}")
        return out

    def labels(self, x: Tensor) -> Tensor:
        """The labels `(B,)` that the answers say, whatever this oracle reveals."""
        out = self(x)
        return out if out.ndim == 1 else out.argmax(1)

    def narrowed(self, reveals: Reveals, budget: int | None = None) -> Oracle:
        """A door onto this one that shows less (`labels` of scores) within a budget of its own; both count."""
        return Oracle(self, reveals, budget, self.batch)


class Asked(nn.Module):
    """An oracle of scores as a model: its logits are their logarithms."""

    def __init__(self, oracle: Oracle) -> None:
        super().__init__()
        self.oracle = oracle.narrowed("scores")
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.oracle(x).clamp_min(torch.finfo(x.dtype).tiny).log()


LabelOracle = Annotated[Oracle, "labels"]
ScoreOracle = Annotated[Oracle, "scores"]
FeatureOracle = Annotated[Oracle, "features"]


@dataclass
class Meter:
    """What a run has cost so far, in rows: one forward of a batch of 32 counts 32."""

    forwards: int = 0
    backwards: int = 0
    started: float = field(default_factory=time.perf_counter)
    method_seconds: float = 0.0
    """Of all seconds those that a method itself took, where a run trains and measures as well."""
    tick: Callable[[Meter], None] | None = None
    _handles: dict[nn.Module, RemovableHandle] = field(default_factory=lambda: {})

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def watch(self, model: nn.Module) -> None:
        """Count what goes through `model` from now on; watching it twice counts once.

        Copies of a watched model are counted too: they share its hook, which is taken off those that are watched.
        """
        if model in self._handles:
            return
        for part in model.modules():
            if part not in self._handles:
                for key in [key for key, hook in part._forward_hooks.items() if hook == self._forward]:
                    del part._forward_hooks[key]
        self._handles[model] = model.register_forward_hook(self._forward)

    def stop(self) -> None:
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()

    def __deepcopy__(self, memo: dict[int, object]) -> Meter:
        """Itself: the copy of a model that is watched counts here."""
        return self

    def _forward(self, _module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        self.forwards += len(inputs[0])
        if out.requires_grad:
            out.register_hook(self._backward)
        if self.tick is not None:
            self.tick(self)

    def _backward(self, grad: Tensor) -> None:
        self.backwards += len(grad)


@contextmanager
def metered(*models: nn.Module, tick: Callable[[Meter], None] | None = None) -> Generator[Meter, None, None]:
    """Count the rows that go forwards and backwards through `models` inside the block; the models stay as they are.

    Counting uses a tensor hook on the output, so it is exact beside in-place operations and compiled models; calls
    inside `torch.func.vmap` are counted once, not once per mapped row.
    """
    meter = Meter(tick=tick)
    for model in models:
        meter.watch(model)
    try:
        yield meter
    finally:
        meter.stop()


@contextmanager
def frozen(model: nn.Module) -> Generator[nn.Module, None, None]:
    """Evaluation mode with parameters that ask for no gradient, and everything as it was afterwards.

    Gradients then flow to inputs only, which costs about a third less than when parameter gradients are built too.
    """
    modes = [(module, module.training) for module in model.modules()]
    wants = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    for parameter, _ in wants:
        parameter.requires_grad_(False)
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in wants:
            parameter.requires_grad_(requires_grad)


def inference_form(model: nn.Module, sample: Tensor, precision: Precision = "float32") -> nn.Module:
    """A copy of `model` that answers the same and faster: batch-norm folded into convolutions, channels last.

    With `bfloat16` (where the processor computes in it; `auto` is the same) everything between the first layer and the
    last linear layer is in bfloat16: small perturbations enter, and differences between logits leave, in float32.
    `sample` `(B, ...)` is what the copy is checked on: if the model cannot be traced, or if any output differs by more
    than 1e-4 of the outputs' scale (4 % in bfloat16), the next slower form is returned, in the end the model itself. On
    a CPU the copy pads batches to one of few numbers of rows. Success is always judged on the original, so this can
    cost an attack a success, never grant one. Forward hooks of `model`, such as a meter's, are on the copy too.
    """
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return model
    with torch.no_grad(), frozen(model):
        expected = model(sample)
        if precision != "float32" and sample.dtype == torch.float32 and _has_bfloat16(sample):
            form = _traced(model, sample, narrow=True)
            if form is not None and _answers_alike(form, sample, expected, 0.04):
                return _with_hooks(form, model)
        form = _traced(model, sample) or _laid_out(_copied(model).eval(), sample)
        return _with_hooks(form, model) if _answers_alike(form, sample, expected, 1e-4) else model


def _traced(model: nn.Module, sample: Tensor, *, narrow: bool = False) -> nn.Module | None:
    try:
        graph = _fold(_copied(model)).eval()
        form = _laid_out(_padded(_narrowed(graph) if narrow else graph, sample), sample)
        return _joined(form) if sample.device.type == "cpu" and isinstance(form, fx.GraphModule) else form
    except Exception:  # fx refuses what it cannot trace with many types of error; the model itself still works
        return None


def _has_bfloat16(sample: Tensor) -> bool:
    """Whether the processor that holds `sample` computes in bfloat16 itself, not through conversions."""
    if sample.is_cuda:
        return torch.cuda.get_device_capability(sample.device) >= (8, 0)
    if sample.device.type != "cpu":
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _laid_out(form: nn.Module, sample: Tensor) -> nn.Module:
    form.requires_grad_(False)
    if sample.ndim == 4:
        form = form.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return form


def _answers_alike(form: nn.Module, sample: Tensor, expected: Tensor, tolerance: float) -> bool:
    scale = expected.abs().max().clamp_min(1e-6)
    for rows in (len(sample), max(1, len(sample) - 3)):  # the second number of rows may be one that is padded
        try:
            got = form(sample[:rows])
        except RuntimeError:  # a mixture of types that an operation does not take
            return False
        if got.shape != expected[:rows].shape or got.dtype != expected.dtype:
            return False
        if not bool(((got - expected[:rows]).abs() <= tolerance * scale).all()):
            return False
    return True


def _copied(model: nn.Module) -> nn.Module:
    """A deep copy that shares hooks with the original: a hook may hold its owner, which need not be copied."""
    return copy.deepcopy(model, {id(hook): hook for part in model.modules() for hook in part._forward_hooks.values()})


def _with_hooks(form: nn.Module, model: nn.Module) -> nn.Module:
    form._forward_hooks.clear()
    for hook in model._forward_hooks.values():
        form.register_forward_hook(hook)
    return form


def _padded(graph: fx.GraphModule, sample: Tensor) -> fx.GraphModule:
    """On a CPU, let the graph see few different numbers of rows: every new one costs it some ten milliseconds.

    An attack whose batch shrinks row by row would otherwise spend more on preparing kernels than on running them.
    """
    if any(node.target is _with_spare_rows for node in graph.graph.nodes):
        return graph
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    output = next(node for node in graph.graph.nodes if node.op == "output")
    if sample.device.type != "cpu" or len(inputs) != 1 or not isinstance(output.args[0], fx.Node):
        return graph
    with graph.graph.inserting_after(inputs[0]):
        padded = graph.graph.call_function(_with_spare_rows, (inputs[0],))
    inputs[0].replace_all_uses_with(padded, delete_user_cb=partial(operator.is_not, padded))
    with graph.graph.inserting_before(output):
        cut = graph.graph.call_function(_as_many_rows, (output.args[0], inputs[0]))
    output.args = (cut,)
    graph.recompile()
    return graph


def _with_spare_rows(x: Tensor) -> Tensor:
    """`x` with repetitions of its first row, up to one of four numbers of rows per doubling (two below 16)."""
    rows = len(x)
    step = max(1, 1 << max(0, (rows - 1).bit_length() - (3 if rows > 16 else 2)))
    spare = -rows % step
    return torch.cat([x, x[:1].expand(spare, *x.shape[1:])]) if spare and rows else x


def _as_many_rows(out: Tensor, x: Tensor) -> Tensor:
    return out[: len(x)] if len(out) != len(x) else out


def _narrowed(graph: fx.GraphModule) -> fx.GraphModule:
    """The layers between the first and the last one in bfloat16, with casts at both ends."""
    modules = dict(graph.named_modules())
    layers = [
        node
        for node in graph.graph.nodes
        if node.op == "call_module"
        and isinstance(modules[node.target], nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear | _Joined)
    ]
    if len(layers) < 3 or len({node.target for node in layers}) < len(layers):
        return graph
    for node in layers[1:-1]:
        modules[node.target].to(torch.bfloat16)
    first, last = layers[0], layers[-1]
    after = next(iter(first.users))
    first = after if len(first.users) == 1 and _is_relu(after, modules) else first
    with graph.graph.inserting_after(first):
        narrow = graph.graph.call_method("to", (first, torch.bfloat16))
    first.replace_all_uses_with(narrow, delete_user_cb=partial(operator.is_not, narrow))
    with graph.graph.inserting_before(last):
        widen = graph.graph.call_method("to", (last.args[0], torch.float32))
    last.replace_input_with(last.args[0], widen)
    graph.recompile()
    return graph


class _Joined(nn.Module):
    """A convolution, an addition where there is one, and a ReLU in one pass over memory where no gradient is asked."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        layer = self.convolution
        if torch.is_grad_enabled() or x.dtype != layer.weight.dtype:
            out = layer(x)
            return torch.relu(out if other is None else out + other)
        how = (layer.padding, layer.stride, layer.dilation, layer.groups)
        if other is None:
            return _POINTWISE(x, layer.weight, layer.bias, *how, "relu", [], "")
        return _POINTWISE.binary(x, other, layer.weight, layer.bias, *how, "add", None, "relu", [], "")


_POINTWISE = torch.ops.mkldnn._convolution_pointwise
"""What torch's own compiler calls; if it is not there or changes, the form is found out by its answers."""


def _joined(graph: fx.GraphModule) -> fx.GraphModule:
    """Every convolution whose answer only meets a ReLU, or an addition and then a ReLU, becomes a `_Joined`."""
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        layer = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(layer, nn.Conv2d) or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            continue
        after, other = next(iter(node.users), None), None
        if after is not None and after.target in (operator.add, torch.add) and len(after.all_input_nodes) == 2:
            other = next(source for source in after.all_input_nodes if source is not node)
            after = next(iter(after.users), None) if len(after.users) == 1 and len(after.args) == 2 else None
        once = sum(1 for call in graph.graph.nodes if call.target == node.target) == 1
        if len(node.users) != 1 or not once or after is None or not _is_relu(after, modules):
            continue
        parent, _, name = node.target.rpartition(".")
        setattr(graph.get_submodule(parent), name, _Joined(layer))
        with graph.graph.inserting_before(after):
            joined = graph.graph.call_module(node.target, (node.args[0],) if other is None else (node.args[0], other))
        after.replace_all_uses_with(joined)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _is_relu(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules.get(str(node.target)), nn.ReLU)
    return node.target in ("relu", torch.relu, nn.functional.relu)


def _fold(model: nn.Module) -> fx.GraphModule:
    graph = model if isinstance(model, fx.GraphModule) else fx.symbolic_trace(model)
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        norm = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) or norm.running_var is None:
            continue
        source = node.args[0]
        before = modules.get(source.target) if source.op == "call_module" and len(source.users) == 1 else None
        calls = sum(1 for other in graph.graph.nodes if other.op == "call_module" and other.target == source.target)
        if calls != 1 or not isinstance(before, nn.Conv2d | nn.Linear):
            continue
        folded = fuse_conv_bn_eval(before, norm) if isinstance(before, nn.Conv2d) else fuse_linear_bn_eval(before, norm)
        parent, _, name = source.target.rpartition(".")
        setattr(graph.get_submodule(parent), name, folded)
        modules[source.target] = folded
        node.replace_all_uses_with(source)
        graph.graph.erase_node(node)
    graph.recompile()
    return graph
