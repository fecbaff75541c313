"""How evasion is measured and judged: against planted encoders, planted cheats, and a planted false proof."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from buckler.data import Rows
from buckler.encoders._evaded import LEGAL, NOISE, noise, said, strongest
from buckler.encoders._hardened import BLIND, MORE, _blindly  # pyright: ignore[reportPrivateUsage]
from buckler.encoders._judged_evasion import of_evasion
from buckler.encoders.adversarial_contrastive import adversarial_contrastive
from buckler.encoders.evaluate import evaluate
from buckler.encoders.feature_pgd import feature_pgd
from buckler.encoders.judge import judge
from buckler.encoders.smoothed_probe import smoothed_probe
from buckler.findings import Severity, rules
from buckler.kinds import Certificate, Perturbed
from buckler.nets import LinearModel
from buckler.stats import agree, recompute
from buckler.subject import Subject
from buckler.threat import Ball
from buckler.trial import Trial

QUICK = partial(feature_pgd, steps=10, restarts=1)
LIMIT = Ball("linf", 0.1)


class Deaf(nn.Module):
    """Features that no change below a half changes: which elements are bright."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x > 0.5).flatten(1).to(x)


def too_far(encoder: nn.Module, x: Tensor, *, ball: Ball) -> Perturbed:
    del encoder, ball
    return 1 - x


def idle(encoder: nn.Module, x: Tensor, *, ball: Ball) -> Perturbed:
    del encoder, ball
    return x


def boastful(
    encoder: nn.Module, x: Tensor, *, data: Rows, sigma: float = 0.1, copies: int = 1, seed: int = 0
) -> Certificate:
    label, radius, norm = smoothed_probe(encoder, x, data=data, sigma=sigma, copies=copies, samples=100, seed=seed)
    return Certificate(label, radius + 3, norm)


@pytest.fixture(scope="module")
def given(subject: Subject, encoder: nn.Module) -> Subject:
    return replace(subject, encoder=encoder)


@pytest.fixture(scope="module")
def bright(subject: Subject, unseen: Rows) -> Subject:
    """Images of black and white, and an encoder that the limit cannot touch."""
    return replace(subject, encoder=Deaf(), test=((unseen[0] > 0.5).float(), unseen[1]))


@pytest.fixture(scope="module")
def attacked(given: Subject) -> Trial:
    return evaluate(QUICK, given, rows=40)


def test_examples_made_on_the_encoder_turn_its_tasks_and_noise_does_not(attacked: Trial) -> None:
    e, found = attacked.evidence, attacked.estimates
    assert attacked.status == "ok"
    assert attacked.params["tasks"] == ["labels", "pairs"]
    assert not bool((e["robust"] & ~e["correct"]).any())
    assert found["took"].low > 0
    assert found["took"].value > 3 * abs(found["shook"].value)
    assert found["known_correct"].value <= found["robust"].value
    assert found["pairs_robust"].value < found["pairs_correct"].value
    assert all(agree(estimate, recompute(estimate, e)) for estimate in found.values())


def test_what_is_imitated_is_answered(given: Subject) -> None:
    trial = evaluate(partial(QUICK, targeted=True), replace(given, limits=(Ball("linf", 0.3),)), rows=40)
    assert trial.estimates["imitated"].low > trial.estimates["noise_imitated"].high
    assert trial.params["ball"] == "linf:0.3"


def test_an_encoder_that_the_limit_cannot_touch_is_clear(bright: Subject) -> None:
    trial = evaluate(QUICK, bright, rows=200)
    assert torch.equal(trial.evidence["robust"], trial.evidence["correct"])
    assert torch.equal(trial.evidence["known_correct"], trial.evidence["correct"])
    verdicts, rows = of_evasion([trial], rules({"encoders": {"evasion_accuracy": {"low": 0.6, "medium": 0.5}}}), "")
    assert verdicts.findings[0].state == "clear"
    assert rows[0].effect.value == trial.estimates["correct"].value


def test_an_attack_too_weak_to_turn_what_another_does_clears_nothing(given: Subject) -> None:
    trial = evaluate(idle, given, rows=40)
    assert torch.equal(trial.evidence["robust"], trial.evidence["correct"])
    between = (trial.estimates["known_correct"].value + trial.estimates["robust"].value) / 2
    assert trial.estimates["known_correct"].value < between < trial.estimates["robust"].value
    found = of_evasion(
        [trial],
        rules(
            {"encoders": {"evasion_accuracy": {"low": between} | dict.fromkeys(("medium", "high", "critical"), False)}}
        ),
        "",
    )[0].findings[0]
    assert found.severity == Severity.info
    assert found.state == "found"


