"""The command line: what goes where, what it exits with, and one sentence for everything that is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from buckler import __version__, audit
from buckler.cli import main
from buckler.findings import Finding, Report, Severity
from buckler.subject import load

PLANS = files("buckler") / "plans"
MODULE = """
import torch
from buckler.nets import LinearModel

def model():
    weight = torch.tensor([[1.0, -1, 0, 0], [-1, 1, 0, 0]])
    return LinearModel(20 * weight, torch.zeros(2)).eval()

def test():
    torch.manual_seed(0)
    x = torch.rand(40, 1, 2, 2)
    return x, (x[:, 0, 0, 1] > x[:, 0, 0, 0]).long()
"""

PLAN = """
title = "tiny"
rows = 40
[limits]
linf = 0.4
[[trial]]
method = "evasion/pgd"
ball = "linf"
steps = 5
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "tiny.toml").write_text(PLAN)
    (tmp_path / "buckler.toml").write_text('[subject]\nname = "mine"\nmodel = "mine:model"\ntest = "mine:test"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("BUCKLER_DEBUG", raising=False)
    return tmp_path


AUDIT = ["audit", "--plan", "tiny.toml", "--display", "plain"]


def test_an_audit_ends_in_a_verdict_and_a_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*AUDIT, "--out", "run"]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("FAIL  mine: 1 finding at or above high")
    assert "robust accuracy" in said.out
    assert said.out.rstrip().endswith(f"report: {Path('run') / 'report.html'}")
    assert "[1/1] evasion/pgd done" in said.err
    assert (folder / "run" / "report.html").is_file()
    before = {path: path.stat().st_mtime_ns for path in (folder / "run" / "trials").rglob("*")}
    assert main([*AUDIT, "--out", "run"]) == 1
    again = capsys.readouterr()
    assert "kept from before" in again.err
    assert again.out == said.out
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "run" / "trials").rglob("*")}
    assert main(["report", "run"]) == 1
    assert capsys.readouterr().out == said.out
    assert main(["compare", "run", "run"]) == 0
    assert "evasion/pgd" in capsys.readouterr().out


