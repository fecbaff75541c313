"""The binarization test: an attack that misses adversarial examples which are known to exist proves nothing.

Zimmermann, Brendel, Tramer and Carlini, "Increasing confidence in adversarial robustness evaluations", NeurIPS 2022,
https://arxiv.org/abs/2206.13991.

Around every row the last layer is replaced with a linear head that tells points well inside the ball (class 0, the
clean input among them) from one point on its surface (class 1). That point is an adversarial example by construction,
so a sound attack must find one. An attack passes if it misses at most one row in twenty (one row, of fewer than forty).

Differs from the paper: the head is found by regularised least squares in closed form, all rows and several candidate
points at once, instead of by logistic regression; only that it separates matters, and that is verified on the judged
model. The threshold lies nine tenths of the way to the surface point, so that random noise seldom crosses it; if it
does on most rows, a pass is no evidence. All rows are attacked in one batch where their balls are apart (a point then
says itself which row it belongs to); a row missed there is attacked again alone before the miss counts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from buckler.contract import unknown
from buckler.dice import Dice
from buckler.evasion._doubt import behind, holds, noise, strike
from buckler.method import Method, describe
from buckler.target import Oracle, frozen
from buckler.threat import Ball
from buckler.trial import Check

ETA = 0.95
"""The radius of the inner points, as a share of the ball's."""
INNER, CANDIDATES, GUESSES = 63, 8, 100
CLOSENESS = 0.9
"""Where the threshold lies between the highest inner score (0) and the surface point's score (1)."""
FEWEST = 4
CELLS = 1 << 24
NAME = "binarization"


class _Heads(nn.Module):
    """One binary problem per row: `model` up to its last layer, then the head of the row that a point is nearest to."""

    def __init__(self, model: nn.Module, last: nn.Linear | None, ball: Ball, clean: Tensor, classes: int) -> None:
        super().__init__()
        self.model, self.last, self.classes = model, last, classes
        self.ball, self.clean = ball, clean
        self.weight, self.bias = clean.new_zeros(0), clean.new_zeros(0)

    def features(self, x: Tensor) -> Tensor:
        """What goes into the last linear layer, or the logits where there is none: `(B, D)`."""
        if self.last is None:
            return self.model(x).flatten(1)
        caught: list[Tensor] = []
        handle = self.last.register_forward_pre_hook(lambda _module, inputs: caught.append(inputs[0]))
        try:
            self.model(x)
        finally:
            handle.remove()
        return caught[-1].flatten(1)

    def rows(self, index: Tensor) -> _Heads:
        """The same problems for the rows that `index` selects."""
        part = _Heads(self.model, self.last, self.ball.rows(index), self.clean[index], self.classes)
        part.weight, part.bias = self.weight[index], self.bias[index]
        return part

    def scores(self, x: Tensor, row: Tensor) -> Tensor:
        """Above zero where a point is on the surface's side for the problem `row` `(B,)` that it belongs to: `(B,)`."""
        found = self.features(x)
        return (found * self.weight[row].to(found)).sum(1) + self.bias[row].to(found)

    def forward(self, x: Tensor) -> Tensor:
        row = torch.zeros(len(x), dtype=torch.long, device=x.device)
        if len(self.clean) > 1:
            row = torch.stack([self.ball.size(x.detach() - clean) for clean in self.clean], 1).argmin(1)
        half = self.scores(x, row)[:, None] / 2
        rest = -(half.detach().abs() + 5).expand(-1, self.classes - 2)
        return torch.cat([-half, half, rest], 1)


