"""Run an attack on rows of a target and re-check every claim it makes.

The attack is given what its first annotation asks for; whether it succeeded is decided here, on the target itself, and
only for inputs that are finite, in [0, 1] and inside the limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial

import torch
from torch import Tensor, nn

from buckler.kinds import Adaptive
from buckler.method import Described, Method, held
from buckler.target import Meter, Oracle, inference_form
from buckler.threat import Ball

EXAMPLES = 8
DOUBTED = 32
VOTES = 9
"""How often a target that answers at random is asked before its label is believed."""


@dataclass(frozen=True)
class Settings:
    """What `evaluate` was asked for; see there."""

    ball: Ball
    rows: int
    goal: int | None
    radii: tuple[float, ...]
    epochs: float
    doubt: bool
    seed: int
    tick: Callable[[float, int], None] | None


@dataclass
class Outcome:
    """Per row of the test data, in order. `distance` is the size of the smallest legal change that fooled the target:
    0 where the clean answer is wrong already, infinite where none was found."""

    label: list[Tensor] = field(default_factory=list)
    correct: list[Tensor] = field(default_factory=list)
    fooled: list[Tensor] = field(default_factory=list)
    illegal: list[Tensor] = field(default_factory=list)
    distance: list[Tensor] = field(default_factory=list)
    prediction: list[Tensor] = field(default_factory=list)
    borrowed: list[Tensor] = field(default_factory=list)
    """Whether only an example made for another model fooled this one; kept where such were tried."""
    examples: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    queries: int = 0

    def evidence(self) -> dict[str, Tensor]:
        """One tensor per field, and up to `EXAMPLES` rows as they were and as they fooled the target."""
        named = ((f.name, getattr(self, f.name)) for f in fields(self) if f.name not in ("examples", "queries"))
        tensors = {name: torch.cat(parts) for name, parts in named if parts}
        tensors["robust"] = tensors["correct"] & ~tensors["fooled"]
        for index, name in enumerate(("example_row", "example_clean", "example_moved")):
            if self.examples:
                tensors[name] = torch.cat([example[index] for example in self.examples])[:EXAMPLES]
        return tensors


class Judge:
    """The target's word, as labels: the majority of several answers where it answers at random."""

    def __init__(self, target: nn.Module | Oracle, votes: int = 1) -> None:
        self._target, self._votes = target, votes

    def labels(self, x: Tensor) -> Tensor:
        def once() -> Tensor:
            if isinstance(self._target, Oracle):
                return self._target.labels(x)
            with torch.no_grad():
                return self._target(x).argmax(1)

        return once() if self._votes == 1 else torch.stack([once() for _ in range(self._votes)]).mode(0).values


