"""The evaluator believes nobody: attacks that lie, defences that hide, certificates that are wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from buckler import stats
from buckler.evasion import _defences
from buckler.evasion._attack import Outcome
from buckler.evasion.deepfool import deepfool
from buckler.evasion.evaluate import evaluate
from buckler.evasion.fgsm_rs import fgsm_rs
from buckler.evasion.gradient_norm import gradient_norm
from buckler.evasion.pgd import pgd
from buckler.evasion.square import square
from buckler.findings import rules
from buckler.kinds import ABSTAIN, Certificate, Copy, Defended, Perturbed
from buckler.nets import LinearModel
from buckler.subject import Subject
from buckler.target import LabelOracle, Oracle
from buckler.theft.jbda import jbda
from buckler.threat import Ball
from buckler.trial import Trial

FAST = partial(pgd, steps=10)


def _rows(many: int = 40) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return 0.25 + 0.5 * torch.rand(many, 1, 5, 5, generator=draw), torch.zeros(many, dtype=torch.long)


def _linear() -> LinearModel:
    draw = torch.Generator().manual_seed(5)
    return LinearModel(torch.randn(3, 25, generator=draw), torch.randn(3, generator=draw))


def _subject(model: nn.Module | Oracle | None = None, **more: object) -> Subject:
    x, _ = _rows()
    y = _linear()(x).argmax(1)
    y[:4] = (y[:4] + 1) % 3  # four rows that the model gets wrong
    return Subject("linear", _linear() if model is None else model, (x, y), **more)  # pyright: ignore


def _run(method: object, subject: Subject | None = None, ball: str = "linf:0.05", **more: object) -> Trial:
    return evaluate(method, subject or _subject(), ball=Ball.parse(ball), rows=40, doubt=False, **more)  # pyright: ignore


def test_the_evidence_is_that_of_the_closed_form() -> None:
    trial = _run(pgd)
    x, y = _subject().test  # pyright: ignore
    distance = _linear().distances(x, y, "linf")
    assert trial.status == "ok"
    assert trial.estimates["clean_accuracy"].value == 0.9
    fooled = trial.evidence["fooled"]
    assert not fooled[:4].any()
    assert (fooled[4:] == (distance[4:] < 0.05)).float().mean() >= 0.94
    assert not (fooled & (distance > 0.05)).any()
    assert torch.equal(trial.evidence["robust"], trial.evidence["correct"] & ~fooled)
    assert (trial.evidence["distance"][:4] == 0).all()
    assert trial.params["ball"] == "linf:0.05"
    assert trial.params["steps"] == 40
    assert trial.threat.sees == "weights"
    assert trial.cost.forwards > 0 < trial.cost.backwards


def out_of_range(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball) -> Perturbed:
    del model, y, ball
    return x + 5


def not_finite(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball) -> Perturbed:
    del model, y, ball
    return x * math.nan


def too_far(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball) -> Perturbed:
    return pgd(model, x, y, ball=Ball(ball.norm, 1.0))


def vain(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball) -> Perturbed:
    del model, y, ball
    return x


def cropped(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball) -> Perturbed:
    del model, y, ball
    return x[:, :, :2]


@pytest.mark.parametrize("liar", [out_of_range, not_finite, too_far, vain])
def test_a_lie_gets_no_credit(liar: object) -> None:
    trial = _run(liar)
    assert trial.estimates["robust_accuracy"].value == 0.9
    assert not trial.evidence["fooled"].any()
    illegal = liar in (out_of_range, not_finite)
    assert trial.status == ("inconclusive" if illegal else "ok")
    assert bool(trial.evidence["illegal"].any()) == illegal


def test_what_is_too_far_still_tells_a_distance() -> None:
    distance = _run(too_far).evidence["distance"][4:]
    assert distance.isfinite().all()
    assert (distance > 0.05).all()


def test_a_wrong_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match="returned"):
        _run(cropped)


def test_radii_are_bisected_to_the_closed_form() -> None:
    radii = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1)
    trial = _run(pgd, ball="l2:0.05", radii=radii)
    x, y = _subject().test  # pyright: ignore
    exact = _linear().distances(x, y, "l2")[4:]
    found = trial.evidence["distance"][4:]
    assert (found >= exact * 0.999).all()
    grid = torch.tensor(radii)
    for row in range(len(found)):
        reach = grid[grid >= exact[row]]
        if len(reach) and bool(found[row].isfinite()):
            assert found[row] <= reach[0] * 1.01 or found[row] <= exact[row] * 1.3
    single = _run(pgd, ball="l2:0.05")
    assert torch.equal(single.evidence["robust"], trial.evidence["robust"])


def test_minimum_norm_with_no_limit_reports_the_median_distance() -> None:
    trial = _run(deepfool, ball="l2:inf")
    x, y = _subject().test  # pyright: ignore
    exact = _linear().distances(x, y, "l2")
    assert trial.estimates["distance"].value == pytest.approx(float(exact.clamp_min(0).median()), rel=0.1)
    assert "robust_accuracy" not in trial.estimates


def test_a_goal_counts_only_that_label() -> None:
    trial = _run(pgd, ball="linf:0.3", goal=2)
    assert (trial.evidence["prediction"][trial.evidence["fooled"]] == 2).all()
    assert not trial.evidence["fooled"][trial.evidence["label"] == 2].any()
    assert trial.threat.wants == "label 2"


class Quantised(nn.Module):
    """A guard that hides gradients, and says what an adaptive attack goes through."""

    def __init__(self, inner: nn.Module, honest: bool) -> None:
        super().__init__()
        self.inner, self.honest = inner, honest

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x * 64).round() / 64)


class Honest(Quantised):
    def surrogate(self) -> nn.Module:
        return self.inner


def quantise(model: nn.Module, *, honest: bool = True) -> Defended:
    return Honest(model, True) if honest else Quantised(model, False)


def test_a_guard_is_attacked_through_its_surrogate_and_hiding_earns_nothing() -> None:
    honest = evaluate(quantise, _subject(), ball=Ball.parse("linf:0.05"), rows=40, attack=FAST)
    hiding = evaluate(partial(quantise, honest=False), _subject(), ball=Ball.parse("linf:0.05"), rows=40, attack=FAST)
    assert honest.estimates["robustness_gained"].value <= 0.1
    assert hiding.status == "inconclusive"
    # what was made for the undefended model fools it: it earns nothing, and that is told
    assert hiding.estimates["robustness_gained"].value <= 0.1
    assert hiding.evidence["borrowed"].any()
    assert not hiding.evidence["robust"][hiding.evidence["borrowed"]].any()
    assert any(check.name == "black_box" and not check.passed for check in hiding.checks)
    assert not honest.evidence["borrowed"].any()
    assert honest.estimates["control_robust_accuracy"].value == hiding.estimates["control_robust_accuracy"].value
    gained = honest.evidence["robust"].to(torch.int8) - honest.evidence["control_robust"].to(torch.int8)
    assert torch.equal(gained, honest.evidence["gained"])


def _sums() -> Subject:
    """Whether the upper half of a picture is brighter than the lower one."""
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(300, 1, 5, 5, generator=draw)
    y = (x.flatten(1)[:, :12].sum(1) > x.flatten(1)[:, 12:24].sum(1)).long()
    return Subject(
        "sums",
        nn.Linear(1, 1),
        (x[:80], y[:80]),
        train=(x[80:], y[80:]),
        net=lambda: nn.Sequential(nn.Flatten(), nn.Linear(25, 2)),
    )


def test_a_defence_by_training_is_compared_with_its_control() -> None:
    subject = _sums()
    trial = evaluate(fgsm_rs, subject, ball=Ball.parse("linf:0.02"), rows=80, attack=FAST, epochs=10, doubt=False)
    assert trial.status == "ok"
    assert trial.estimates["clean_accuracy"].value > 0.75
    assert trial.estimates["control_clean_accuracy"].value > 0.75
    assert trial.params["attack"] == "evasion/pgd"
    assert trial.params["train_rows"] == 220
    without = evaluate(fgsm_rs, _subject(), ball=Ball.parse("linf:0.02"), attack=FAST)
    assert (without.status, "net" in without.reason) == ("skipped", True)


def test_a_defence_by_training_learns_from_so_many_rows_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours of training on a large data set are not asked for; the seed draws the rows, and the trial says how many."""
    monkeypatch.setattr(_defences, "LEARNT", 50)
    x, y = _sums().train  # pyright: ignore
    learnt: list[set[int]] = []

    class Told(Dataset[tuple[Tensor, Tensor]]):
        def __len__(self) -> int:
            return len(y)

        def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
            learnt[-1].add(int(row))
            return x[row], y[row]

    for seed in (0, 0, 1):
        learnt.append(set())
        subject = replace(_sums(), train=Told())
        trial = evaluate(fgsm_rs, subject, ball=Ball.parse("linf:0.02"), rows=9, attack=FAST, epochs=1, seed=seed)
        assert trial.params["train_rows"] == len(learnt[-1]) == 50
    assert learnt[0] == learnt[1] != learnt[2]