def test_an_example_outside_the_limit_counts_for_nothing(given: Subject) -> None:
    trial = evaluate(too_far, given, rows=20)
    assert torch.equal(trial.evidence["robust"], trial.evidence["correct"])
    assert [check.passed for check in trial.checks if check.name == LEGAL] == [False]


def test_the_finding_rests_on_the_worst_case_per_row(attacked: Trial, given: Subject) -> None:
    other = evaluate(idle, given, rows=40)
    planted = other.evidence["robust"].clone()
    planted[:20] = False
    other = replace(other, evidence={**other.evidence, "robust": planted})
    verdicts = judge([attacked, other], {}, rules(), "buckler run {method}")
    table, found = verdicts.findings
    assert found.id == "encoders/evasion"
    assert found.severity >= Severity.high
    both = float((attacked.evidence["robust"] & planted).double().mean())
    assert next(iter(found.estimates.values())).value == pytest.approx(both)
    assert table.grid[9][0].startswith("9. Evasion")
    assert "not measured" not in table.grid[9][2]
    assert {figure.name for figure in found.figures} == {"evasion", "evasion-examples"}
    assert "--ball linf:0.1" in found.reproduce


def test_a_false_proof_contradicts_itself(given: Subject) -> None:
    trial = evaluate(boastful, given, rows=20)
    assert trial.status == "failed"
    verdicts, _ = of_evasion([trial], rules(), "")
    assert len(verdicts.contradictions) == 1
    assert verdicts.findings == ()


def test_an_honest_proof_stands(given: Subject) -> None:
    trial = evaluate(partial(smoothed_probe, samples=100), given, rows=20, ball=Ball("l2", 0.1))
    assert trial.status == "ok"
    assert trial.estimates["certified"].value <= trial.estimates["stands"].value
    verdicts, _ = of_evasion([trial], rules(), "")
    assert verdicts.findings[0].id == "encoders/evasion/certificate/smoothed_probe"
    with pytest.raises(ValueError, match="a limit in l2"):
        evaluate(partial(smoothed_probe, samples=100), given, rows=20, ball=LIMIT)


def test_pretraining_against_it_is_measured_beside_plain_pretraining(subject: Subject) -> None:
    trial = evaluate(partial(adversarial_contrastive, radius=0.05), subject, rows=20, encoder_steps=10)
    e = trial.evidence
    assert trial.params["ball"] == "linf:0.05"
    assert not bool((e["known_correct"] & ~e["robust"]).any())
    assert BLIND in {check.name for check in trial.checks}
    gained = e["known_correct"].double() - e["control_known_correct"].double()
    assert trial.estimates["gained"].value == pytest.approx(float(gained.mean()))
    verdicts, rows = of_evasion([replace(trial, status="ok")], rules(), "buckler run {method}")
    assert verdicts.findings[0].id == "encoders/evasion/pretraining"
    assert rows == ()


class Masked(nn.Module):
    """A linear classifier through a gate: rounding leaves gradients nothing to follow."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.scale = model, nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.model((x * 50).round() / 50)


def test_what_gradients_cannot_find_a_search_without_them_does() -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 64, generator=draw)
    plain = LinearModel(weight.flatten(1), -0.5 * weight.sum(1))
    model, ball = Masked(nn.Sequential(nn.Flatten(), plain)).eval(), Ball("linf", 0.2)
    x = 0.2 + 0.6 * torch.rand(20, 1, 8, 8, generator=draw)
    y, rows = said(model, x), torch.arange(20)
    stands = said(model, strongest(model, x, y, ball, 0, steps=5)) == y
    assert _blindly(model, x, y, rows[stands], ball, 0) > MORE


def test_the_reference_meets_a_linear_classifier_where_it_has_to() -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 6, generator=draw)
    model = LinearModel(weight, -0.5 * weight.sum(1))
    x = 0.2 + 0.6 * torch.rand(60, 6, generator=draw)
    y = said(model, x)
    near = model.distances(x, y, "linf") < 0.03
    turned = said(model, strongest(model, x, y, Ball("linf", 0.03), 0)) != y
    assert 5 < int(near.sum()) < 55
    assert torch.equal(turned, near)


def test_noise_is_as_large_as_the_limit(subject: Subject) -> None:
    x = torch.full((3, 1, 8, 8), 0.5)
    for ball in (LIMIT, Ball("l2", 0.5)):
        size = ball.size(noise(x, ball, 0) - x)
        torch.testing.assert_close(size, torch.full((3,), float(ball.radius)))
    with pytest.raises(ValueError, match="a radius above 0 that ends"):
        evaluate(QUICK, subject, rows=20, ball=Ball("linf", float("inf")))


def test_noise_that_does_as_much_is_told(given: Subject) -> None:
    trial = evaluate(idle, given, rows=40, ball=Ball("linf", 0.6))
    assert [check.passed for check in trial.checks if check.name == NOISE] == [False]
