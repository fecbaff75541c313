"""What a model and its data must be before minutes are spent on them.

Every check is one sentence on what is wrong and how to mend it. A check whose `value` is None could not be decided: it
speaks neither for the model nor against it (`told` says which). `fatal` says which failures make every later number
meaningless; the others are warnings, and whoever reports a number reports them beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from buckler.stats import beats, clopper_pearson
from buckler.target import Oracle, QueryBudgetExceeded, frozen
from buckler.trial import Check

FATAL = frozenset(
    {"data", "inputs", "labels", "classes", "in_place", "answers", "shape", "finite", "scale", "collapsed"}
)
ROWS, ASKED = 256, 64
"""How many rows, evenly spread over the data, a model is tried on, and how many an oracle is asked."""
ALONE = 8
COLLAPSED = 1e-5
"""By how much of their scale features of different rows differ at least; what is less is rounding."""
Answer = Callable[[Tensor], Tensor]


def fatal(check: Check) -> bool:
    """Whether nothing should be measured before this is mended."""
    return not check.passed and check.name in FATAL


def told(check: Check) -> bool:
    """Whether the check could be decided at all; one that could not is not a pass, whatever `passed` says."""
    return check.value is not None


def unknown(name: str, why: str) -> Check:
    """A check that could not be decided: nothing is held against anyone, and nobody may call it a pass."""
    return Check(name, True, f"Could not tell: {why}.", None)


def tolerance(out: Tensor) -> float:
    """By how much two answers to the same input may differ through rounding alone."""
    scale = float(out.abs().max()) if out.numel() else 1.0
    return 3 * torch.finfo(out.dtype).eps ** 0.5 * max(scale, 1e-6) if out.is_floating_point() else 0.0


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference between two answers, as a share of their scale."""
    return float((a.double() - b.double()).abs().max()) / max(float(a.double().abs().max()), 1e-6)


def looks_like_probabilities(out: Tensor) -> bool:
    """Whether every row of `out` `(B, K)` is non-negative and sums to 1."""
    return bool((out >= 0).all()) and bool(((out.double().sum(1) - 1).abs() < 1e-3).all())


def check_contract(model: nn.Module | Oracle, x: Tensor, y: Tensor, *, classes: int | None = None) -> tuple[Check, ...]:
    """Try `model` on a few rows of its data and say what would spoil every number measured on them.

    `x` `(N, ...)` in [0, 1], `y` `(N,)` int64; `classes` is the expected number of classes, if known. The model is
    tried as it is measured, in evaluation mode, and left as it was. Of an oracle only the checks that its answers allow
    are made, with at most a few hundred queries. Never raises: whatever the model does becomes a check.
    """
    return _tried(model, x, y, classes, "logits", ROWS)


def check_encoder(encoder: nn.Module | Oracle, x: Tensor, y: Tensor) -> tuple[Check, ...]:
    """The same for an encoder, whose answers are features `(B, D)`: finite, and not one point for all rows."""
    return _tried(encoder, x, y, None, "features", ASKED)


def _tried(
    model: nn.Module | Oracle, x: Tensor, y: Tensor, classes: int | None, reveals: str, rows: int
) -> tuple[Check, ...]:
    checks = _data(x, y)
    if any(fatal(check) for check in checks):
        return checks
    if isinstance(model, Oracle):
        return checks + _answers(model, x, y, classes, ASKED, model.reveals)
    left_on = [name or type(module).__name__ for name, module in model.named_modules() if module.training]
    says = (
        f"{len(left_on)} modules ({', '.join(left_on[:3])}) are in training mode: call model.eval(); what is measured "
        "here is the model in evaluation mode"
        if left_on
        else "every module is in evaluation mode"
    )
    checks += (Check("training", not left_on, _sentence(says), float(len(left_on))),)
    place = next(iter((*model.parameters(), *model.buffers())), x)
    dtype = place.dtype if place.is_floating_point() and x.is_floating_point() else x.dtype
    with frozen(model), torch.no_grad():
        few = x[:2].detach().clone().to(device=place.device, dtype=dtype)
        kept = few.clone()
        with suppress(Exception):  # what it raises is told below
            model(few)
        says = "the model writes into its inputs (x *= 2, x.sub_(mean), inplace=True): write x = x * 2 instead"
        good = "the model leaves its inputs as they are"
        checks += (_check("in_place", few.equal(kept), good, says, float(not few.equal(kept))),)
        if not few.equal(kept):
            return checks
        return checks + _answers(model, x, y, classes, rows, reveals, torch.empty(0, dtype=dtype, device=place.device))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _check(name: str, passed: bool, good: str, bad: str, value: float) -> Check:
    return Check(name, passed, _sentence(good if passed else bad), value)