def honest_certificate(model: nn.Module, x: Tensor, *, ball: Ball) -> Certificate:
    del ball
    label = model(x).argmax(1)
    exact = model.distances(x, label, "linf")  # pyright: ignore
    return Certificate(torch.where(exact > 0.02, label, ABSTAIN), exact * 0.9, "linf")


def false_certificate(model: nn.Module, x: Tensor, *, ball: Ball) -> Certificate:
    label, radius, norm = honest_certificate(model, x, ball=ball)
    return Certificate(label, radius * 3, norm)


def test_no_attack_succeeds_inside_a_certificate_or_the_trial_fails() -> None:
    good, bad = _run(honest_certificate), _run(false_certificate)
    assert good.status == "ok"
    held = good.evidence["certified_right"]
    assert torch.equal(good.evidence["certified"], held & (good.evidence["certified_radius"] >= 0.05 * (1 - 1e-6)))
    assert bad.status == "failed"
    assert "inside their certified radius" in bad.reason


def test_an_attack_inside_a_certificate_contradicts_it() -> None:
    from buckler.evasion.judge import judge

    proof = _run(honest_certificate)
    wider = replace(proof, evidence={**proof.evidence, "certified_radius": proof.evidence["certified_radius"] * 4})
    attack = _run(pgd)
    assert not judge([attack, proof], {"linf": 0.05}, rules(), "buckler run {method}").contradictions
    assert judge([attack, wider], {"linf": 0.05}, rules(), "buckler run {method}").contradictions


