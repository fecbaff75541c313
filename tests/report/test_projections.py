"""All outputs are views of one record: they agree, they survive hostile texts, and the record comes back."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import cast
from xml.etree import ElementTree as XML

import pytest
from sample import findings, sample

from buckler.findings import PROPERTIES, STAGES, Figure, Finding, NotMeasured, Report, Severity, verdict
from buckler.report import html, json_, junit, markdown, sarif
from buckler.report.render import render
from buckler.stats import Estimate
from buckler.threat import Threat
from buckler.trial import Check, Cost

HOSTILE = (
    "<script>alert(1)</script>\"'`|[x](javascript:x)![p](http://e.vil/p.png)"
    "$\\frac${{ 7*7 }}{% raw %}\x00\x1b[31m\ud800&lt;"
)
SAMPLE = sample()
ERROR = Finding(
    id="broken", title="A check broke", state="error", claim="The attack ran out of memory.", cell=("data", "integrity")
)
CLEAR = tuple(f for f in SAMPLE.findings if f.state == "clear")
MILD = tuple(f for f in SAMPLE.findings if f.severity == Severity.medium)

REPORTS = {
    "fail": SAMPLE,
    "fail beside an error": replace(SAMPLE, findings=(*SAMPLE.findings, ERROR)),
    "fail at a lower gate": replace(SAMPLE, findings=MILD, gate=Severity.low),
    "pass below the gate": replace(SAMPLE, findings=(*MILD, *CLEAR)),
    "pass": replace(SAMPLE, findings=CLEAR, not_measured=()),
    "error": replace(SAMPLE, findings=(ERROR, *CLEAR)),
    "contradiction": replace(SAMPLE, contradictions=("Certified accuracy 40% is above robust accuracy 13%.",)),
    "nothing measured": replace(SAMPLE, findings=tuple(f for f in SAMPLE.findings if f.state == "not measured")),
    "empty": Report(name="empty", created="2026-11-21T10:12:41+00:00", subject={}),
}


class Page(HTMLParser):
    """What a page asks a browser to load or run, the texts it shows, and how its elements nest."""

    VOID = ("meta", "img", "line", "rect", "br", "link", "input")

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.shown: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == [], f"unclosed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.shown.append(data)


def from_junit(text: str) -> str:
    """The outcome that a panel of test results would conclude."""
    root = XML.fromstring(text)
    assert root.find(".//testcase[@classname='contradictions']/error") is None or int(root.attrib["errors"]) > 0
    if root.find(".//testcase[@classname='contradictions']") is not None:
        return "error"
    if int(root.attrib["failures"]):
        return "fail"
    if int(root.attrib["errors"]):
        return "error"
    undecided = [case for case in root.iter("testcase") if case.find("skipped") is not None]
    if any(case.attrib["classname"] != "not measured" for case in undecided):
        return "not measured"
    return "not measured" if int(root.attrib["skipped"]) == int(root.attrib["tests"]) else "pass"


def from_sarif(text: str) -> str:
    """The outcome by SARIF's own fields, not by the property that names it."""
    run = json.loads(text)["runs"][0]
    return {0: "pass", 1: "fail", 2: "error", 3: "not measured"}[run["invocations"][0]["exitCode"]]


@pytest.mark.parametrize("name", REPORTS)
def test_all_outputs_say_the_same(name: str) -> None:
    report = REPORTS[name]
    ruling = verdict(report)
    assert json_.record(report)["verdict"] == {
        "outcome": ruling.outcome,
        "exit_code": ruling.exit_code,
        "says": ruling.says,
    }
    assert from_junit(junit.text(report)) == ruling.outcome
    assert from_sarif(sarif.text(report)) == ruling.outcome
    assert f"**{ruling.outcome.capitalize()}** (exit code {ruling.exit_code})" in markdown.text(report)
    page = Page(html.text(report))
    assert (
        "section",
        {"class": f"verdict {ruling.outcome.replace(' ', '-')}", "aria-labelledby": "verdict"},
    ) in page.tags
    assert ruling.says in page.shown


@pytest.mark.parametrize("name", REPORTS)
def test_the_record_comes_back(name: str, tmp_path: Path) -> None:
    report = REPORTS[name]
    paths = render(report, tmp_path)
    assert {key: path.name for key, path in paths.items()} == {
        key: f"report.{key}" for key in ("json", "html", "md", "sarif", "xml")
    }
    again = json_.read(paths["json"])
    assert again == report
    assert {key: path.read_bytes() for key, path in render(again, tmp_path / "again").items()} == {
        key: path.read_bytes() for key, path in paths.items()
    }
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted(p.name for p in paths.values())