def _data(x: Tensor, y: Tensor) -> tuple[Check, ...]:
    """What can be said of the data without the model."""
    size = float(min(len(x), len(y))) if x.ndim and y.ndim else 0.0
    good = x.ndim > 1 and y.ndim == 1 and len(x) == len(y) > 0
    bad = f"expected inputs (N, ...) and one label per row with N > 0, got {tuple(x.shape)} and {tuple(y.shape)}"
    first = _check("data", good, f"{len(y)} rows with a label each", bad, size)
    if not good:
        return (first,)
    checks = [first]
    if x.is_floating_point():
        low, high = float(x.min()), float(x.max())
        if low != low or high != high:
            hint = "NaN inputs: clean the data"
        elif low >= 0 and high > 2:
            by = "255" if high <= 255 else "their maximum"
            hint = f"inputs reach {high:.4g}: divide by {by} so that they lie in [0, 1]"
        else:
            hint = (
                f"inputs lie in [{low:.4g}, {high:.4g}], not in [0, 1]: leave out the normalisation of the data "
                "and make it the first layer of the model"
            )
        checks.append(_check("inputs", low >= 0 and high <= 1, "inputs lie in [0, 1]", hint, high))
    else:
        checks.append(unknown("inputs", f"inputs of type {x.dtype} have no range"))
    whole = not y.is_floating_point() and y.dtype != torch.bool
    lowest = float(y.min())
    bad = f"labels of type {y.dtype}, from {lowest:.4g}: give class indices 0, 1, ... as int64"
    checks.append(_check("labels", whole and lowest >= 0, "labels are class indices", bad, lowest))
    many = len(y.unique())
    bad = f"all {len(y)} rows have the label {y[0].item()}: shuffle before taking a part, or take more rows"
    checks.append(_check("one_class", many > 1, f"{many} different labels", bad, float(many)))
    return tuple(checks)