def test_answers_alone_admit_what_needs_no_weights() -> None:
    labels = _subject(Oracle(_linear(), "labels"))
    scores = _subject(Oracle(_linear(), "scores"))
    for method, subject, says in (
        (pgd, scores, "weights"),
        (square, labels, "scores"),
        (gradient_norm, scores, "model"),
    ):
        trial = _run(method, subject)
        assert trial.status == "skipped"
        assert says in trial.reason
    asked = _run(partial(square, queries=60), scores)
    assert asked.status == "ok"
    assert 0 < asked.cost.queries <= 60 * 36
    assert "60 queries per row" in asked.threat.within


def test_transfer_runs_on_a_surrogate_and_is_judged_on_the_target() -> None:
    x, _ = _rows(200)
    subject = _subject(Oracle(_linear(), "labels"), train=(x, _linear()(x).argmax(1)))
    maker = partial(jbda, net=lambda: nn.Sequential(nn.Flatten(), nn.Linear(25, 3)))
    trial = _run(FAST, subject, ball="linf:0.15", through=maker)
    assert trial.status == "ok"
    assert trial.estimates["robust_accuracy"].value < 0.6
    assert "surrogate" in trial.threat.sees
    assert any("T0043.002" in tag for tag in trial.threat.tags)
    assert trial.cost.queries > 0  # what the surrogate learnt from was asked, and is paid for


def test_a_surrogate_never_learns_from_the_rows_it_attacks() -> None:
    seen: list[Tensor] = []

    def watched(oracle: LabelOracle, pool: Tensor, *, net: Callable[[], nn.Module]) -> Copy:
        seen.append(pool)
        return net()

    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(25, 3))

    x, _ = _rows(120)
    y = _linear()(x).argmax(1)
    for data in ({"train": (x[40:], y[40:])}, {}):
        subject = replace(_subject(), test=(x if not data else x[:40], y if not data else y[:40]), net=build, **data)
        _run(FAST, subject, through=watched)
    assert all(len(pool) == 80 and not (pool[:, None] == x[None, :40]).flatten(2).all(2).any() for pool in seen)
    few = _run(FAST, replace(_subject(), net=build), through=watched)
    assert (few.status, "other rows" in few.reason) == ("skipped", True)
    bare = _run(FAST, _subject(), through=watched)
    assert (bare.status, "`net`" in bare.reason) == ("skipped", True)


class Noisy(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x)
        return out + 3 * torch.randn_like(out)


def test_a_model_that_answers_at_random_is_inconclusive() -> None:
    torch.manual_seed(0)
    trial = evaluate(FAST, _subject(Noisy(_linear())), ball=Ball.parse("linf:0.01"), rows=40)
    assert trial.status == "inconclusive"
    assert any(check.name == "random" and not check.passed for check in trial.checks)