def batch_size(sample: Tensor) -> int:
    """Rows that go through a model at once: fewer the larger a row is, so that memory does not follow the data."""
    return max(16, min(512, (1 << 22) // max(1, sample[0].numel())))


class Attack:
    """One method against one target, through a surrogate where there is one."""

    def __init__(
        self,
        method: Method,
        described: Described,
        target: nn.Module | Oracle,
        settings: Settings,
        *,
        through: nn.Module | None = None,
        votes: int = 1,
    ) -> None:
        self.method = partial(method, seed=settings.seed) if "seed" in described.knobs else method
        self.described, self.target, self.settings = described, target, settings
        self.judge = Judge(target, votes)
        own = target.surrogate() if isinstance(target, Adaptive) and described.holds == "model" else None
        self.through = through if through is not None else own
        self.queries = 0
        self._fast: nn.Module | None = None
        self.sample: tuple[Tensor, Tensor, Tensor] | None = None
        """The first rows that were attacked, their labels, and what was found for them: what the doubts look at."""

    @property
    def source(self) -> nn.Module | Oracle:
        """What the attack runs on: a surrogate, or the target as far as the method may see it."""
        return held(self.described.holds, self.target if self.through is None else self.through)

    def run(self, parts: Iterator[tuple[Tensor, Tensor]], meter: Meter) -> Outcome:
        """Attack `parts`, batches of rows, and say per row what came of it."""
        outcome = Outcome()
        for x, y in parts:
            self.step(outcome, x, y, meter)
        return outcome

    def step(
        self, outcome: Outcome, x: Tensor, y: Tensor, meter: Meter, tried: Sequence[tuple[Tensor, bool]] = ()
    ) -> Tensor:
        """Attack one batch, add to `outcome` what came of it, and return the batch as it was left, `(B, ...)`.

        `tried` are inputs `(B, ...)` from elsewhere that count where the attack fails and they fool the target; the
        flag says that they were made for another model.
        """
        done = sum(map(len, outcome.label))
        answer = self.judge.labels(x)
        right = answer == y
        live = right if self.settings.goal is None else right & (y != self.settings.goal)
        fooled, illegal, borrowed = (torch.zeros_like(right) for _ in range(3))
        distance = torch.where(right, torch.inf, 0.0)
        left, prediction = x.clone(), answer.clone()
        index = live.nonzero().squeeze(1)
        if len(index):
            source = self.source
            if isinstance(source, nn.Module) and self._fast is None:
                # a method that chooses a precision makes its own forms of the model
                self._fast = source if "precision" in self.described.knobs else inference_form(source, x[:16])
                meter.watch(self._fast)
            found, hit, bad, size = self._fall(x[index], y[index], self._fast, source)
            if self.sample is None:
                kept = torch.where(hit.view(-1, *[1] * (x.ndim - 1)), found, x[index])
                self.sample = x[index][:DOUBTED], y[index][:DOUBTED], kept[:DOUBTED]
            for moved, others in tried:
                also = ~hit & self._fooled_by(moved[index], x[index], y[index])
                found[also], hit = moved[index][also], hit | also
                size[also] = self.settings.ball.size(found - x[index])[also].to(size)
                borrowed[index[also]] = others
            fooled[index], illegal[index], distance[index] = hit, bad, size
            left[index], prediction[index] = found, self.judge.labels(found)
            self._show(outcome, x[index][hit], found[hit], index[hit] + done)
        for name, value in (
            ("label", y),
            ("correct", right),
            ("fooled", fooled),
            ("illegal", illegal),
            ("distance", distance.float()),
            ("prediction", prediction),
            *([("borrowed", borrowed)] if tried else []),
        ):
            getattr(outcome, name).append(value.cpu())
        if self.settings.tick is not None:
            self.settings.tick(min(1.0, (done + len(x)) / self.settings.rows), meter.forwards)
        outcome.queries = self.queries
        return left

    def _fooled_by(self, moved: Tensor, x: Tensor, y: Tensor) -> Tensor:
        label = self.judge.labels(moved)
        won = label != y if self.settings.goal is None else label == self.settings.goal
        return won & self.settings.ball.contains(x, moved)

    def _fall(
        self, x: Tensor, y: Tensor, fast: nn.Module | None, source: nn.Module | Oracle
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The smallest success on each row: over the grid of radii by bisection, else at the one radius.

        Returns what was found, whether it fooled the target inside the limit, whether it was no input at all, and its
        size where it fooled the target at any distance (infinite elsewhere).
        """
        ball, radii = self.settings.ball, self.settings.radii
        if not radii:
            found, won, bad = self._strike(x, y, ball, fast, source)
            size = torch.where(won, ball.size(found - x).to(torch.float32), torch.inf)
            return found, won & ball.contains(x, found), bad, size
        reference = float(ball.radius)
        radii = sorted({*radii, reference} if math.isfinite(reference) else set(radii))
        first = radii.index(reference) if math.isfinite(reference) else len(radii) // 2
        grid = torch.tensor(radii, device=x.device, dtype=torch.float64)
        low = torch.full((len(x),), -1, device=x.device)
        high = torch.full((len(x),), len(radii), device=x.device)
        found, bad = x.clone(), torch.zeros_like(y, dtype=torch.bool)
        size = torch.full((len(x),), torch.inf, device=x.device)
        begun = False
        while bool((open_ := high - low > 1).any()):
            index = open_.nonzero().squeeze(1)
            # the radius that the verdict is about is tried on every row, whatever happens at the others
            middle = (low[index] + high[index]) // 2 if begun else torch.full_like(index, first)
            begun = True
            limit = Ball(ball.norm, grid[middle].float())
            moved, won, wrong = self._strike(x[index], y[index], limit, fast, source)
            hit = won & limit.contains(x[index], moved)
            bad[index] |= wrong
            length = ball.size(moved - x[index])
            # a success may be smaller than it had to be: it then settles the radii below as well
            settled = torch.searchsorted(grid, (length.double() - 1e-6).clamp_min(0)).clamp(max=middle)
            high[index] = torch.where(hit, settled, high[index])
            low[index] = torch.where(hit, torch.minimum(low[index], settled - 1), middle)
            closer = won & (length < size[index])
            found[index[closer]], size[index[closer]] = moved[closer], length[closer]
        return found, size <= reference * (1 + 1e-5) + 1e-6, bad, size

    def _strike(
        self, x: Tensor, y: Tensor, ball: Ball, fast: nn.Module | None, source: nn.Module | Oracle
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attack once; then again, where the first claim failed on the target, with what made it fail taken away."""
        found, won, bad = self._attempt(self.method, x, y, ball, fast if fast is not None else source)
        redo: list[tuple[Method, nn.Module | Oracle]] = []
        if self.through is not None and self.described.params.get("stop"):
            redo.append((partial(self.method, stop=False), fast if fast is not None else source))
        elif fast is not None and fast is not source:
            redo.append((self.method, source))
        for method, model in redo:
            index = (~won if self.through is not None else ~won & self._claimed(fast, found, y)).nonzero().squeeze(1)
            if len(index):
                again, also, wrong = self._attempt(method, x[index], y[index], ball.rows(index), model)
                found[index] = torch.where(also.view(-1, *[1] * (x.ndim - 1)), again, found[index])
                won[index], bad[index] = also, bad[index] | wrong
        return found, won, bad

    def _claimed(self, fast: nn.Module | None, found: Tensor, y: Tensor) -> Tensor:
        if fast is None:
            return torch.zeros_like(y, dtype=torch.bool)
        goal = self.settings.goal
        with torch.no_grad():
            label = fast(found).argmax(1)
        return label != y if goal is None else label == goal

    def _attempt(
        self, method: Method, x: Tensor, y: Tensor, ball: Ball, source: nn.Module | Oracle
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the method on a copy of the rows and judge what it returns: found, fooled at any distance, no input."""
        more = {} if self.settings.goal is None else {"goal": self.settings.goal}
        if isinstance(source, Oracle):
            queries = self.described.params.get("queries")
            budget = queries * len(x) if isinstance(queries, int) else None
            given: nn.Module | Oracle = Oracle(source, source.reveals, budget)
        else:
            given = source
        found = method(given, x.clone(), y.clone(), ball=ball, **more)
        self.queries += given.asked if isinstance(given, Oracle) and self.through is None else 0
        if found.shape != x.shape:
            raise ValueError(f"{self.described.path} returned {tuple(found.shape)}, expected {tuple(x.shape)}")
        found = found.detach().to(x)
        flat = found.flatten(1)
        legal = flat.isfinite().all(1) & (flat >= 0).all(1) & (flat <= 1).all(1)
        found = torch.where(legal.view(-1, *[1] * (x.ndim - 1)), found, x)
        label = self.judge.labels(found)
        success = label != y if self.settings.goal is None else label == self.settings.goal
        return found, success & legal, ~legal

    def _show(self, outcome: Outcome, x: Tensor, moved: Tensor, row: Tensor) -> None:
        room = EXAMPLES - sum(len(example[0]) for example in outcome.examples)
        if room > 0 and len(x):
            outcome.examples.append((row[:room].cpu(), x[:room].cpu(), moved[:room].cpu()))
