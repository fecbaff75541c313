"""What is measured of a claim, and what a reader is told of it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from owned_worlds import blobs, small, subject, taught
from torch import nn

from buckler import stats
from buckler.catalog import cards, find
from buckler.claims import pruned, quantised
from buckler.data import Rows
from buckler.findings import Severity, rules
from buckler.kinds import Claim, Owned
from buckler.target import Oracle
from buckler.theft._judged_owned import of_ownership
from buckler.theft._owned import INDEPENDENT, NOBODY, REMOVALS, _measured
from buckler.theft.evaluate import evaluate
from buckler.trial import Trial, load, save

METHODS = [card.path for card in cards("theft") if card.kind == "own"]
LESS: dict[str, dict[str, Any]] = {
    "theft/fingerprint": {"references": 2, "points": 10, "steps": 5},
    "theft/dataset_inference": {"directions": 1, "steps": 4},
    "theft/radioactive_data": {"steps": 3, "epochs": 2},
    "theft/entangled": {"patterns": 40, "epochs": 2},
    "theft/watermark": {"triggers": 30, "per_batch": 30, "epochs": 30, "batch": 32},
}


@pytest.fixture(scope="module")
def marked() -> Trial:
    return evaluate(partial(find("theft/watermark"), **LESS["theft/watermark"]), subject(), training_epochs=5)


@pytest.mark.parametrize("path", METHODS)
def test_every_claim_can_be_measured(path: str, tmp_path: Path) -> None:
    rows = blobs(120, seed=1)
    before = rows[0].clone()
    given = replace(subject(120), train=rows)
    trial = evaluate(partial(find(path), **LESS[path]), given, training_epochs=1)
    assert trial.status == "ok"
    assert torch.equal(rows[0], before)
    for group in ("own", *REMOVALS):
        assert 0 <= float(trial.evidence[f"p_{group}"]) <= 1
    assert trial.evidence["p_independent"].shape == (INDEPENDENT,)
    assert ("p_unmarked" in trial.evidence) == (path not in ("theft/fingerprint", "theft/dataset_inference"))
    save(trial, tmp_path / "trial")
    assert load(tmp_path / "trial").estimates.keys() == trial.estimates.keys()


def test_a_watermark_is_claimed_where_it_is_and_nowhere_else(marked: Trial) -> None:
    p = {name[2:]: values for name, values in marked.evidence.items() if name.startswith("p_")}
    assert float(p["own"]) < 1e-3
    assert float(p["quantised"]) < 1e-3
    assert float(p["unmarked"]) > 0.01
    assert marked.estimates["false_claims"].value == 0
    assert marked.cost.queries == 30 * (1 + len(REMOVALS) + 1 + INDEPENDENT)
    (finding,) = of_ownership([marked], rules(), "buckler run {method}").findings
    assert (finding.state, finding.severity) == ("found", Severity.info)
    assert "claims none of 5 independent models. It claims the owner's own model" in finding.claim
    assert "the owner's model" in (finding.figures[0].svg or "")
    assert finding.tables["claims-watermark.csv"].count("independent") == INDEPENDENT


def test_a_claim_of_the_innocent_is_loud(marked: Trial) -> None:
    """One of five at 1 % is what chance does in every twentieth trial, two are not."""
    (once,) = of_ownership([_claiming(marked, 1)], rules(), "buckler run {method}").findings
    assert (once.severity, once.because, once.remedy) == (Severity.info, "", "")
    assert "claims 1 of 5 independent models, which chance does in 5 % of such trials at most." in once.claim
    assert "prove nothing" not in once.claim
    (finding,) = of_ownership([_claiming(marked, 2), marked], rules(), "buckler run {method}").findings
    assert (finding.state, finding.severity) == ("found", Severity.high)
    assert "At the least 0.0527 of independent models" in finding.because
    assert "claims 2 of 5 independent models, which chance does in 2.5 % of such trials at most: its" in finding.claim


def _claiming(marked: Trial, many: int) -> Trial:
    p = marked.evidence["p_independent"].clone()
    p[:many] = 0.001
    evidence = {**marked.evidence, "p_independent": p, "claimed_independent": p <= 0.01}
    wrong = stats.share(evidence["claimed_independent"], "claimed_independent")
    return replace(marked, evidence=evidence, estimates={**marked.estimates, "false_claims": wrong})


def test_the_doubt_is_about_more_claims_than_chance_makes(marked: Trial) -> None:
    assert marked.checks[0].name == NOBODY
    for many, sound in ((0, True), (1, True), (2, False)):
        given = _claiming(marked, many)
        evidence = {name: given.evidence[name] for name in given.evidence if name != "lost"}
        assert _measured(given, evidence, 0).checks[0].passed == sound


def test_a_seed_of_63_bits_is_a_seed() -> None:
    trial = evaluate(
        partial(find("theft/watermark"), **LESS["theft/watermark"]), subject(80), training_epochs=1, seed=2**63 - 1
    )
    assert trial.status == "ok"


def test_a_claim_that_is_no_probability_is_said() -> None:
    def lying(model: nn.Module, data: Rows) -> Owned:
        def claim(suspect: nn.Module | Oracle) -> Claim:
            return Claim(1.5, 0)

        return Owned(claim)

    with pytest.raises(ValueError, match=r"p-value in \[0, 1\], got 1.5"):
        evaluate(lying, subject(80), training_epochs=1)


def test_what_cannot_be_measured_is_said() -> None:
    one = subject(80)
    reasons = {
        "its `train`": replace(one, train=None),
        "its `net`": replace(one, net=None, recipe=lambda data: taught((data[0], data[1]), 0)),  # pyright: ignore
        "60 training rows": replace(one, train=blobs(59)),
    }
    for words, given in reasons.items():
        trial = evaluate(find("theft/watermark"), given)
        assert trial.status == "skipped"
        assert words in trial.reason
    by_recipe = replace(one, net=None, recipe=lambda data: taught((data[0], data[1]), 0, 1))  # pyright: ignore
    assert evaluate(partial(find("theft/dataset_inference"), directions=1, steps=3), by_recipe).status == "ok"


def test_half_of_the_weights_are_pruned_and_rounding_moves_them_by_half_a_step() -> None:
    model = small()
    weights = [p for p in pruned(model, 0.5).parameters() if p.ndim > 1]
    zero = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert zero == pytest.approx(0.5, abs=0.01)
    assert not any(bool((w == 0).any()) for w in model.parameters() if w.ndim > 1), "a copy"
    before, after = (one.get_parameter("1.weight").detach() for one in (model, quantised(model)))
    step = before.abs().amax(1, keepdim=True) / 127
    assert bool(((after - before).abs() <= step / 2 + 1e-7).all())
    assert float((after / step).round().sub(after / step).abs().max()) < 1e-3
