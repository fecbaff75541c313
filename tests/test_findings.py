"""Findings, severity and the one verdict."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from buckler.findings import (
    EXIT_CODES,
    Figure,
    Finding,
    NotMeasured,
    Report,
    Severity,
    State,
    because,
    rules,
    severity,
    verdict,
)
from buckler.stats import Estimate, share


def made(identity: str, state: State, grade: Severity = Severity.info) -> Finding:
    return Finding(
        id=identity, title=identity, state=state, severity=grade, claim="It is so.", cell=("queries", "integrity")
    )


def report(*findings: Finding, gate: Severity = Severity.high, contradictions: tuple[str, ...] = ()) -> Report:
    return Report(name="m", created="now", subject={}, findings=findings, gate=gate, contradictions=contradictions)


def at(low: float, value: float, high: float) -> Estimate:
    return Estimate(value, low, high, 100, 0.95, "share of robust")


def test_severities_are_ordered() -> None:
    assert sorted([Severity.high, Severity.info, Severity.critical, Severity.low, Severity.medium]) == list(Severity)
    assert Severity.high >= Severity.high > Severity.medium
    assert Severity.parse("low") is Severity.low
    with pytest.raises(ValueError, match="expected a severity out of info, low"):
        Severity.parse("severe")


@pytest.mark.parametrize("bare", [0.31, 1, "31%", None, (0.31, 0.2, 0.4)])
@pytest.mark.parametrize("place", ["estimates", "remedied"])
def test_a_bare_number_is_refused(bare: object, place: str) -> None:
    with pytest.raises(ValueError, match="expected an Estimate"):
        Finding(
            id="a",
            title="a",
            state="clear",
            claim="a",
            cell=("queries", "integrity"),
            **{place: {"robust accuracy": bare}},  # pyright: ignore[reportArgumentType]
        )


def test_bad_findings_are_refused() -> None:
    with pytest.raises(ValueError, match="finding id"):
        made("<script>", "clear")
    with pytest.raises(ValueError, match="expected a state"):
        made("a", "fine")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="severity info"):
        made("a", "clear", Severity.high)
    with pytest.raises(ValueError, match="expected a cell"):
        NotMeasured("a", "b", ("queries", "beauty"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="catalogue"):
        Finding(
            id="a", title="a", state="clear", claim="a", cell=("data", "integrity"), tags=("atlas:AML.T9999@5.6.0",)
        )
    with pytest.raises(ValueError, match="twice"):
        report(made("a", "clear"), made("a", "clear"))
    with pytest.raises(ValueError, match="either svg or png"):
        Figure("a", "b", "c")
    with pytest.raises(ValueError, match="alt"):
        Figure("a", "b", "", svg="<svg/>")


# the verdict, against a table written by hand: (states and severities, gate, contradictions) -> outcome
TABLE: list[tuple[list[tuple[State, Severity]], Severity, bool, str]] = [
    ([], Severity.high, False, "not measured"),
    ([("not measured", Severity.info)], Severity.high, False, "not measured"),
    ([("clear", Severity.info)], Severity.high, False, "pass"),
    ([("clear", Severity.info), ("not measured", Severity.info)], Severity.high, False, "not measured"),
    ([("found", Severity.low), ("not measured", Severity.info)], Severity.high, False, "not measured"),
    ([("found", Severity.high), ("not measured", Severity.info)], Severity.high, False, "fail"),
    ([("found", Severity.info)], Severity.high, False, "not measured"),  # it informs: no rule judged it
    ([("found", Severity.info), ("clear", Severity.info)], Severity.high, False, "pass"),
    ([("found", Severity.medium)], Severity.high, False, "pass"),
    ([("found", Severity.high)], Severity.high, False, "fail"),
    ([("found", Severity.medium)], Severity.medium, False, "fail"),
    ([("found", Severity.critical)], Severity.high, False, "fail"),
    ([("error", Severity.info)], Severity.high, False, "error"),
    ([("error", Severity.info), ("clear", Severity.info)], Severity.high, False, "error"),
    ([("error", Severity.info), ("found", Severity.low)], Severity.high, False, "error"),
    ([("error", Severity.info), ("found", Severity.high)], Severity.high, False, "fail"),
    ([("found", Severity.critical)], Severity.high, True, "error"),
    ([], Severity.high, True, "error"),
]


@pytest.mark.parametrize(("findings", "gate", "contradicting", "outcome"), TABLE)
def test_the_verdict(findings: list[tuple[State, Severity]], gate: Severity, contradicting: bool, outcome: str) -> None:
    for order in itertools.permutations(findings):
        made_up = [made(f"f{i}", state, grade) for i, (state, grade) in enumerate(order)]
        ruling = verdict(report(*made_up, gate=gate, contradictions=("a > b",) if contradicting else ()))
        assert ruling.outcome == outcome
        assert ruling.exit_code == {"pass": 0, "fail": 1, "error": 2, "not measured": 3}[outcome]
        assert ruling.exit_code == EXIT_CODES[ruling.outcome]
        assert ruling.says.endswith(".")
        assert "\n" not in ruling.says


def test_what_was_measured_and_is_not_graded_is_told_from_what_could_not_be_measured() -> None:
    assert "not graded" in verdict(report(made("a", "found"))).says
    for unmeasured in (report(), report(made("a", "not measured"))):
        assert verdict(unmeasured).says.startswith("Nothing could be measured")


def test_the_worse_end_of_the_interval_decides() -> None:
    levels = rules()["evasion.robust_accuracy"].levels
    grades = [severity("evasion.robust_accuracy", at(p, min(1, p + 0.2), 1)) for p in (0.0, 0.2, 0.5, 0.8, 0.9)]
    assert grades == [Severity.critical, Severity.high, Severity.medium, Severity.low, Severity.info]
    assert severity("evasion.robust_accuracy", at(levels[Severity.high], 0.9, 1)) is Severity.high, "thresholds count"
    assert severity("theft.agreement", at(0.1, 0.2, 0.95)) is Severity.high
    assert severity("theft.agreement", at(0.1, 0.2, 0.3)) is Severity.info
    assert "0.95, is at or above 0.9, the threshold for high (theft.agreement)" in because(
        "theft.agreement", at(0, 0.2, 0.95)
    )
    assert because("theft.agreement", at(0, 0.2, 0.95), of="agreement").startswith(
        "The upper end of the interval of agreement,"
    )
    assert "not at or below any threshold" in because("evasion.robust_accuracy", at(0.95, 0.97, 1))


@pytest.mark.parametrize("path", rules())
def test_worse_numbers_are_never_milder(path: str) -> None:
    rule = rules()[path]
    most = max(1.0, *(2 * level for level in rule.levels.values()))  # what is no share may pass 1
    worse_first = [most * i / 200 for i in range(201)]
    worse_first = worse_first if rule.worse == "small" else worse_first[::-1]
    grades = [severity(path, at(p, p, p)) for p in worse_first]
    assert grades == sorted(grades, reverse=True)
    assert grades[-1] is Severity.info
    assert grades[0] is max(rule.levels)
    assert rule.says


def test_few_rows_do_not_make_a_pass() -> None:
    assert severity("evasion.robust_accuracy", share(torch.ones(5), "robust")) >= Severity.medium
    assert severity("evasion.robust_accuracy", share(torch.ones(500), "robust")) is Severity.info


def test_the_table_can_be_overridden() -> None:
    own = rules(
        {"evasion": {"robust_accuracy": {"high": 0.3, "low": False}}, "mine": {"x": {"worse": "large", "high": 2}}}
    )
    assert severity("evasion.robust_accuracy", at(0.35, 0.5, 0.6), own) is Severity.medium
    assert severity("evasion.robust_accuracy", at(0.8, 0.9, 1), own) is Severity.info
    assert severity("mine.x", at(0, 1, 2), own) is Severity.high
    assert rules()["evasion.robust_accuracy"].levels[Severity.high] == 0.4, "the package's table is untouched"
    with pytest.raises(ValueError, match="expected a severity rule out of"):
        severity("mine.x", at(0, 1, 2))


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"evasion": {"robust_accuracy": {"high": "much"}}}, "expected a number or false"),
        ({"evasion": {"robust_accuracy": {"high": True}}}, "expected a number or false"),
        ({"evasion": {"robust_accuracy": {"high": math.nan}}}, "expected a number or false"),
        ({"evasion": {"robust_accuracy": {"high": 0.9}}}, "in the order of the levels"),
        ({"theft": {"agreement": {"critical": 0.1}}}, "in the order of the levels"),
        ({"evasion": {"robust_accuracy": {"hihg": 0.3}}}, "hihg"),
        ({"mine": {"x": {"high": 0.9}}}, "worse"),
        ({"evasion": {"robust_accuracy": 0.3}}, "expected a table"),
        ({"evasion": 0.3}, "expected a table"),
    ],
)
def test_a_bad_table_is_refused(own: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        rules(own)


def test_what_was_not_measured_has_no_severity() -> None:
    with pytest.raises(ValueError, match="not measured"):
        severity("evasion.robust_accuracy", share(torch.zeros(0), "robust"))
