"""AutoAttack.

Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
ICML 2020, https://arxiv.org/abs/2003.01690; for l1: Croce and Hein, ICML 2021, https://arxiv.org/abs/2103.01208.

Differs from the paper: every attack hands on only the rows that it could not fool, and stops a row at its first
success. Budgets are the published ones: 100 steps, 9 target classes, 5,000 queries. The attacks run on a faster form of
the model (in bfloat16 where the processor computes in it); what they claim is judged on the model itself, and rows
whose claim fails there, or whose result is a near miss, are attacked again in float32. Answers to Square Attack are
given in float32 wherever the two likeliest labels are close.

Tags: atlas:AML.T0043.000, atlas:AML.T0043.001, atlas:AML.T0015, nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor, nn

from buckler.combine import on_forms, worst_case
from buckler.evasion.apgd import apgd
from buckler.evasion.fab import fab
from buckler.evasion.square import square
from buckler.kinds import Perturbed
from buckler.method import Method
from buckler.target import Precision, inference_form
from buckler.threat import Ball, Norm

Version = Literal["standard", "plus", "rand"]


def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    version: Version = "standard",
    steps: int = 100,
    queries: int = 5000,
    precision: Precision = "auto",
    seed: int = 0,
) -> Perturbed:
    """Run APGD on cross-entropy, targeted APGD, targeted FAB and Square Attack on the rows still right.

    `x` `(B, ...)` in [0, 1], `y` `(B,)`; `ball` linf, l2 or l1 (a `ValueError` otherwise). `plus` adds untargeted APGD
    and FAB and five restarts; `rand`, for models that answer at random, is APGD on two losses with gradients averaged
    over 20 draws. Fewer `steps` or `queries` than the published ones do not make AutoAttack's verdict. `precision` is
    that of the fast form. Returns `(B, ...)`: an adversarial example where one was found, else some legal point.
    """
    if ball.norm == "l0":
        raise ValueError("expected a ball in linf, l2 or l1, got l0: evasion/fmn attacks l0")
    if len(x) == 0:
        return x.clone()
    exact = inference_form(model, x[:16])
    fast = inference_form(model, x[:16], precision)
    published = _attacks(version, ball.norm, steps, queries)
    methods = tuple(partial(on_forms, method=method, fast=fast, exact=exact) for method in published)
    return worst_case(model, x, y, ball=ball, methods=methods, seed=seed)


def _attacks(version: Version, norm: Norm, steps: int = 100, queries: int = 5000) -> list[Method]:
    """The attacks of a version in their published order and with their published budgets."""
    climb = partial(apgd, objective="ce", steps=steps, restarts=5 if norm == "l1" or version == "plus" else 1)
    ratio = partial(apgd, objective="dlr", steps=steps)
    aimed = partial(ratio, targets=5 if norm == "l1" and version == "standard" else 9)
    walk = partial(fab, steps=steps, targets=9)
    search = partial(square, queries=queries, rescale=False, ahead=16)
    if version == "standard":
        return [climb, aimed, walk, search]
    if version == "plus":
        return [climb, partial(ratio, restarts=5), partial(walk, targets=0, restarts=5), search, aimed, walk]
    return [partial(apgd, objective=objective, steps=steps, draws=20) for objective in ("ce", "dlr")]