def _answers(
    model: Answer,
    x: Tensor,
    y: Tensor,
    classes: int | None,
    rows: int,
    reveals: str,
    like: Tensor | None = None,
) -> tuple[Check, ...]:
    """What the model answers on up to `rows` rows, spread evenly over the data."""
    encodes = reveals == "features"
    name = "encoder" if encodes else "model"
    index = torch.linspace(0, len(x) - 1, min(rows, len(x)), dtype=torch.float64).round().long().to(x.device)
    x, known = x[index].detach(), y[index]
    if like is not None:
        x, known = x.to(like), known.to(like.device)
    try:
        parts: list[Any] = [model(part) for part in x.clone().split(64)]  # a copy: a model may write into its inputs
        wrong = next((type(part).__name__ for part in parts if not isinstance(part, Tensor)), None)
        if wrong:
            says = (
                f"expected a tensor of {reveals} from the {name}, got a {wrong}: return the {reveals} and nothing else"
            )
            return (Check("answers", False, _sentence(says), 0.0),)
        out = torch.cat(parts)
    except QueryBudgetExceeded:
        return (unknown("answers", f"the oracle's budget is less than {len(x)} queries"),)
    except Exception as error:  # a user's model may raise anything, and each is the same finding
        text = " ".join(str(error).split())[:200]
        hint = "; if it takes images of another size, let it resize them" if encodes else ""
        says = f"the {name} raises {type(error).__name__} on a batch of {tuple(x[:64].shape)}: {text}{hint}"
        return (Check("answers", False, _sentence(says), 0.0),)
    checks = [Check("answers", True, "The model answers.", float(len(x)))]
    if reveals == "labels":
        good, many, expected = out.ndim == 1 and len(out) == len(x), classes, "(B,) labels"
    elif encodes:
        good = out.ndim == 2 and len(out) == len(x) and out.shape[1] > 0 and out.is_floating_point()
        many, expected = None, "(B, D) features"
    else:
        good = out.ndim == 2 and len(out) == len(x) and out.shape[1] > 1 and classes in (None, out.shape[1])
        good = good and out.is_floating_point()
        many, expected = (out.shape[1] if out.ndim == 2 else classes), f"(B, {classes or 'K'}) {reveals}"
    whole = "" if out.is_floating_point() or reveals == "labels" else f" of {out.dtype}"
    mend = (
        "flatten the answer, or pool it"
        if encodes
        else f"return one {'float' if whole else 'number'} per class and row"
    )
    bad = f"expected {expected} for a batch of {len(x)}, got {tuple(out.shape)}{whole}: {mend}"
    checks.append(_check("shape", good, f"answers are {expected}", bad, float(out.ndim)))
    if not good:
        return tuple(checks)
    if many is not None:
        high = int(y.max())
        bad = (
            f"the label {high} occurs and the model knows 0 to {many - 1}: give the classes their indices in the model"
        )
        checks.append(_check("classes", high < many, "every label is a class of the model", bad, float(high)))
        if high >= many:
            return tuple(checks)
    if reveals != "labels":
        broken = float((~out.isfinite()).any(1).double().mean())
        bad = f"{broken:.0%} of rows answer NaN or Inf: mend the {name} (division, log, overflow in half precision)"
        checks.append(_check("finite", broken == 0, "answers are finite", bad, broken))
        if broken:
            return tuple(checks)
    if encodes:
        return (*checks, _spread(out), *_behaviour(model, x, out))
    if reveals == "logits":
        like_scores = looks_like_probabilities(out)
        bad = "the model returns probabilities, on which gradients vanish: return the logits, from before the softmax"
        checks.append(_check("logits", not like_scores, "answers are no probabilities", bad, float(like_scores)))
    checks += _behaviour(model, x, out)
    checks += _accuracy(model, x, known, out, many)
    return tuple(checks)


def _spread(out: Tensor) -> Check:
    """Whether different rows have different features; one row says nothing."""
    if len(out) < 2:
        return unknown("collapsed", "one row has nothing to differ from")
    differs = apart(out, out.mean(0, keepdim=True).expand_as(out))
    bad = (
        f"the features of {len(out)} rows are one point, up to {differs:.1g} of their scale: the encoder collapsed, or "
        "its weights were not loaded"
    )
    return _check("collapsed", differs > COLLAPSED, "features differ from row to row", bad, differs)