def test_figures_and_odd_numbers_come_back(tmp_path: Path) -> None:
    odd = Finding(
        id="odd",
        title="t",
        state="clear",
        claim="c",
        cell=("queries", "integrity"),
        estimates={
            "none": Estimate(float("nan"), float("nan"), float("nan"), 0, 0.95, "share of x"),
            "far": Estimate(float("inf"), 0.5, float("inf"), 3, 0.95, "median of x"),
        },
        checks=(Check("c", True, "s", float("inf")),),
        figures=(Figure("p", "c", "a", png=b"\x89PNG\x00\xff"),),
    )
    report = sample(findings=(odd,), trials=({"params": {"radius": float("inf")}},))
    again = json_.read(render(report, tmp_path)["json"])
    assert json_.record(again) == json_.record(report)
    assert again.findings[0].figures == odd.figures
    assert again.findings[0].checks == odd.checks
    assert again.findings[0].estimates["far"].value == float("inf")
    assert "no rows" in html.text(report)


def test_the_record_fits_its_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((Path(json_.__file__).parent / "report.schema.json").read_text("utf8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    for report in REPORTS.values():
        jsonschema.validate(json.loads(json_.text(report)), schema, cls=jsonschema.Draft202012Validator)
    broken = json.loads(json_.text(SAMPLE))
    broken["findings"][0]["estimates"]["robust accuracy at linf:0.1"] = 0.13
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema, cls=jsonschema.Draft202012Validator)


def test_the_schema_names_every_field_that_is_written() -> None:
    schema = json.loads((Path(json_.__file__).parent / "report.schema.json").read_text("utf8"))
    record = json_.record(SAMPLE)
    finding = cast("list[dict[str, object]]", record["findings"])[0]
    known = schema["$defs"]
    for written, said in ((record, schema), (finding, known["finding"]), (asdict(Cost()), known["cost"])):
        assert set(written) - {"digest"} == set(said["properties"]) - {"digest"}
    assert set(finding) == set(known["finding"]["required"])


def test_a_table_of_texts_is_shown_with_its_head() -> None:
    page = Page(html.text(SAMPLE))
    bare = Page(html.text(replace(SAMPLE, findings=tuple(replace(f, grid=()) for f in SAMPLE.findings))))
    cells, heads = (
        [tag for tag, _ in page.tags].count(tag) - [tag for tag, _ in bare.tags].count(tag) for tag in ("td", "th")
    )
    assert (cells, heads) == (2, 4), "the first of a row is its head"
    assert "\n| copy | agreement |\n| --- | --- |\n| by knockoff | 73% |\n" in markdown.text(SAMPLE)


def altered(**changes: object) -> str:
    return json.dumps({**json.loads(json_.text(SAMPLE)), **changes})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "expected a report.json"),
        ("[]", "expected a report.json, got list"),
        ("{}", "expected a report of schema buckler/report/1, got None"),
        ('{"schema": "buckler/report/1"}', "without or with a wrong 'name'"),
        (altered(schema="buckler/report/2"), "buckler/report/2"),
        (altered(verdict={"outcome": "pass", "exit_code": 0, "says": "x"}), "altered"),
        (altered(findings=[]), "altered"),
        (altered(gate="severe"), "expected a severity"),
    ],
)
def test_a_bad_record_is_one_sentence(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(content, "utf8")
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        json_.read(path)
    assert str(path) in str(caught.value)
    with pytest.raises(ValueError, match="expected a report.json"):
        json_.read(tmp_path / "absent.json")


def hostile() -> Report:
    finding = replace(
        findings()[0],
        title=HOSTILE,
        because=HOSTILE,
        claim=HOSTILE,
        estimates={HOSTILE: findings()[0].estimates["robust accuracy at linf:0.1"]},
        threat=Threat(HOSTILE, HOSTILE, HOSTILE, HOSTILE),
        checks=(Check(HOSTILE, False, HOSTILE),),
        figures=(Figure(HOSTILE, HOSTILE, HOSTILE, svg=f'<svg onload="alert(1)">{HOSTILE}</svg>'),),
        remedy=HOSTILE,
        remedy_methods=(HOSTILE,),
        remedied={HOSTILE: findings()[0].estimates["robust accuracy at linf:0.1"]},
        trials=(HOSTILE,),
        reproduce=f"{HOSTILE}\n```\nrm",
        grid=((HOSTILE, "b"), ("c", f"{HOSTILE}|{HOSTILE}")),
    )
    trial: dict[str, object] = {
        "method": HOSTILE,
        "status": HOSTILE,
        "params": {HOSTILE: HOSTILE},
        "fingerprint": HOSTILE,
    }
    return Report(
        name=HOSTILE,
        created=HOSTILE,
        subject={HOSTILE: HOSTILE, "file": HOSTILE},
        plan={"name": HOSTILE, HOSTILE: HOSTILE},
        findings=(finding,),
        not_measured=(NotMeasured(HOSTILE, HOSTILE, ("data", "integrity")),),
        contradictions=(HOSTILE,),
        trials=(trial,),
        severities={HOSTILE: {"says": HOSTILE, "worse": "small", "high": 1}},
        versions={HOSTILE: HOSTILE, "buckler": HOSTILE},
    )


def test_hostile_texts_stay_texts_in_html() -> None:
    plain, nasty = Page(html.text(SAMPLE)), Page(html.text(hostile()))
    assert {tag for tag, _ in nasty.tags} <= {tag for tag, _ in plain.tags}
    assert not any(tag == "script" for tag, _ in nasty.tags)
    attributes = {name for _, attrs in plain.tags for name in attrs}
    assert {name for _, attrs in nasty.tags for name in attrs} <= attributes
    assert not any(name.startswith("on") for name in attributes)
    assert "{{ 7*7 }}" in "".join(nasty.shown)


@pytest.mark.parametrize("report", [SAMPLE, hostile()], ids=["sample", "hostile"])
def test_the_page_loads_nothing(report: Report) -> None:
    source = html.text(report)
    page = Page(source)
    for tag, attrs in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form", "audio", "video")
        assert "style" not in attrs
        for name in ("src", "srcset", "href", "data", "action", "poster", "background"):
            value = attrs.get(name)
            assert value is None or value.startswith("#" if tag == "a" else "data:image/"), (tag, name, value)
    styles = "".join(re.findall(r"<style>(.*?)</style>", source, re.DOTALL))
    assert "url(" not in styles
    assert "@import" not in styles
    if report is SAMPLE:
        assert not re.search(r"https?:", source)
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


def test_the_page_can_be_read_by_everybody() -> None:
    page = Page(html.text(SAMPLE))
    names = [tag for tag, _ in page.tags]
    levels = [int(tag[1]) for tag in names if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False)), levels
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
    assert all(attrs.get("aria-label") for tag, attrs in page.tags if tag == "svg")
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in page.tags if tag == "th")
    identities = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(identities) == len(set(identities))
    targets = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    assert targets <= {f"#{identity}" for identity in identities}
    assert ("html", {"lang": "en"}) in page.tags