def test_a_changed_model_is_not_mixed_with_the_old(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*AUDIT, "--out", "run"]) == 1
    capsys.readouterr()
    (folder / "mine.py").write_text(MODULE.replace("20 * weight", "21 * weight"))
    monkeypatch.delitem(sys.modules, "mine")  # what a new process would know
    audit._subject.cache_clear()
    assert main([*AUDIT, "--out", "run"]) == 2
    said = capsys.readouterr()
    assert "the weights changed" in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    ("state", "severity", "code", "word"),
    [
        ("found", Severity.critical, 1, "FAIL"),
        ("found", Severity.low, 0, "PASS"),
        ("clear", Severity.info, 0, "PASS"),
        ("error", Severity.info, 2, "ERROR"),
        ("not measured", Severity.info, 3, "NOT MEASURED"),
    ],
)
def test_the_exit_code_is_the_verdicts(
    state: Any,
    severity: Severity,
    code: int,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    finding = Finding(
        id="a", title="A title", state=state, severity=severity, claim="It is so.", cell=("queries", "integrity")
    )
    made = Report(name="mine", created="2026-01-01T00:00:00+00:00", subject={}, findings=(finding,))
    asked: dict[str, Any] = {}

    def audited(spec: dict[str, str], plan: str, out: Path, **options: Any) -> Report:
        asked.update(options, spec=spec, plan=plan, out=out)
        return made

    monkeypatch.setattr(audit, "audit", audited)
    words = ["--budget", "5m", "--jobs", "2", "--seed", "3", "--rows", "7", "--fail-on", "low", "--device", "cpu"]
    assert main(["audit", ".", "--display", "none", *words]) == code
    said = capsys.readouterr()
    assert said.out.startswith(word)
    assert said.err == ""
    asked.pop("progress")
    here = Path.cwd()
    assert asked == {
        "spec": {"file": str(here / "buckler.toml")},
        "plan": "quick",
        "out": Path("runs") / f"{here.name}-quick",
        "budget": 300.0,
        "engine": "loky",
        "workers": 2,
        "rows": 7,
        "seed": 3,
        "gate": "low",
        "device": "cpu",
    }


def test_one_method_runs_with_flags_from_its_signature(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "evasion/pgd", "--ball", "linf:0.4", "--steps", "3", "--no-stop", "--rows=10", "--seed", "5"]
    main([*words, "--out", "kept", "--display", "none"])
    said = capsys.readouterr()
    assert "evasion/pgd on mine, linf:0.4" in said.out
    assert "n = 10" in said.out
    assert said.err == ""
    record = (folder / "kept" / "trial.json").read_text()
    assert '"steps": 3' in record
    assert '"stop": false' in record
    assert '"seed": 5' in record


def test_the_help_names_every_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--help"]) == 0
    said = capsys.readouterr().out.partition("--plan")[2].partition("--out")[0]
    assert set(re.findall(r"\w+", said)) >= {path.name.removesuffix(".toml") for path in PLANS.iterdir()}


ABSENT = "absent/buckler.toml"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["audit", ABSENT], "expected a subject file at .*absent"),
        (["audit", ".", "--demo", "digits"], "expected a file or --demo, got both"),
        (["audit", "--demo", "mnist"], "'mnist' is not one of"),
        (["audit", "--plan", "nope"], "expected a plan out of"),
        (["audit", "--budget", "soon"], "expected a time such as 90s, 5m or 2h, got 'soon'"),
        (["audit", "--jobs", "0"], "--jobs"),
        (["audit", "--device", "nowhere", "--plan", "tiny.toml"], "nowhere"),
        (["audit", "--fali-on", "high"], "No such option: --fali-on"),
        (["audti"], "No such command 'audti'"),
        (["show", "evasion/pdg"], "did you mean evasion/pgd"),
        (["show"], "(?i)missing argument 'path'"),
        (["run", "evasion/pdg", "--ball", "linf:0.1"], "did you mean evasion/pgd"),
        (["run", "evasion/pgd"], "add --ball linf:8/255"),
        (["run", "evasion/pgd", "--ball", "lnif:1"], "got 'lnif'"),
        (["run", "evasion/pgd", "--ball"], "expected a value after --ball, a limit such as linf:8/255, or linf, got"),
        (["run", "poisoning/badnets", "--share"], "expected a value after --share, a share such as 5%, got none"),
        (["run", "poisoning/badnets", "--share", "most"], "expected a share such as 5% or 0.05, got 'most'"),
        (["run", "poisoning/badnets", "--ball", "linf:0.1"], "unknown flag --ball: expected --share, --attack"),
        (["run", "poisoning/dlp", "--net", "mine:net"], "--net: expected a value from Python, got 'mine:net'"),
        (["run", "poisoning/dlp", "--epochs", "1,2"], "--epochs: expected 3 numbers with commas between them"),
        (["run", "poisoning/dlp", "--attack", "evasion/pgd"], "attack: expected a method .* in poisoning"),
        (["run", "evasion/pgd", "--ball", "linf:1", "--stpes", "3"], "unknown flag --stpes: expected --steps"),
        (["run", "evasion/pgd", "--ball", "linf:1", "--steps", "x"], "--steps: expected a whole number, got 'x'"),
        (["report", "nowhere"], "expected a run folder"),
        (["compare", "nowhere", "nowhere"], "expected a run folder"),
        (["list", "poisning"], "expected an area out of"),
        (["init", "."], "expected no file at"),
        (["init", "no/such/folder.toml"], "No such file or directory: no/such/folder.toml"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_exit_code_2(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("buckler: ")
    assert re.search(says, lines[0]), lines[0]


def test_an_error_of_ours_is_a_sentence_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> Report:
        raise KeyError("lost\nthing")

    monkeypatch.setattr(audit, "audit", broken)
    assert main(["audit", "--display", "none"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("buckler: unexpected KeyError: ")
    assert "BUCKLER_DEBUG=1" in said
    monkeypatch.setenv("BUCKLER_DEBUG", "1")
    with pytest.raises(KeyError):
        main(["audit", "--display", "none"])


def test_an_interrupt_says_that_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> Report:
        raise KeyboardInterrupt

    monkeypatch.setattr(audit, "audit", interrupted)
    assert main(["audit", "--display", "none"]) == 130
    assert "the same command continues" in capsys.readouterr().err


def test_init_writes_a_file_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "new").mkdir()
    assert main(["init", "new"]) == 0
    text = (folder / "new" / "buckler.toml").read_text()
    assert "[subject]" in text
    assert main(["init", "new"]) == 2
    assert (folder / "new" / "buckler.toml").read_text() == text
    capsys.readouterr()
    (folder / "new" / "my_module.py").write_text(MODULE.replace("def model", "def load"))
    assert load(folder / "new").name == "my-model"


def test_show_names_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "evasion/pgd"]) == 0
    out = capsys.readouterr().out
    assert "https://arxiv.org/abs/1706.06083" in out
    assert "--steps" in out
    assert "default 40" in out
    assert "must be given" in out


def test_the_module_is_the_command() -> None:
    words = [sys.executable, "-m", "buckler", "--version"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == f"buckler {__version__}\n"


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    words = f"{sys.executable} -m buckler show evasion/pgd; echo $? >&2"
    said = subprocess.run(["sh", "-c", f"({words}) | true"], capture_output=True, text=True, check=False)
    assert said.stderr.strip() == "141"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["audit", "--seed", "9" * 30, "--plan", "tiny.toml"], "63 bits"),
        (["run", "evasion/pgd", "--ball", "linf:0"], "expected a radius above 0"),
        (["run", "evasion/pgd", "--ball", "linf:1e400"], "too large"),
        (["run", "evasion/pgd", "--ball", "linf:0.4", "--rows", "0"], "evasion/pgd: rows: .*got 0"),
        (["run", "evasion/pgd", "--ball", "linf:0.4", "--steps", "0"], "expected steps of at least 1, got 0"),
        (["run", "evasion/pgd", "--ball", "linf:0.4", "--goal", "-1"], "expected goal of at least 0"),
        (["run", "evasion/pgd", "--ball", "linf:0.4", "--radii", "0.2,0.1"], "ascending"),
        (["run", "evasion/pgd", "--ball", "linf:0.4", "--through", "evasion/fgsm"], "of the kind extract"),
        (["run", "evasion/pgd", "--ball", "linf:0.4", "--seed", "9" * 30], "63 bits"),
        (["run", "privacy/lira", "--training-epochs", "-1"], "expected training_epochs above 0, got -1"),
        (["run", "encoders/simclr", "--pretraining", "encoders/moco"], "encoders/simclr pre-trains the encoder itself"),
        (["run", "evasion/pgd", "--ball", "linf:0.4", "--out", "."], "expected a new folder.*mine.py"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], says: str, folder: Path, capsys: Any) -> None:
    assert main([*words, "--display", "none"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert re.search(says, said.err), said.err
    assert (folder / "mine.py").read_text() == MODULE, "nothing of the user's is lost"


def test_a_model_that_prints_or_exits_leaves_stdout_to_the_result(folder: Path, capsys: Any) -> None:
    loud = MODULE + "\nclass Loud(LinearModel):\n    def forward(self, x):\n        print('LOUD')\n"
    loud += "        return super().forward(x)\ndef loud():\n    return Loud(*model().parameters()).eval()\n"
    (folder / "noisy.py").write_text(loud + "def leaves():\n    raise SystemExit(3)\n")
    toml = (folder / "buckler.toml").read_text()
    (folder / "buckler.toml").write_text(toml.replace("mine:model", "noisy:loud"))
    assert main([*AUDIT, "--out", "run"]) == 1
    said = capsys.readouterr()
    assert "LOUD" in said.err
    assert "LOUD" not in said.out
    audit._subject.cache_clear()
    (folder / "buckler.toml").write_text(toml.replace("mine:model", "noisy:leaves"))
    assert main([*AUDIT, "--out", "other"]) == 2
    assert "SystemExit: 3" in capsys.readouterr().err
    assert not (folder / "other").exists(), "a subject that is refused begins no run"


def test_a_report_needs_neither_the_plan_nor_the_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert main([*AUDIT, "--out", "run"]) == 1
    out = capsys.readouterr().out
    (folder / "tiny.toml").unlink()
    monkeypatch.chdir("/")
    assert main(["report", str(folder / "run")]) == 1
    assert capsys.readouterr().out.splitlines()[:-1] == out.splitlines()[:-1]
    (folder / "run" / "run.json").write_text('{"schema": "buckler/run/1"}')
    assert main(["report", str(folder / "run")]) == 2
    assert "without a sound plan" in capsys.readouterr().err