def test_memory_follows_the_batch_and_not_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    largest, x = [0], torch.rand(1500, 1, 5, 5)
    rows, real = (x, _linear()(x).argmax(1)), LinearModel.forward

    def seen(self: LinearModel, x: Tensor) -> Tensor:
        largest[0] = max(largest[0], len(x))
        return real(self, x)

    monkeypatch.setattr(LinearModel, "forward", seen)
    trial = evaluate(
        FAST,
        Subject("many", _linear(), rows),
        ball=Ball.parse("linf:0.01"),
        rows=1500,
        doubt=False,
    )
    assert trial.estimates["robust_accuracy"].n == 1500
    assert largest[0] <= 1024


def test_outcome_evidence_is_recomputable() -> None:
    trial = _run(FAST)
    for estimate in trial.estimates.values():
        assert stats.agree(stats.recompute(estimate, trial.evidence), estimate)
    assert set(Outcome().__dataclass_fields__) >= {"label", "correct", "fooled", "distance"}


def moody(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball) -> Perturbed:
    """An attack that fails at large radii."""
    far = ball.radii(x) > 0.06
    return torch.where(far, x, pgd(model, x, y, ball=ball))


@pytest.mark.parametrize("radii", [(0.001, 0.2), (0.01, 0.02, 0.05, 0.07, 0.09, 0.1, 0.2), (0.2, 0.07, 0.01)])
def test_the_radius_that_the_verdict_is_about_is_tried_on_every_row(radii: tuple[float, ...]) -> None:
    assert torch.equal(_run(moody, radii=radii).evidence["robust"], _run(moody).evidence["robust"])


def test_a_minimum_norm_attack_that_finds_nothing_is_inconclusive() -> None:
    trial = evaluate(vain, _subject(), ball=Ball.parse("linf:inf"), rows=40)
    assert trial.status == "inconclusive"
    assert {c.name for c in trial.checks if not c.passed} >= {"unbounded", "noise"}


def drawn(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball) -> Perturbed:
    """Far too large changes, which need no gradient."""
    del ball
    found = x.clone()
    for seed in range(30):
        noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed))
        standing = model(found).argmax(1) == y
        found[standing] = noise[standing]
    return found


def test_distances_under_doubt_are_inconclusive_though_every_row_fell() -> None:
    trial = evaluate(drawn, _subject(Quantised(_linear(), False)), ball=Ball.parse("linf:inf"), rows=40)
    assert not trial.evidence["robust"].any()
    assert trial.status == "inconclusive"


def test_the_draws_of_a_random_model_belong_to_the_trial() -> None:
    one, two = (_run(FAST, _subject(Noisy(_linear()))) for _ in range(2))
    assert torch.equal(one.evidence["distance"], two.evidence["distance"])
    before = torch.get_rng_state()
    _run(FAST, _subject(Noisy(_linear())))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_method_that_asks_runs_through_a_surrogate_behind_a_door() -> None:
    trial = _run(partial(square, queries=50), through=_linear(), ball="linf:0.3")
    assert trial.estimates["robust_accuracy"].value < 0.5
    assert trial.cost.queries == 0


def test_the_record_says_what_the_model_answered_and_which_doubts_were_left_out() -> None:
    trial = _run(pgd)
    x, _ = _rows()
    assert torch.equal(trial.evidence["prediction"][:4], _linear()(x[:4]).argmax(1))
    assert trial.params["doubt"] is False


class Coarse(Quantised):
    """A guard whose surrogate turns a little before the guard does."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x * 12).round() / 12)

    def surrogate(self) -> nn.Module:
        return self.inner


def coarse(model: nn.Module) -> Defended:
    return Coarse(model, True)


def timid(model: nn.Module, x: Tensor, y: Tensor, *, ball: Ball) -> Perturbed:
    """Stops where the surrogate's answer turns, and cannot be asked to go on."""
    return pgd(model, x, y, ball=ball)


def test_a_guard_earns_nothing_from_an_attack_that_stops_too_soon() -> None:
    ball = Ball.parse("linf:0.1")
    weak = evaluate(coarse, _subject(), ball=ball, rows=40, attack=timid, doubt=False)
    full = evaluate(coarse, _subject(), ball=ball, rows=40, attack=partial(pgd, stop=False), doubt=False)
    assert weak.estimates["robust_accuracy"].value <= full.estimates["robust_accuracy"].value