def _behaviour(model: Answer, x: Tensor, out: Tensor) -> list[Check]:
    """Whether the same row gets the same answer, asked again and asked alone."""
    few = x[:ALONE]
    try:
        first, again = model(few), model(few)
    except QueryBudgetExceeded:
        return [unknown("random", "the oracle's budget is spent")]
    except Exception as error:  # see `_answers`
        says = f"the model raises {type(error).__name__} on a batch of {len(few)} and not on a larger one"
        return [Check("batch", False, _sentence(says), 1.0)]
    if first.shape != again.shape:
        says = (
            f"two calls on the same rows answer {tuple(first.shape)} and {tuple(again.shape)}: give all rows one shape"
        )
        return [Check("random", False, _sentence(says), 1.0)]
    differs = apart(first, again)
    same = float((first.double() - again.double()).abs().max()) <= tolerance(first)
    bad = (
        f"two calls on the same rows differ by {differs:.2g} of their scale: switch off dropout and other randomness "
        "in evaluation mode, or attack the expectation over draws"
    )
    checks = [_check("random", same, "the same rows get the same answers", bad, differs)]
    if not same:
        return [*checks, unknown("batch", "answers differ from call to call")]
    try:
        alone = torch.cat([model(row) for row in few.split(1)])
    except QueryBudgetExceeded:
        return [*checks, unknown("batch", "the oracle's budget is spent")]
    except Exception as error:  # see `_answers`
        says = (
            f"the model raises {type(error).__name__} on a single row: make it use running statistics when it is used"
        )
        return [*checks, Check("batch", False, _sentence(says), 1.0)]
    differs = max(apart(alone, first), apart(alone, out[:ALONE]))
    same = differs * float(alone.double().abs().max().clamp_min(1e-6)) <= tolerance(alone)
    bad = (
        f"a row alone and the same row in a batch differ by {differs:.2g} of their scale: make batch norm use its "
        "running statistics, so that no row's answer depends on the others"
    )
    return [*checks, _check("batch", same, "a row's answer does not depend on its batch", bad, differs)]


def _accuracy(model: Answer, x: Tensor, y: Tensor, out: Tensor, many: int | None) -> list[Check]:
    """Whether the model knows anything, and whether it would know more were the inputs scaled otherwise."""
    right = (out if out.ndim == 1 else out.argmax(1)) == y
    n, hits = len(y), int(right.sum())
    common = int(y.bincount().max()) / n
    chance = max(common, 1 / many if many else 0.0)
    if clopper_pearson(n, n, 0.9)[0] <= chance:
        checks = [unknown("chance", f"{n} rows, {common:.0%} of them of one label, are too few to compare with chance")]
    else:
        better = clopper_pearson(hits, n, 0.9)[0] > chance
        good = f"{hits} of {n} rows are right, more than by chance"
        bad = (
            f"{hits} of {n} rows are right, no more than by chance ({chance:.0%}): check the weights, the order of the "
            "classes and the preprocessing"
        )
        checks = [_check("chance", better, good, bad, hits / n)]
    if hits >= 0.9 * n or not x.is_floating_point():
        return [*checks, Check("scale", True, "The model reads inputs in [0, 1].", hits / n)]
    best, kinds = hits, list[str]()
    for kind, moved in _scales(x):
        try:
            said = torch.cat([model(part) for part in moved.split(64)])
        except QueryBudgetExceeded:
            return [*checks, unknown("scale", "the oracle's budget is spent")]
        except Exception:  # a model that refuses another range does not want it
            continue
        now = (said if said.ndim == 1 else said.argmax(1)) == y
        won, lost = int((now & ~right).sum()), int((right & ~now).sum())
        if (won - lost) / n >= 0.1 and beats(lost, won, 0.999):
            best = max(best, int(now.sum()))
            kinds.append(kind)
    says = (
        f"{best} rows of {n} are right on {' or '.join(kinds)} and {hits} on [0, 1]: make the scaling of the training "
        "data the first layer of the model"
        if kinds
        else "no other scale of the inputs suits the model much better"
    )
    return [*checks, Check("scale", not kinds, _sentence(says), best / n)]


def _scales(x: Tensor) -> list[tuple[str, Tensor]]:
    """The ranges that models are commonly made for, beside [0, 1]."""
    rest = [dim for dim in range(x.ndim) if dim != 1] if x.ndim > 2 else [0]
    spread = x.float().std(rest, keepdim=True).clamp_min(1e-3).to(x.dtype)
    return [
        ("inputs in [0, 255]", 255 * x),
        ("inputs in [-1, 1]", 2 * x - 1),
        ("standardised inputs", (x - x.mean(rest, keepdim=True)) / spread),
    ]
