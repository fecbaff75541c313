"""Combinators: methods made of methods that change inputs, each a `functools.partial` that can be inspected.

`worst_of(methods)` is the worst case per row, `restarted(method, n)` tries other seeds, `targeted(method)` tries wrong
labels as goals one by one, `quickened(method)` runs on a faster form of the model. Only rows that are still right are
handed on, so the cheapest method goes first. What they return is a method again:
`worst_of([partial(a, steps=20), restarted(b, 5), quickened(c)])`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from buckler.kinds import Perturbed
from buckler.method import Method, describe, held
from buckler.target import Oracle, Precision, frozen, inference_form
from buckler.threat import Ball

_NEAR = 0.01
"""A margin below this share of the logits' range, or a distance this share beyond the radius, is a near miss: about
three times what bfloat16 was seen to change."""
_DOUBTFUL = 0.05
"""Rows that claim nothing are checked too below this margin, which is more than `inference_form` tolerates."""


def worst_of(methods: Sequence[Method]) -> Method:
    """The method that runs `methods` in turn, each on the rows that those before it did not fool."""
    if not methods:
        raise ValueError("expected at least one method, got none")
    return partial(worst_case, methods=tuple(methods))


def restarted(method: Method, n: int) -> Method:
    """The method run with `n` seeds, each on the rows that those before it did not fool."""
    if "seed" not in describe(method).knobs:
        raise ValueError(f"expected a method with a seed, got {describe(method).path}: it finds the same every time")
    return partial(best_of_seeds, method=method, times=n)


def targeted(method: Method, classes: int = 9) -> Method:
    """The method run towards each of the `classes` likeliest wrong labels; any wrong label is a success."""
    if "goal" not in describe(method).knobs:
        raise ValueError(f"expected a method that takes a goal, got {describe(method).path}")
    return partial(best_of_goals, method=method, classes=classes)


def quickened(method: Method, precision: Precision = "auto") -> Method:
    """The method run on `inference_form(model, ..., precision)`; claims are judged on the model, and rows whose claim
    fails or that come near are attacked again in float32."""
    return partial(on_fast_form, method=method, precision=precision)


def worst_case(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    methods: tuple[Method, ...],
    goal: Tensor | int | None = None,
    seed: int = 0,
) -> Perturbed:
    """Run `methods` in turn on the rows that are still right.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`. Each method is given what its first annotation asks for: the model, or an
    oracle made from it; `seed` and `goal` go to the methods that take them. Returns `(B, ...)`: an adversarial example
    in the ball where one was found, else the last legal point that a method returned. Raises `ValueError` if a `goal`
    is given and a method takes none.
    """
    found, todo = _begin(model, x, y, goal)
    for method in methods:
        found, todo = _next(method, model, x, y, ball, goal, seed, found, todo)
    return found


def best_of_seeds(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    method: Method,
    times: int = 5,
    goal: Tensor | int | None = None,
    seed: int = 0,
) -> Perturbed:
    """Run `method` with seeds `seed * times`, `seed * times + 1`, ... on the rows that are still right.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`. Returns `(B, ...)` as `worst_case` does.
    """
    found, todo = _begin(model, x, y, goal)
    for index in range(times):
        found, todo = _next(method, model, x, y, ball, goal, seed * times + index, found, todo)
    return found


def best_of_goals(
    model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball, method: Method, classes: int = 9, seed: int = 0
) -> Perturbed:
    """Run `method` towards the `classes` likeliest wrong labels, one after the other, on the rows that are still right.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`. Returns `(B, ...)` as `worst_case` does.
    """
    found, todo = _begin(model, x, y, None)
    with torch.no_grad(), frozen(model):
        logits = model(x)
    order = logits.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)
    for rank in range(min(classes, logits.shape[1] - 1)):
        towards = partial(method, goal=order[todo, rank])
        found, todo = _next(towards, model, x, y, ball, None, seed, found, todo)
    return found


def on_fast_form(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    method: Method,
    precision: Precision = "auto",
    goal: Tensor | int | None = None,
    seed: int = 0,
) -> Perturbed:
    """Run `method` on a fast form of the model, made for these rows; see `on_forms`."""
    if len(x) == 0:
        return x.clone()
    fast = inference_form(model, x[:16], precision)
    return on_forms(model, x, y, ball=ball, method=method, fast=fast, goal=goal, seed=seed)


def on_forms(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    method: Method,
    fast: nn.Module,
    exact: nn.Module | None = None,
    goal: Tensor | int | None = None,
    seed: int = 0,
) -> Perturbed:
    """Run `method` on the fast form, then on the exact one for rows that the fast form may have cost a success.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`. Those are rows whose claim fails on the model itself, and near misses. A
    method that holds an oracle is answered by the exact form wherever the two likeliest labels are close. The exact
    form is made when needed if it is not given. Returns `(B, ...)`: what the method found, to be judged on the model.
    """
    described = describe(method)
    if "seed" in described.knobs and not described.params.get("seed"):
        method = partial(method, seed=seed)
    aimed = method if goal is None else partial(method, goal=goal)
    if all(part.dtype != torch.bfloat16 for part in fast.parameters()):
        return aimed(held(described.holds, fast), x, y, ball=ball)
    if described.holds != "model":
        exact = inference_form(model, x[:16]) if exact is None else exact
        moved = aimed(held(described.holds, _Confirmed(fast, exact)), x, y, ball=ball)
    else:
        moved = aimed(fast, x, y, ball=ball)
    with torch.no_grad(), frozen(model):
        logits = fast(moved)
        claimed = _won(logits, y, goal)
        open_ = ~(_short_of(logits, y, goal) > _DOUBTFUL * (logits.amax(1) - logits.amin(1)))
        doubtful = (claimed | open_).nonzero().squeeze(1)
        if len(doubtful):
            logits = logits.index_copy(0, doubtful, model(moved[doubtful]))
    won, inside = _won(logits, y, goal), ball.contains(x, moved)
    low = claimed | (_short_of(logits, y, goal) < _NEAR * (logits.amax(1) - logits.amin(1)))
    near = torch.where(inside, low, ball.size(moved - x) < (1 + _NEAR) * ball.radii(x).flatten())
    again = (near & ~(inside & won)).nonzero().squeeze(1)
    if len(again) == 0:
        return moved
    exact = inference_form(model, x[:16]) if exact is None else exact
    wanted: Tensor | int | None = goal[again] if isinstance(goal, Tensor) else goal
    aimed = method if wanted is None else partial(method, goal=wanted)
    second = aimed(held(described.holds, exact), x[again], y[again], ball=ball.rows(again))
    return moved.index_copy(0, again, second)


class _Confirmed(nn.Module):
    """The fast form's logits, and the exact form's wherever the two highest are close. It has no gradient."""

    def __init__(self, fast: nn.Module, exact: nn.Module) -> None:
        super().__init__()
        self.fast, self.exact = fast, exact

    def forward(self, x: Tensor) -> Tensor:
        logits = self.fast(x)
        top = logits.topk(2, dim=1).values
        close = (top[:, 0] - top[:, 1] < _NEAR * (logits.amax(1) - logits.amin(1))).nonzero().squeeze(1)
        return logits.index_copy(0, close, self.exact(x[close])) if len(close) else logits


def _won(logits: Tensor, y: Tensor, goal: Tensor | int | None) -> Tensor:
    return logits.argmax(1) != y if goal is None else logits.argmax(1) == goal


def _short_of(logits: Tensor, y: Tensor, goal: Tensor | int | None) -> Tensor:
    """By how much the adversary's best logit is below the best of the others: `(B,)`, negative past the boundary."""
    label = y if goal is None else torch.full_like(y, goal) if isinstance(goal, int) else goal
    own = logits.gather(1, label[:, None]).squeeze(1)
    rest = logits.scatter(1, label[:, None], -torch.inf).amax(1)
    return own - rest if goal is None else rest - own


