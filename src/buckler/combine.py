"""Combinators: methods made of methods that change inputs, each a `functools.partial` that can be inspected.

`worst_of(methods)` is the worst case per row, `restarted(method, n)` tries other seeds, `targeted(method)` tries wrong
labels as goals one by one. Only rows that are still right are handed on, so the cheapest method goes first. What they
return is a method again: `worst_of([partial(a, steps=20), restarted(b, 5), targeted(c)])`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from buckler.kinds import Perturbed
from buckler.method import Method, describe, held
from buckler.target import Oracle, frozen
from buckler.threat import Ball


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
            label = model(x).argmax(1)
    return label != y if goal is None else label == goal