def binarization(
    method: Method,
    model: nn.Module | Oracle,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    target: nn.Module | Oracle | None = None,
    rows: int = 16,
    seed: int = 0,
) -> Check:
    """Whether `method` finds the adversarial examples that are planted in binary versions of `model`.

    `x` `(B, ...)` in [0, 1] are clean rows, of which the first `rows` are used; `y` is not needed beyond its length.
    `target`, if given, is the defended model that `model` is the surrogate of: heads are made and successes judged on
    it. A method that holds an oracle is given one around the binary model. `value` is the share of rows where the
    attack succeeded, None where the test does not apply.
    """
    inner = behind(model)
    judge = inner if target is None else behind(target)
    if inner is None or judge is None:
        return unknown(NAME, "the model itself is needed, and only its answers can be had")
    black = holds(method) != "model"
    few = torch.arange(min(len(x), rows // 2 if black else rows), device=x.device)
    x, ball = x[few].detach(), ball.rows(few)
    if len(x) < FEWEST:
        return unknown(NAME, f"{len(x)} rows are too few")
    if not bool(ball.radii(x).isfinite().all()) or not bool((ball.radii(x) > 0).all()):
        return unknown(NAME, "the limit has no surface")
    with frozen(inner), frozen(judge):
        try:
            heads, easy = _prepare(judge, x, ball, seed)
        except RuntimeError as error:
            return unknown(NAME, f"no heads could be fitted ({' '.join(str(error).split())[:100]})")
        if len(heads.clean) < FEWEST:
            return unknown(NAME, f"surface points could be told from inner points on {len(heads.clean)} rows only")
        attacked = heads if inner is judge else _same_heads(inner, heads)
        if attacked is None:
            return unknown(NAME, "the surrogate's features are not those of the target")
        try:
            missed, tried = _attack(method, attacked, heads, black)
        except Exception as error:  # an attack may raise anything on a problem of two classes
            return unknown(NAME, f"the attack raised {type(error).__name__} on the binary problem")
    value = 1 - missed / tried
    told = f"the attack found {tried - missed} of {tried} adversarial examples that were planted"
    if missed <= max(1, len(heads.clean) // 20):
        if easy > 0.5:
            return unknown(NAME, f"random noise alone solves {easy:.0%} of the planted problems")
        return Check(NAME, True, f"{told[0].upper()}{told[1:]}, random noise {easy:.0%}.", value)
    return Check(NAME, False, f"{told[0].upper()}{told[1:]}: it misses what is known to exist.", value)


def _attack(method: Method, attacked: _Heads, judge: _Heads, black: bool) -> tuple[int, int]:
    """How many planted examples were missed, of how many tried; it stops once too many are."""
    many = len(attacked.clean)
    todo = torch.arange(many, device=attacked.clean.device)
    if not black and _apart(attacked):
        todo = todo[~_solved(method, attacked, judge, todo)]
    missed, tried = 0, many - len(todo)
    for row in todo[:, None]:
        missed += int(not bool(_solved(method, attacked, judge, row)))
        tried += 1
        if missed > max(1, many // 20):
            break
    return missed, tried


def _solved(method: Method, attacked: _Heads, judge: _Heads, index: Tensor) -> Tensor:
    """Whether the attack on the problems `index` returns legal points on the surface's side: `(len(index),)`."""
    problem = attacked.rows(index)
    label = torch.zeros_like(index)
    targeted = _targeted(method)
    found = strike(method, problem, problem.clean, label, problem.ball, 1 if targeted else None)
    with torch.no_grad():
        return judge.scores(found, index) > 0


def _targeted(method: Method) -> bool:
    try:
        return describe(method).params.get("goal") is not None
    except (ValueError, TypeError, NameError):
        return False


def _apart(heads: _Heads) -> bool:
    """Whether no point can lie in two balls, and telling which is cheap."""
    clean, many = heads.clean, len(heads.clean)
    if clean.numel() * many > CELLS:
        return False
    gaps = torch.stack([heads.ball.size(clean - one) for one in clean])
    gaps.fill_diagonal_(torch.inf)
    return bool(gaps.min() > 2.1 * heads.ball.radii(clean).max())


def _same_heads(surrogate: nn.Module, heads: _Heads) -> _Heads | None:
    """The heads of the target put on the surrogate, if both have features of one kind."""
    with torch.no_grad():
        moved = _Heads(surrogate, _last_linear(surrogate, heads.clean), heads.ball, heads.clean, heads.classes)
        if moved.features(heads.clean[:1]).shape[1] != heads.weight.shape[1]:
            return None
    moved.weight, moved.bias = heads.weight, heads.bias
    return moved


def _last_linear(model: nn.Module, x: Tensor) -> nn.Linear | None:
    """The linear layer whose output is the model's output, if there is one with vectors for input."""
    last: list[tuple[nn.Linear, Tensor]] = []

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        if isinstance(module, nn.Linear) and inputs[0].ndim == 2:
            last.append((module, out))

    handles = [module.register_forward_hook(hook) for module in model.modules() if isinstance(module, nn.Linear)]
    try:
        out = model(x[:2])
    finally:
        for handle in handles:
            handle.remove()
    return last[-1][0] if last and last[-1][1] is out else None


def _prepare(model: nn.Module, x: Tensor, ball: Ball, seed: int) -> tuple[_Heads, float]:
    """Heads for the rows where one could be fitted, and the share of these that random noise solves."""
    with torch.no_grad():
        classes = max(4, model(x[:1]).shape[1])
        heads = _Heads(model, _last_linear(model, x), ball, x, classes)
        dice, many = Dice(x, seed), len(x)

        def drawn(count: int, reach: float, edge: bool) -> Tensor:
            return torch.stack([noise(x, ball, dice, edge=edge, reach=reach) for _ in range(count)], 1)

        def features(points: Tensor) -> Tensor:
            flat = points.flatten(0, 1)
            return (
                torch.cat([heads.features(part) for part in flat.split(256)]).view(many, points.shape[1], -1).double()
            )

        half = INNER // 2
        inner = torch.cat([x[:, None], drawn(half, ETA, True), drawn(INNER - half, ETA, False)], 1)
        points = drawn(CANDIDATES, 1.0, True)
        weight, bias, choice, gap = _fit(features(inner), features(points))
        heads.weight, heads.bias = weight, bias
        planted = points[torch.arange(many, device=x.device), choice]
        row = torch.arange(many, device=x.device)
        # the promise is verified as it will be judged: the same points, asked again
        holds_ = (heads.scores(planted, row) > 0) & (heads.scores(x, row) < 0) & (gap > 0)
        for points in inner[:, :: max(1, INNER // 8)].unbind(1):
            holds_ &= heads.scores(points, row) < 0
        index = holds_.nonzero().squeeze(1)
        kept = heads.rows(index)
        if len(index) == 0:
            return kept, 0.0
        lucky, dice = torch.zeros_like(index, dtype=torch.bool), Dice(kept.clean, seed + 1)
        row = torch.arange(len(index), device=x.device)
        for guess in range(GUESSES):
            lucky |= kept.scores(noise(kept.clean, kept.ball, dice, edge=guess % 2 == 0), row) > 0
        return kept, float(lucky.double().mean())


def _fit(inner: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For every row the head `(R, D)`, `(R,)` that tells best one of `points` `(R, C, D)` from `inner` `(R, N, D)`.

    Ridge regression in its dual form: the surface point's centred features, less what the inner points explain of
    them; with a ridge as large as the inner points' variance the head follows no noise, and climbing it is as hard as
    climbing the model is. Scores are scaled to 0 at the highest inner point and 1 at the surface.
    """
    centre = inner.mean(1, keepdim=True)
    inner, points = inner - centre, points - centre
    gram = inner @ inner.mT
    ridge = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    solved = torch.linalg.solve(gram + ridge[:, None, None] * eye, inner @ points.mT)
    weight = points - solved.mT @ inner
    highest = (weight @ inner.mT).amax(2)
    own = (weight * points).sum(2)
    gap = own - highest
    clear, choice = (gap / weight.norm(dim=2).clamp_min(1e-12)).max(1)
    row = torch.arange(len(inner), device=inner.device)
    weight, gap, highest = weight[row, choice], gap[row, choice], highest[row, choice]
    scale = gap.clamp_min(1e-12)
    weight = weight / scale[:, None]
    bias = -(weight * centre.squeeze(1)).sum(1) - highest / scale - CLOSENESS
    return weight, bias, choice, torch.where(gap > 0, clear, gap)