def _begin(model: nn.Module, x: Tensor, y: Tensor, goal: Tensor | int | None) -> tuple[Tensor, Tensor]:
    """A copy of the rows, and the indices of those that are not yet what the adversary wants."""
    done = _fooled(model, x, y, goal)
    return x.clone(), (~done).nonzero().squeeze(1)


def _next(
    method: Method,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    goal: Tensor | int | None,
    seed: int,
    found: Tensor,
    todo: Tensor,
) -> tuple[Tensor, Tensor]:
    """Run one method on the rows `todo`; what was found, and the rows that are left."""
    if len(todo) == 0:
        return found, todo
    described = describe(method)
    if goal is not None and "goal" not in described.knobs:
        raise ValueError(f"expected methods that take a goal, got {described.path}")
    wanted: Tensor | int | None = goal[todo] if isinstance(goal, Tensor) else goal
    if "seed" in described.knobs and not described.params.get("seed"):
        method = partial(method, seed=seed)
    if wanted is not None:
        method = partial(method, goal=wanted)
    limit = ball.rows(todo)
    moved = method(held(described.holds, model), x[todo], y[todo], ball=limit).detach()
    legal = limit.contains(x[todo], moved)
    won = legal & _fooled(model, moved, y[todo], wanted)
    found[todo[legal]] = moved[legal]
    return found, todo[~won]


def _fooled(model: nn.Module | Oracle, x: Tensor, y: Tensor, goal: Tensor | int | None) -> Tensor:
    if isinstance(model, Oracle):
        label = model.labels(x)
    else:
        with torch.no_grad(), frozen(model):
            return _won(model(x), y, goal)
    return label != y if goal is None else label == goal
