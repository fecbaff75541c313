"""The loop. Everything that trains in Buckler trains here: a loss per row goes in, a trained model comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
from torch.utils.data import Dataset

from buckler.data import floats

Data = tuple[Tensor, Tensor] | Dataset[tuple[Tensor, Tensor]]
LossPerRow = Callable[[nn.Module, Tensor, Tensor], Tensor]
Filled = Callable[[Tensor, Tensor], Tensor]
"""Fills the gradients of a model from a batch `(x, y)`, and returns the mean loss."""
SMALL = 1 << 30
"""Bytes up to which tensors are moved to the device whole."""
LARGE = 1 << 16
"""Numbers of a batch from which on it pays to lay them out anew."""


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy per row, `(B,)`; `y` is labels `(B,)` or probabilities `(B, K)`."""
    return F.cross_entropy(model(x), y, reduction="none")


@runtime_checkable
class Filling(Protocol):
    """What fills gradients in its own way, from rows that are drawn independently; `fit` takes it in place of a loss.

    A batch then has `batch` rows on average, and may have none.
    """

    def filling(self, model: nn.Module, batch: int) -> AbstractContextManager[Filled]: ...


def fit(
    model: nn.Module,
    data: Data,
    *,
    loss: LossPerRow | Filling = cross_entropy,
    epochs: float = 10,
    batch: int = 128,
    rate: float | Callable[[float], float] = 0.1,
    decay: float = 5e-4,
    optimizer: Literal["sgd", "adam"] = "sgd",
    augment: Callable[[Tensor], Tensor] | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    seed: int = 0,
    tick: Callable[[float, float], None] | None = None,
) -> nn.Module:
    """Train `model` in place, where it is, by SGD with Nesterov momentum (or Adam); return it, evaluating.

    `data` is tensors `(x, y)`, `x` `(N, ...)` as float in [0, 1] or uint8, or a `Dataset` of rows, which is streamed.
    `loss` gives one loss per row; it is called with the model in training mode, and with row numbers as `y` it can look
    up whatever belongs to a row. A `Filling` in its place draws rows, and fills gradients, in its own way and
    precision. `rate` is the peak of a schedule that rises for the first fifth and falls to zero, or a function of the
    share of training done, such as `constant(1e-4)` or `cosine(0.01)`. A fraction of an epoch is allowed; none leaves
    the weights as they are. `augment` changes a batch `(B, ...)` on the device.
    `tick(done, mean_loss)` is told the share of training done after each step. The global random state is forked, so
    `seed` alone decides the draws (on one machine and thread count). Raises `ValueError` for no rows, no parameters to
    train, a batch, epochs or a rate that are none, and a loss that is not finite.
    """
    plan = rate if callable(rate) else triangle(rate)
    many = len(data[0]) if isinstance(data, tuple) else len(data)  # pyright: ignore[reportArgumentType]
    if many == 0:
        raise ValueError("expected at least one row to train on, got none")
    total = steps(many, batch, epochs)
    if epochs == 0:
        return model.eval()
    first = plan(1 / (total + 1))
    if rate == 0 or not 0 <= first < math.inf:
        raise ValueError(f"expected a rate above 0, got {first:.3g} to begin with")
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not wanted:
        raise ValueError("expected a model with parameters to train, got none that requires a gradient")
    where = wanted[0].device
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model.train()
        descent = (
            torch.optim.SGD(wanted, 1.0, momentum=0.9, weight_decay=decay, nesterov=True)
            if optimizer == "sgd"
            else torch.optim.Adam(wanted, 1.0, weight_decay=decay)
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(descent, lambda step: plan((step + 1) / (total + 1)))
        own = isinstance(loss, Filling)
        with loss.filling(model, batch) if own else nullcontext(_meanly(model, loss, where, precision)) as fill:
            for done, (x, y) in zip(range(1, total + 1), _drawn(data, batch, where, each=own), strict=False):
                descent.zero_grad(set_to_none=True)
                value = fill(floats(x) if augment is None else augment(floats(x)), y)
                descent.step()
                schedule.step()
                if done % 32 == 0 or done == total:
                    level = float(value)
                    if not math.isfinite(level):
                        rate_now = plan(done / total)
                        raise ValueError(
                            f"the loss became {level} at step {done} of {total}: lower the rate ({rate_now:.3g})"
                        )
                    if tick is not None:
                        tick(done / total, level)
    return model.eval()


def _meanly(model: nn.Module, loss: LossPerRow, where: torch.device, precision: str) -> Filled:
    """The gradients of the mean loss, as they are.

    On a processor convolutions read large batches channels last, which is up to 1.6 times as fast, as long as the loss
    can make do with what they return. Weights stay as they lie.
    """
    quick = [part for part in model.modules() if isinstance(part, nn.Conv2d)] if where.type == "cpu" else []

    def plainly(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(where.type, torch.bfloat16) if precision == "bfloat16" else nullcontext():
            value = loss(model, x, y).mean()
        value.backward()
        return value.detach()

    def fill(x: Tensor, y: Tensor) -> Tensor:
        if quick and x.numel() >= LARGE:
            state = torch.get_rng_state()
            held = [
                (part, name, buffer, buffer.clone())
                for part in model.modules()
                for name, buffer in part.named_buffers(recurse=False)
                if not is_lazy(buffer)
            ]
            hooks = [part.register_forward_pre_hook(_channels_last) for part in quick]
            try:
                return plainly(x, y)
            except RuntimeError as error:
                if type(error) is not RuntimeError:  # not what torch says of a layout
                    raise
                quick.clear()  # such as `view` of what is not contiguous; what is wrong otherwise will be said below
            finally:
                for hook in hooks:
                    hook.remove()
            torch.set_rng_state(state)
            model.zero_grad()
            for part, name, buffer, before in held:
                setattr(part, name, buffer.copy_(before))
        return plainly(x, y)

    return fill


def _channels_last(_part: nn.Module, given: tuple[object, ...]) -> tuple[object, ...] | None:
    """What a convolution is given, with images channels last: of one channel too, which any layout would pass for."""
    x, last = given[0] if given else None, torch.channels_last
    if isinstance(x, Tensor) and x.ndim == 4 and (x.stride(1) != 1 or not x.is_contiguous(memory_format=last)):
        return x.clone(memory_format=last), *given[1:]
    return None


def steps(many: int, batch: int, epochs: float) -> int:
    """How many steps `fit` takes over `many` rows; a `ValueError` unless training can end."""
    lasting(epochs)
    each = len(portions(many, batch))
    return max(1, round(epochs * each)) if epochs else 0


def portions(many: int, batch: int) -> list[int]:
    """How many of `many` rows each step of an epoch takes: `batch`, and what is left.

    A single row that is left joins the step before: of one row a batch norm has no variance. A `ValueError` for a
    batch of no rows.
    """
    if batch < 1:
        raise ValueError(f"expected at least one row to a batch, got {batch}")
    full, left = divmod(many, batch)
    if left == 1 and full:
        return [batch] * (full - 1) + [batch + 1]
    return [batch] * full + [left] * (left > 0)


def lasting(*epochs: float) -> None:
    """A `ValueError` unless training can end after every one of `epochs`."""
    for many in epochs:
        if not 0 <= many < math.inf:
            raise ValueError(f"expected epochs of 0 or more that end, got {many}")


def started(net: Callable[[], nn.Module], seed: int) -> nn.Module:
    """An untrained network, drawn by `seed` alone; a `ValueError` if `net` does not make one."""
    if isinstance(net, nn.Module) or not callable(net):
        raise ValueError(
            f"expected a function that returns an untrained nn.Module, got {type(cast(object, net)).__name__}"
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = cast(object, net())
    if not isinstance(model, nn.Module):
        raise ValueError(f"expected a function that returns an untrained nn.Module, got {type(model).__name__} from it")
    return model


def triangle(peak: float) -> Callable[[float], float]:
    """A rate that rises to `peak` over the first fifth of training and then falls to zero."""
    return lambda done: peak * (done / 0.2 if done < 0.2 else (1 - done) / 0.8)


def cosine(start: float) -> Callable[[float], float]:
    """A rate that falls from `start` to zero along half a cosine (Loshchilov and Hutter, ICLR 2017)."""
    return lambda done: start * (1 + math.cos(math.pi * done)) / 2


def constant(rate: float) -> Callable[[float], float]:
    return lambda _done: rate


def _drawn(data: Data, batch: int, device: torch.device, *, each: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end: epoch after epoch in a new order; or, with `each`, of rows that a coin draws for each."""
    if isinstance(data, tuple) and data[0].nbytes <= SMALL:
        data = data[0].to(device), data[1].to(device)
    many = len(data[0]) if isinstance(data, tuple) else len(data)  # pyright: ignore[reportArgumentType]
    home = data[0].device if isinstance(data, tuple) else None
    while True:
        if each:
            orders = ((torch.rand(many, device=home) < batch / many).nonzero().squeeze(1),)
        else:
            orders = torch.randperm(many, device=home).split(portions(many, batch))
        for rows in orders:
            x, y = _taken(data, rows)
            yield x.to(device), y.to(device)


def _taken(data: Data, rows: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(data, tuple):
        return data[0][rows], data[1][rows]
    pairs = [data[int(row)] for row in (rows if len(rows) else [0])]
    x, y = (torch.stack([torch.as_tensor(pair[side]) for pair in pairs]) for side in (0, 1))
    return x[: len(rows)], y[: len(rows)]
