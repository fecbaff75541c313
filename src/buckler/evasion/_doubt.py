"""Doubts about a model under attack: what makes a gradient lie, and what no attack may be beaten by.

The five checks that AutoAttack makes of a model (Croce and Hein, ICML 2020, https://arxiv.org/abs/2003.01690), a check
for quantised inputs, and three for any attack, after Carlini et al., "On evaluating adversarial robustness", 2019,
https://arxiv.org/abs/1902.06705: a black box or random noise must not do better, and without a limit nothing stands.

A check that could not be decided has `value` None (`contract.told`). A doubt is raised only when it is established.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import cast

import torch
from torch import Tensor, nn

from buckler.contract import apart, looks_like_probabilities, told, tolerance, unknown
from buckler.dice import Dice
from buckler.evasion._search import Goal, Objective, aim, ascend
from buckler.method import Holds, Method, describe, held
from buckler.target import Oracle, frozen
from buckler.threat import Ball
from buckler.trial import Check

GATES = frozenset(
    {
        "logits",
        "gradients",
        "static",
        "random",
        "black_box",
        "noise",
        "unbounded",
        "legal",
        "unavailable_gradients",
        "unstable_predictions",
        "silent_success",
        "incomplete_optimisation",
        "transfer_failure",
        "unconstrained_failure",
        "binarization",
    }
)
"""Failed, these make a trial inconclusive. `quantised` (where it kills gradients, `gradients` says so), `saturated` and
`classes` only inform."""
ALPHA = 0.002
"""The share of rows by which a weaker attack may be ahead (AutoAttack's `check_square_sr`)."""
ROWS = 32
TINY = 1e-4


def gates(check: Check, *, adaptive: bool = False, transferred: bool = False) -> bool:
    """Whether the failed `check` makes a trial inconclusive.

    `adaptive`: the attack went through the surrogate that the defence declares, so randomness is expected.
    `transferred`: it went through a surrogate of the adversary's own, so that successes which do not transfer are part
    of the threat, and climbing to the surrogate's very top is not what makes them transfer.
    """
    if check.passed or not told(check):
        return False
    excused = {"random", "unstable_predictions"} if adaptive else set[str]()
    if transferred:
        excused |= {"transfer_failure", "incomplete_optimisation"}
    return check.name in GATES - excused


def examine(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball, seed: int = 0) -> tuple[Check, ...]:
    """Look for what misleads gradients in `model`, the one that a white-box attack runs on, on the first rows.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`. Returns the checks `random`, `logits`, `static` (inner optimisation, or
    weights that change while it answers), `gradients`, `saturated`, `quantised` and `classes`.
    """
    if len(x) == 0:
        return (unknown("gradients", "there are no rows"),)
    x, y, ball = x[:ROWS].detach(), y[:ROWS], ball.rows(torch.arange(min(len(x), ROWS), device=x.device))
    with frozen(model):
        with torch.no_grad():
            first, again = model(x), model(x)
        differs = apart(first, again)
        same = bool((first - again).abs().max() <= tolerance(first))
        checks = [
            Check(
                "random",
                same,
                "The same input gets the same answer."
                if same
                else f"Two answers to one input differ by {differs:.2g} of their scale: attack the mean over draws.",
                differs,
            ),
            _probabilities(first),
            _static(model, x),
            *_slopes(model, x, y, ball, seed),
            _quantised(model, x, seed) if same else unknown("quantised", "answers differ from call to call"),
        ]
    many = first.shape[1]
    says = f"{many} classes: the DLR loss needs 3, and 4 for a target; attack with cross-entropy or the margin."
    checks.append(Check("classes", many >= 4, says if many < 4 else f"{many} classes are enough for any loss.", many))
    return tuple(checks)


def cross_check(white: Tensor, black: Tensor) -> Check:
    """Whether a black box fooled rows, `black` `(B,)`, that no white-box attack did, `white` `(B,)`."""
    n = len(white)
    if n == 0:
        return unknown("black_box", "there are no rows")
    ahead = float((black & ~white).double().mean())
    says = (
        f"A black-box attack fooled {ahead:.1%} of rows that the white-box attack did not: gradients are masked."
        if ahead > ALPHA
        else "No black-box attack fooled what the white-box attack did not."
    )
    return Check("black_box", ahead <= ALPHA, says, ahead)


def random_noise(
    target: nn.Module | Oracle, x: Tensor, y: Tensor, *, ball: Ball, held: Tensor, draws: int = 20, seed: int = 0
) -> Check:
    """Whether random noise inside `ball` fools rows of `target` that the attack left standing, `held` `(B,)`."""
    index = held.nonzero().squeeze(1)
    if len(held) == 0 or len(index) == 0:
        return Check("noise", True, "The attack left no row for noise to fool.", 0.0)
    if behind(target) is None:
        return unknown("noise", "asking the target again costs queries")
    x, y, limit = x[index], y[index], ball.rows(index)
    beaten, dice = torch.zeros_like(y, dtype=torch.bool), Dice(x, seed)
    for draw in range(draws):
        beaten |= labels(target, noise(x, limit, dice, edge=draw % 2 == 0)) != y
    ahead = float(beaten.sum()) / len(held)
    says = (
        f"Random noise fooled {ahead:.1%} of rows, which the attack did not: the attack is worse than guessing."
        if ahead > ALPHA
        else f"{draws} draws of random noise fooled no row that the attack did not."
    )
    return Check("noise", ahead <= ALPHA, says, ahead)


def unbounded(
    method: Method,
    model: nn.Module | Oracle,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    target: nn.Module | Oracle | None = None,
    goal: Goal = None,
    rows: int = 16,
) -> Check:
    """Whether `method` on `model` defeats `target` (`model` if not given) where every image is within the limit."""
    x, y = x[:rows], y[:rows]
    if len(x) == 0:
        return unknown("unbounded", "there are no rows")
    standing, why = survivors(method, model, x, y, ball=ball, target=target, goal=goal)
    if standing is None:
        return unknown("unbounded", why)
    left, chance = float(standing.double().mean()), 1 / max(2, int(y.max()) + 1)
    says = (
        f"Without a limit, {left:.0%} of rows still stand: the attack cannot find what must exist."
        if left > chance
        else f"Without a limit, {left:.0%} of rows stand, no more than chance."
    )
    return Check("unbounded", left <= chance, says, left)


def survivors(
    method: Method,
    model: nn.Module | Oracle,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    target: nn.Module | Oracle | None = None,
    goal: Goal = None,
) -> tuple[Tensor | None, str]:
    """The rows `(B,)` that stand against `method` at the radius of the whole box; or None, and why."""
    if behind(model) is None:
        return None, "asking the target again costs queries"
    size = x[0].numel()
    whole = Ball(ball.norm, {"linf": 1.0, "l2": size**0.5, "l1": float(size), "l0": float(size)}[ball.norm])
    try:
        found = strike(method, model, x, y, whole, goal)
    except Exception as error:  # an attack may raise anything at a radius it was not made for
        return None, f"the attack raised {type(error).__name__} at the radius of the whole box"
    label = labels(model if target is None else target, found)
    wanted = aim(goal, y)
    return (label == y if wanted is None else label != wanted), ""


def holds(method: Method) -> Holds:
    """What `method` holds; a callable that does not say so is taken to hold the model."""
    try:
        return describe(method).holds
    except (ValueError, TypeError, NameError):
        return "model"


def behind(model: nn.Module | Oracle) -> nn.Module | None:
    """The model itself, also from behind a door of ours; None where there are only somebody else's answers."""
    inner: object = model
    while isinstance(inner, Oracle):
        inner = inner._answer
    return inner if isinstance(inner, nn.Module) else None


def given(method: Method, model: nn.Module | Oracle, rows: int) -> nn.Module | Oracle:
    """What `method` is handed to attack `rows` rows of `model`: itself, or a door with its budget of queries."""
    sees = holds(method)
    if sees == "model":
        return held(sees, model)
    queries = describe(method).params.get("queries")
    return held(sees, model, queries * rows if isinstance(queries, int) else None)


def strike(method: Method, model: nn.Module | Oracle, x: Tensor, y: Tensor, ball: Ball, goal: Goal = None) -> Tensor:
    """What `method` returns for copies of the rows, with every illegal row replaced by the clean one."""
    handed = given(method, model, len(x))
    found = (
        method(handed, x.clone(), y.clone(), ball=ball)
        if goal is None
        else method(handed, x.clone(), y.clone(), ball=ball, goal=goal)
    )
    found = found.detach().to(x)
    return torch.where(ball.contains(x, found).view(-1, *[1] * (x.ndim - 1)), found, x)


def labels(target: nn.Module | Oracle, x: Tensor) -> Tensor:
    """The labels `(B,)` that `target` gives."""
    if isinstance(target, Oracle):
        return target.labels(x)
    with frozen(target), torch.no_grad():
        return torch.cat([target(part).argmax(1) for part in x.split(512)])


def noise(x: Tensor, ball: Ball, dice: Dice, *, edge: bool, reach: float = 1.0) -> Tensor:
    """A random point of the ball, shrunk by `reach`, around every row of `x`: on its surface if `edge`, in [0, 1].

    On the surface means a corner for linf, a random direction for l2 and l1, and pixels set to 0 or 1 for l0.
    """
    shape, radii = x.shape[1:], ball.radii(x) * reach
    if ball.norm == "linf":
        delta = (dice.signs(*shape) if edge else dice.uniform(*shape) * 2 - 1).to(x) * radii
        return (x + delta.clamp(-1, 1)).clamp(0, 1)
    if ball.norm == "l0":
        ranks = dice.uniform(*shape).to(x).flatten(1).argsort(1).argsort(1).view_as(x)
        drawn = dice.uniform(*shape).to(x)
        return torch.where(ranks < radii.floor(), drawn.round() if edge else drawn, x)
    delta = dice.normal(*shape).to(x)
    unit = delta / ball.size(delta).clamp_min(1e-12).view_as(radii)
    share = 1.0 if edge else dice.uniform(*[1] * len(shape)).to(x) ** (1 / x[0].numel())
    return (x + unit * share * radii.clamp(max=float(x[0].numel()))).clamp(0, 1)


def slope(
    model: nn.Module, x: Tensor, y: Tensor, objective: Objective, goal: Tensor | None = None
) -> tuple[Tensor, str]:
    """Whether every row has a usable gradient, finite and not all zero: `(B,)`; and what broke, if anything raised."""
    x = x.detach().clone().requires_grad_()
    none = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    try:
        with torch.enable_grad():
            out = model(x)
            if not out.requires_grad:
                return none, "the model's output does not depend on its input differentiably"
            climbed = ascend(objective, out, y, goal).sum()
            grads = cast("tuple[Tensor | None, ...]", torch.autograd.grad(climbed, x, allow_unused=True))
    except RuntimeError as error:  # an operation without a derivative, or in place on what the derivative needs
        return none, " ".join(str(error).split())[:120]
    if grads[0] is None:
        return none, "the model's output does not depend on its input differentiably"
    flat = grads[0].flatten(1)
    return flat.isfinite().all(1) & (flat != 0).any(1), ""


def _slopes(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, seed: int) -> tuple[Check, Check]:
    """Gradients that are exactly zero or cannot be had, at the clean input and at a random point of the ball."""
    near = noise(x, ball, Dice(x, seed), edge=False)
    here, why = slope(model, x, y, "margin")
    there, _ = slope(model, near, y, "margin")
    usable = here | there
    missing = float((~usable).double().mean())
    text = f" ({why})" if why else ""
    says = (
        f"{missing:.0%} of rows have no usable gradient{text}: attack through a differentiable surrogate."
        if missing > 0.05
        else f"{1 - missing:.0%} of rows have a usable gradient."
    )
    entropy = slope(model, x, y, "ce")[0] | slope(model, near, y, "ce")[0]
    dull = float((usable & ~entropy).double().mean())
    flat = (
        f"On {dull:.0%} of rows the cross-entropy is flat though the margin is not: attack the margin or the DLR loss."
        if dull > 0
        else "Where the margin has a gradient, the cross-entropy has one."
    )
    return Check("gradients", missing <= 0.05, says, missing), Check("saturated", dull == 0, flat, dull)


def _probabilities(out: Tensor) -> Check:
    found = looks_like_probabilities(out)
    says = (
        "The model answers probabilities, on which losses saturate: return logits."
        if found
        else "The model answers no probabilities."
    )
    return Check("logits", not found, says, float(found))


@contextmanager
def _overheard() -> Generator[list[str], None, None]:
    """The autograd calls that this thread makes inside the block; nothing is patched."""
    wanted = {torch.autograd.grad.__code__: "autograd.grad", torch.autograd.backward.__code__: "autograd.backward"}
    heard: list[str] = []

    def listen(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code in wanted:
            heard.append(wanted[frame.f_code])

    sys.setprofile(listen)
    try:
        yield heard
    finally:
        sys.setprofile(None)


def _static(model: nn.Module, x: Tensor) -> Check:
    """Whether answering is all that the model does: no gradients of its own, no weights or buffers changed."""
    if sys.getprofile() is not None:
        return unknown("static", "a profiler is running, beside which calls cannot be watched")

    def state() -> list[tuple[str, int, int]]:
        named = (*model.named_parameters(), *model.named_buffers())
        return [(name, id(tensor), tensor._version) for name, tensor in named]

    before = state()
    try:
        with torch.enable_grad(), _overheard() as heard:
            model(x[:2])
    except RuntimeError as error:
        return unknown("static", f"the model raised {type(error).__name__} when its forward pass was watched")
    changed = [new[0] for old, new in zip(before, state(), strict=False) if old != new]
    if heard:
        says = f"The forward pass calls {heard[0]}: it optimises while it answers, which no gradient through it sees."
    elif changed:
        says = f"{changed[0]} changes when the model answers: its answers depend on what was asked before."
    else:
        says = "The forward pass takes no gradients and changes no state."
    return Check("static", not heard and not changed, says, float(len(heard) + len(changed)))


def _quantised(model: nn.Module, x: Tensor, seed: int) -> Check:
    """Whether changes too small to see never change an answer, to the last bit, while larger ones do."""
    if not x.is_floating_point():
        return unknown("quantised", f"inputs are of type {x.dtype}")
    dice, tiny = Dice(x, seed), max(TINY, 4 * torch.finfo(x.dtype).eps)
    stuck, moves = torch.zeros(2, len(x), dtype=torch.bool, device=x.device)
    with torch.no_grad():
        # shifts, because data may lie just on the edge between two steps, where any change shows
        for shift in (0.0, 0.013, 0.021):
            base = (x + shift).clamp(0, 1)
            out = model(base)
            still = torch.ones_like(stuck)
            for _ in range(2):
                still &= (model(noise(base, Ball("linf", tiny), dice, edge=False)) == out).all(1)
            stuck |= still
            moves |= (model(noise(base, Ball("linf", 0.3), dice, edge=False)) != out).any(1)
    found = float((stuck & moves).double().mean())
    says = (
        f"On {found:.0%} of rows no change of {tiny:.0e} changes any answer, and larger ones do: inputs are quantised."
        if found > 0.5
        else "Small changes of the input change the answer."
    )
    return Check("quantised", found <= 0.5, says, found)