def test_the_map_shows_every_cell() -> None:
    page = Page(html.text(SAMPLE))
    cells = [attrs for tag, attrs in page.tags if tag == "td" and "data-stage" in attrs]
    assert len(cells) == len(STAGES) * len(PROPERTIES)
    shown = {(cell["data-stage"], PROPERTIES[i // len(STAGES)]): cell["class"] for i, cell in enumerate(cells)}
    assert shown["queries", "integrity"] == "critical", "the gravest of two is shown"
    assert shown["weights", "confidentiality"] == "medium"
    assert shown["queries", "availability"] == "clear"
    assert sum(word == "not-measured" for word in shown.values()) == 11
    text = " ".join("".join(page.shown).split())
    assert "13.1%" in text
    assert "9.8 to 17.0" in text
    assert "no training data was named in buckler.toml" in text


def test_hostile_texts_stay_texts_elsewhere() -> None:
    report = hostile()
    text = markdown.text(report)
    prose = re.sub(r"^````sh\n.*?\n````$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert len(prose) < len(text)
    prose = re.sub(r"`[^`\n]*`", "", prose.replace("\\`", ""))
    assert "<" not in prose
    assert "[x](" not in prose
    assert "![" not in prose
    fences = re.findall(r"^`{3,}", text, re.M)
    assert fences == ["````", "```", "````"]
    root = XML.fromstring(junit.text(report).encode("utf8"))
    names = [case.get("name", "") for case in root.iter("testcase")]
    assert any("<script>alert(1)</script>" in name for name in names)
    json.loads(sarif.text(report).encode("utf8"))


def test_hostile_texts_can_be_written(tmp_path: Path) -> None:
    paths = render(hostile(), tmp_path)
    assert json_.read(paths["json"]) == hostile()
    paths["html"].read_text("utf8")


def test_markdown_texts_start_no_block() -> None:
    for text in ("# head", "- item", "1. item", "=====", "+ item", "a\n\n# head"):
        line = (
            markdown.text(sample(not_measured=(NotMeasured(text, "w"),)))
            .split("## Not measured\n\n- ")[1]
            .split("\n")[0]
        )
        assert not re.match(r"([-#+=]|\d+\.\s)", line), line


def test_sarif_is_what_panels_expect() -> None:
    log = json.loads(sarif.text(SAMPLE))
    run = log["runs"][0]
    rules = run["tool"]["driver"]["rules"]
    assert log["version"] == "2.1.0"
    assert sorted(rule["id"] for rule in rules) == sorted(finding.id for finding in SAMPLE.findings)
    assert [result["ruleId"] for result in run["results"]] == [
        "evasion/white-box/linf",
        "evasion/black-box/linf",
        "theft/extraction",
        "theft/overview",
    ]
    assert [result["level"] for result in run["results"]] == ["error", "error", "warning", "note"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        place = result["locations"][0]["physicalLocation"]
        assert place["artifactLocation"]["uri"] == "models/shop.safetensors"
        assert len(result["partialFingerprints"]["bucklerFinding/v1"]) == 64
    later = json.loads(sarif.text(replace(SAMPLE, created="later", seconds=1.0)))
    prints = [[r["partialFingerprints"] for r in runs["runs"][0]["results"]] for runs in (log, later)]
    assert prints[0] == prints[1], "the same finding next week is the same alert"


def test_junit_has_one_case_for_each_finding() -> None:
    root = XML.fromstring(junit.text(SAMPLE))
    cases = {case.get("classname", ""): case for case in root.iter("testcase")}
    for finding in SAMPLE.findings:
        child = {element.tag for element in cases[finding.id]}
        failing = finding.state == "found" and finding.severity >= SAMPLE.gate
        expected = {"failure"} if failing else {"skipped"} if finding.state == "not measured" else {"system-out"}
        assert child == expected, finding.id
    assert len(list(root.iter("testcase"))) == len(SAMPLE.findings) + len(SAMPLE.not_measured)


def test_a_render_that_fails_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = render(SAMPLE, tmp_path)
    before = {path: path.read_bytes() for path in paths.values()}

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        render(REPORTS["pass"], tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_tables_of_an_earlier_report_do_not_stay(tmp_path: Path) -> None:
    """Rows that nothing flags any more would still be looked at; files that no report wrote are left alone."""
    one, two = (replace(found, id=f"a/{n}") for n, found in enumerate((SAMPLE.findings[0], SAMPLE.findings[1])))
    (tmp_path / "notes.csv").write_text("mine")
    tables = {"suspects.csv": "row\n1\n", "rows.csv": "row\n2\n"}
    render(replace(SAMPLE, findings=(replace(one, tables=tables), two)), tmp_path)
    assert (tmp_path / "suspects.csv").read_text() == "row\n1\n"
    render(replace(SAMPLE, findings=(one, replace(two, tables={"rows.csv": "row\n3\n"}))), tmp_path)
    assert {path.name for path in tmp_path.glob("*.csv")} == {"notes.csv", "rows.csv"}
    assert (tmp_path / "rows.csv").read_text() == "row\n3\n"
    (tmp_path / "report.json").write_text("{")  # what cannot be read says of no file that it is a table
    render(SAMPLE, tmp_path)
    assert {path.name for path in tmp_path.glob("*.csv")} == {"notes.csv", "rows.csv"}


def test_a_reader_never_meets_half_a_report(tmp_path: Path) -> None:
    path = render(SAMPLE, tmp_path)["json"]
    before = path.read_bytes()
    with path.open("rb") as reader:
        start = reader.read(100)
        render(REPORTS["pass"], tmp_path)
        assert start + reader.read() == before
    assert path.read_bytes() != before
