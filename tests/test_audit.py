"""Audits as a user has them: killed, resumed, damaged, changed, too small a budget, full disks."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from buckler import audit as audits
from buckler import plan as plans
from buckler import prints
from buckler.audit import BadRun, Progress, audit, rejudge
from buckler.data import Data, as_tensors
from buckler.findings import verdict
from buckler.nets import LinearModel
from buckler.plan import Job
from buckler.poisoning.badnets import badnets
from buckler.subject import Subject
from buckler.trial import load

PLAN = """
title = "small"
rows = 24
[limits]
linf = 0.1
l2 = 0.5
[[trial]]
method = "evasion/fgsm"
ball = "linf"
[[trial]]
method = "evasion/pgd"
ball = "linf"
steps = 5
doubt = false
[[trial]]
method = "evasion/gradient_norm"
ball = "linf"
[[trial]]
method = "evasion/ddn"
ball = "l2:inf"
steps = 20
passes = 20
"""
NETS = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 3))

def rows():
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(40, 1, 3, 3, generator=draw)
    return x, (x.flatten(1)[:, :3]).argmax(1)
"""


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, str]:
    """A subject in files: a linear model that is right on most rows."""
    folder = tmp_path / "subject"
    folder.mkdir()
    (folder / "nets_of_the_audit_test.py").write_text(NETS)
    weight = torch.zeros(3, 9)
    weight[:, :3] = torch.eye(3) * 4
    save_file({"1.weight": weight, "1.bias": torch.zeros(3)}, folder / "model.safetensors")
    (folder / "buckler.toml").write_text(
        '[subject]\nname = "linear"\nweights = "model.safetensors"\nnet = "nets_of_the_audit_test:build"\n'
        'test = "nets_of_the_audit_test:rows"\n'
    )
    (folder / "plan.toml").write_text(PLAN)
    audits._subject.cache_clear()
    return {"file": str(folder / "buckler.toml")}


def _plan(spec: dict[str, str]) -> str:
    return str(Path(spec["file"]).with_name("plan.toml"))


def _trials(out: Path) -> dict[str, float]:
    """Every finished trial and when it was written."""
    return {f.name: (f / "trial.json").stat().st_mtime_ns for f in (out / "trials").iterdir() if f.name[0] != "."}


def test_an_audit_and_the_same_command_again(spec: dict[str, str], tmp_path: Path) -> None:
    out, seen = tmp_path / "run", list[Progress]()
    report = audit(spec, _plan(spec), out, progress=seen.append)
    assert [p.state for p in seen if p.state != "running"] == ["done"] * 4
    assert {"evasion/white-box/linf", "evasion/white-box/l2"} <= {f.id for f in report.findings}
    assert {p.suffix for p in out.glob("report.*")} == {".html", ".json", ".md", ".sarif", ".xml"}
    before = _trials(out)
    seen.clear()
    again = audit(spec, _plan(spec), out, progress=seen.append)
    assert [p.state for p in seen] == ["kept"] * 4
    assert _trials(out) == before
    assert [(f.id, f.estimates) for f in again.findings] == [(f.id, f.estimates) for f in report.findings]
    assert verdict(rejudge(out)) == verdict(report)


def test_what_an_oracle_answered_before_it_failed_is_not_asked_again(spec: dict[str, str], tmp_path: Path) -> None:
    folder = Path(spec["file"]).parent
    bill, fault = folder / "bill", folder / "fault"
    (folder / "services.py").write_text(
        "from pathlib import Path\nfrom buckler.target import Oracle\n"
        "from nets_of_the_audit_test import rows\n"
        f"bill, fault = Path({str(bill)!r}), Path({str(fault)!r})\n"
        "def answer(x):\n"
        "    if fault.exists() and len(bill.read_text()) > int(fault.read_text()):\n"
        "        raise RuntimeError('out of credit')\n"
        "    bill.write_text(bill.read_text() + '.' * len(x))\n"
        "    return x.flatten(1)[:, :3].softmax(1)\n"
        "def service():\n    return Oracle(answer, batch=8)\n"
    )
    (folder / "buckler.toml").write_text(
        '[subject]\nname = "service"\nmodel = "services:service"\ntest = "nets_of_the_audit_test:rows"\n'
    )
    plan = 'title = "small"\nrows = 12\n[limits]\nlinf = 0.1\n[[trial]]\nmethod = "evasion/square"\nball = "linf"\n'
    (folder / "plan.toml").write_text(plan + "queries = 40\n")

    def run(name: str) -> tuple[int, str]:
        bill.write_text("")
        status = audit(spec, _plan(spec), tmp_path / name).trials[0]["status"]
        return len(bill.read_text()), status

    whole, status = run("whole")
    assert status == "ok"
    before, _ = run("whole")  # what every audit asks before its trials
    fault.write_text(str((whole + before) // 2))
    half, status = run("broken")
    assert (status, list((tmp_path / "broken" / "trials").glob(".*.answers")) == []) == ("failed", False)
    fault.unlink()
    rest, status = run("broken")
    assert status == "ok"
    assert before < half < whole
    assert half + rest == whole + before
    assert list((tmp_path / "broken" / "trials").glob(".*.answers")) == []
    one, other = (
        load(next(f for f in (tmp_path / n / "trials").iterdir() if f.name[0] != ".")) for n in ("whole", "broken")
    )
    assert one.estimates == other.estimates
    assert one.cost.queries == other.cost.queries


def test_the_numbers_are_those_of_the_closed_form(spec: dict[str, str], tmp_path: Path) -> None:
    report = audit(spec, _plan(spec), tmp_path / "run")
    subject = audits._subject(json.dumps(spec, sort_keys=True), "auto")
    x, y = subject.test  # pyright: ignore
    model = LinearModel(subject.model[1].weight.detach(), subject.model[1].bias.detach())  # pyright: ignore
    right = model(x).argmax(1) == y
    distance = torch.where(right, model.distances(x, y, "linf"), 0.0)[:24]
    found = next(f for f in report.findings if f.id == "evasion/white-box/linf")
    # the box can only protect rows, so the closed form is a lower bound, and tight at this radius
    exact = float((distance > 0.1).float().mean())
    assert exact <= found.estimates["robust accuracy"].value <= exact + 0.05


@pytest.mark.parametrize("engine", ["loky"])
def test_engines_give_the_same_evidence(spec: dict[str, str], tmp_path: Path, engine: str) -> None:
    audit(spec, _plan(spec), tmp_path / "inline")
    audit(spec, _plan(spec), tmp_path / "fanned", engine=engine, workers=2)  # pyright: ignore
    assert set(_trials(tmp_path / "inline")) == set(_trials(tmp_path / "fanned"))
    for name in _trials(tmp_path / "inline"):
        one, two = (load(tmp_path / run / "trials" / name) for run in ("inline", "fanned"))
        assert all(torch.allclose(one.evidence[key], two.evidence[key], atol=1e-5) for key in one.evidence)


def test_changed_weights_are_refused_by_name(spec: dict[str, str], tmp_path: Path) -> None:
    audit(spec, _plan(spec), tmp_path / "run")
    save_file(
        {"1.weight": torch.randn(3, 9), "1.bias": torch.zeros(3)}, Path(spec["file"]).with_name("model.safetensors")
    )
    audits._subject.cache_clear()
    with pytest.raises(BadRun, match="the weights changed"):
        audit(spec, _plan(spec), tmp_path / "run")


def test_a_damaged_trial_is_set_aside_and_run_again(spec: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    audit(spec, _plan(spec), out)
    before = _trials(out)
    broken = sorted(before)[0]
    (out / "trials" / broken / "evidence.safetensors").write_bytes(b"nonsense")
    audit(spec, _plan(spec), out)
    after = _trials(out)
    assert [n for n in before if after[n] != before[n]] == [broken]
    assert sum("damaged" in name for name in after) == 1


def test_a_method_that_raises_is_a_failed_trial_and_the_audit_goes_on(spec: dict[str, str], tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.replace('method = "evasion/pgd"\nball = "linf"', 'method = "evasion/pgd"\nball = "l0:3"'))
    report = audit(spec, str(plan), tmp_path / "run")
    assert any("evasion/pgd" in item.what and "l0" in item.why for item in report.not_measured)
    assert any(f.id == "evasion/white-box/linf" for f in report.findings)


def test_a_failed_trial_says_what_any_terminal_can_show(spec: dict[str, str]) -> None:
    job = plans.jobs(plans.read(_plan(spec)), {})[0]
    trial = audits._failed(job, {"name": "s"}, RuntimeError("\x1b[31m in \ud800 row\n3"), 1.0)
    assert trial.reason == "RuntimeError: ?[31m in ? row"
    assert audits._failed(job, {"name": "s"}, KeyError(), 1.0).reason == "KeyError: no message"


def test_a_budget_leaves_out_what_does_not_fit_and_says_so(spec: dict[str, str], tmp_path: Path) -> None:
    seen: list[Progress] = []
    report = audit(spec, _plan(spec), tmp_path / "run", budget=1e-9, progress=seen.append)
    assert {p.state for p in seen} == {"left out"}
    assert len(report.not_measured) >= 4
    assert verdict(report).exit_code == 3


@pytest.mark.parametrize(
    ("many", "asked", "rows"), [(12_000, {}, 10_000), (12_000, {"train_rows": 700}, 700), (90, {}, 90), (None, {}, 24)]
)
def test_training_is_budgeted_by_its_rows(many: int | None, asked: dict[str, int], rows: int) -> None:
    test = (torch.rand(2, 1), torch.arange(2))
    train = None if many is None else (torch.rand(many, 1), torch.zeros(many, dtype=torch.long))
    subject = Subject("s", nn.Linear(1, 2), test, train)
    job = Job(badnets, "poisoning/badnets", {"rows": 24, "seed": 0, **asked}, 1.0)
    assert audits._per_row(job, subject) == rows


def test_a_full_disk_is_one_sentence_and_keeps_what_was_finished(
    spec: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = audits.save, [0]

    def full(*args: object) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise OSError(28, "No space left on device")
        real(*args)  # pyright: ignore

    monkeypatch.setattr(audits, "save", full)
    with pytest.raises(BadRun, match="No space left on device.*same command again"):
        audit(spec, _plan(spec), tmp_path / "run")
    assert len(_trials(tmp_path / "run")) == 2
    monkeypatch.undo()
    audit(spec, _plan(spec), tmp_path / "run")
    assert len(_trials(tmp_path / "run")) == 4


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": "other"}', "\x00"])
def test_an_unreadable_run_folder_is_one_sentence(spec: dict[str, str], tmp_path: Path, content: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(content)
    with pytest.raises(BadRun, match=r"run\.json"):
        audit(spec, _plan(spec), tmp_path / "run")
    with pytest.raises(BadRun, match=r"run\.json"):
        rejudge(tmp_path / "run")


def test_kill_9_at_any_instant_loses_and_repeats_nothing(spec: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "buckler",
        "audit",
        str(Path(spec["file"])),
        "--plan",
        _plan(spec),
        "--out",
        str(out),
    ]
    kept: dict[str, float] = {}
    draw = random.Random(11)
    for _ in range(4):
        process = subprocess.Popen([*command, "--display", "none"], stdout=subprocess.DEVNULL, env={**os.environ})
        # somewhere between the start of the first trial and the end of the last
        started = time.monotonic()
        while not (out / "run.json").exists() and time.monotonic() - started < 60:
            time.sleep(0.02)
        time.sleep(draw.uniform(0.0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = _trials(out)
        assert all(now.get(name) == when for name, when in kept.items())
        for name in now:
            load(out / "trials" / name)
        kept = now
    audit(spec, _plan(spec), out)
    final = _trials(out)
    assert len(final) == 4
    assert all(final[name] == when for name, when in kept.items())
    shutil.rmtree(out)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('method = "evasion/fgsm"', 'method = "evasion/fgms"'), "evasion/fgsm"),
        (("steps = 5", "stepps = 5"), "unknown key 'stepps'"),
        (('ball = "l2:inf"', 'ball = "l3:1"'), "norm"),
        (('ball = "l2:inf"', 'ball = "l1"'), "no reference radius for l1"),
        (("rows = 24", "rows = 0"), "rows"),
        (('title = "small"', ""), "title"),
        (("[limits]", "[limits"), "not TOML"),
        (("passes = 20", "passes = 20\ncurve = true"), "finite radius"),
        (("steps = 5", "steps = 2.5"), "expected a whole number for steps, got 2.5"),
        (("steps = 5", "steps = -5"), "expected steps of at least 1"),
        (("steps = 5", 'share = "5%"'), "unknown key 'share', expected ball"),
        (('ball = "l2:inf"', ""), "ball: expected a limit such as linf:8/255"),
        (('method = "evasion/ddn"', 'method = "poisoning/badnets"'), "unknown key 'ball', expected share"),
        (
            ('method = "evasion/ddn"', 'method = "encoders/universal"\nshare = "5%"'),
            "expected a ball or a share, got both",
        ),
        (('method = "evasion/ddn"', 'method = "encoders/universal"\nencoder_steps = 0'), "encoder_steps of at least 1"),
        (
            ('method = "evasion/ddn"\nball = "l2:inf"', 'method = "encoders/simclr"\ntraining_epochs = -1.0'),
            "expected training_epochs above 0, got -1",
        ),
        (
            (
                'method = "evasion/ddn"\nball = "l2:inf"\nsteps = 20',
                'method = "encoders/moco"\npretraining = "encoders/simclr"',
            ),
            "expected no pretraining here: encoders/moco pre-trains the encoder itself",
        ),
    ],
)
def test_a_plan_is_checked_before_anything_runs(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN.replace(*change))
    with pytest.raises(plans.BadPlan, match=says):
        plans.jobs(plans.read(str(path)), {})


def test_the_plans_of_the_package_fit_their_methods() -> None:
    for name in ("quick", "full", "poisoning", "privacy", "theft", "encoder"):
        plan = plans.read(name)
        assert len(plans.jobs(plan, {})) == len(plan.trial)
    with pytest.raises(plans.BadPlan, match="full, poisoning, privacy, quick"):
        plans.read("quik")


def test_a_trial_in_the_folder_of_another_is_set_aside(spec: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    audit(spec, _plan(spec), out)
    one, two = sorted(_trials(out))[:2]
    shutil.rmtree(out / "trials" / one)
    shutil.copytree(out / "trials" / two, out / "trials" / one)
    audit(spec, _plan(spec), out)
    assert load(out / "trials" / one).fingerprint == one
    assert sum("damaged" in name for name in _trials(out)) == 1


def test_a_report_made_again_tells_of_failed_trials(spec: dict[str, str], tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.replace('method = "evasion/pgd"\nball = "linf"', 'method = "evasion/pgd"\nball = "l0:3"'))
    report = audit(spec, str(plan), tmp_path / "run")
    assert [(i.what, i.why) for i in rejudge(tmp_path / "run").not_measured] == [
        (i.what, i.why) for i in report.not_measured
    ]


def test_other_code_or_other_lessons_are_another_trial(spec: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    subject = audits._subject(json.dumps(spec, sort_keys=True), "auto")
    text = PLAN + '[[trial]]\nmethod = "evasion/trades"\nball = "linf"\n'
    path = Path(_plan(spec))
    path.write_text(text)
    todo = plans.jobs(plans.read(str(path)), {})
    first = prints.fingerprints(todo, subject, {"model": "m"})
    assert prints.fingerprints(todo, subject, {"model": "m"}) == first
    x, y = as_tensors(subject.test)
    taught = prints.fingerprints(todo, replace(subject, train=(x, (y + 1) % 3)), {"model": "m"})
    assert [a == b for a, b in zip(first, taught, strict=True)] == [True] * 4 + [False]
    monkeypatch.setattr(prints, "__file__", __file__)
    prints._code.cache_clear()
    assert not set(prints.fingerprints(todo, subject, {"model": "m"})) & set(first)
    prints._code.cache_clear()


def test_code_that_an_area_finds_in_another_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("prints.py", ""), ("a/one.py", 'thief = find("b/two")'), ("b/two.py", ""), ("c/three.py", "")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(prints, "__file__", str(tmp_path / "prints.py"))
    code = prints._code.__wrapped__
    first = code("a")
    (tmp_path / "c" / "three.py").write_text("x = 1")
    assert code("a") == first
    (tmp_path / "b" / "two.py").write_text("x = 1")
    assert code("a") != first


class _Relu(nn.Flatten):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)[:, :3].relu()


class _Tanh(nn.Flatten):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)[:, :3].tanh()


class _Times(_Relu):
    def __init__(self, times: float) -> None:
        super().__init__()
        self.times = times

    def forward(self, input: Tensor) -> Tensor:
        return self.times * super().forward(input)


def _recipe(_data: Data, *, epochs: int) -> nn.Module:
    return _Relu() if epochs else _Tanh()


def test_other_rows_recipes_networks_or_attacks_are_another_trial(spec: dict[str, str]) -> None:
    """Whatever may decide what comes of a trial, though identity, path and weights are the same."""
    subject = audits._subject(json.dumps(spec, sort_keys=True), "auto")
    path, attacked = Path(_plan(spec)), 'share = "5%"\nattack = "poisoning/badnets"\n'
    path.write_text(
        f'title = "t"\nrows = 9\n[limits]\n[[trial]]\nmethod = "evasion/fgsm"\nball = "linf:0.1"\n'
        f'[[trial]]\nmethod = "poisoning/fine_tune"\n{attacked}'
    )
    evade, repair = plans.jobs(plans.read(str(path)), {})
    subject = replace(subject, train=subject.test, recipe=partial(_recipe, epochs=1))

    def printed(subject: Subject = subject, repair: Job = repair) -> list[str]:
        return prints.fingerprints([evade, repair], subject, {"model": "m"})

    def changed(now: list[str]) -> list[bool]:
        return [a != b for a, b in zip(printed(), now, strict=True)]

    assert changed(printed()) == [False, False]
    x, y = as_tensors(subject.test)
    x[-1] = 0  # of the rows that a defence is given, none that is measured on
    assert changed(printed(replace(subject, test=(x, y)))) == [False, True]
    assert changed(printed(replace(subject, recipe=partial(_recipe, epochs=2)))) == [False, True]
    assert changed(printed(replace(subject, recipe=None))) == [False, True]
    one, five = (replace(repair, asked={**repair.asked, "attack": partial(badnets, size=size)}) for size in (1, 5))
    assert printed(repair=one)[1] != printed(repair=five)[1]
    relu, tanh = (printed(replace(subject, model=made())) for made in (_Relu, _Tanh))
    assert [a != b for a, b in zip(relu, tanh, strict=True)] == [True, True]
    one, two = (printed(replace(subject, model=_Times(times))) for times in (1, 2))
    assert [a != b for a, b in zip(one, two, strict=True)] == [True, True], "what neither weights nor code say"
    before, file = printed(), Path(spec["file"]).with_name("nets_of_the_audit_test.py")
    file.write_text(NETS.replace("return nn", "return  nn"))  # the network's function, which makes the same weights
    assert [a != b for a, b in zip(before, printed(), strict=True)] == [False, True]


def test_whoever_asks_what_a_model_gives_away_changes_nothing() -> None:
    aims = {job.path: job.aim for name in ("privacy", "theft") for job in plans.jobs(plans.read(name), {})}
    assert {changed for changed, _, _ in aims.values()} == {"nothing"}
    assert aims["privacy/lira"] == ("nothing", "queries", "which rows were learnt from")
    assert aims["theft/knockoff"] == ("nothing", "queries", "a copy of the model")


def test_a_share_is_a_limit_as_a_ball_is(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    head = 'title = "t"\nrows = 9\n[limits]\n'
    for share, says in (("5%", ""), ("0%", "expected a share above 0"), ("half", "expected a share such as 5%")):
        path.write_text(f'{head}[[trial]]\nmethod = "poisoning/badnets"\nshare = "{share}"\nsize = 2\n')
        if says:
            with pytest.raises(plans.BadPlan, match=says):
                plans.jobs(plans.read(str(path)), {})
            continue
        job = plans.jobs(plans.read(str(path)), {})[0]
        assert str(job.asked["share"]) == "5%"
        assert job.named == "poisoning/badnets at 5%"
        assert job.aim == ("training data", "5%", "the label of its choice")
        assert job.method.keywords == {"size": 2}
    path.write_text(f'{head}[[trial]]\nmethod = "poisoning/fine_tune"\nshare = "5%"\n')
    with pytest.raises(plans.BadPlan, match="a share is of rows that an attack touches, and none is named"):
        plans.jobs(plans.read(str(path)), {})
    path.write_text(f'{head}[[trial]]\nmethod = "poisoning/badnets"\ncurve = true\n')
    with pytest.raises(plans.BadPlan, match="a curve is over radii"):
        plans.jobs(plans.read(str(path)), {})


@pytest.mark.parametrize(
    ("trial", "says"),
    [
        ('method = "poisoning/fine_tune"\nattack = "evasion/pgd"', "in poisoning, got evasion/pgd, of evade"),
        ('method = "evasion/jpeg"\nball = "linf:0.1"\nattack = "poisoning/badnets"', "in evasion, got poisoning/bad"),
        ('method = "poisoning/fine_tune"\nattack = "poisoning/dlp"', "got poisoning/dlp, of cultivate"),
    ],
)
def test_a_defence_is_judged_with_an_attack_of_its_own_area(tmp_path: Path, trial: str, says: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(f'title = "t"\nrows = 9\n[limits]\n[[trial]]\n{trial}\n')
    with pytest.raises(plans.BadPlan, match=says):
        plans.jobs(plans.read(str(path)), {})


def test_a_subject_without_training_data_is_told_what_is_missing(spec: dict[str, str], tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(
        PLAN
        + '[[trial]]\nmethod = "poisoning/badnets"\n[[trial]]\nmethod = "poisoning/dlp"\nattack = "poisoning/badnets"\n'
    )
    report = audit(spec, str(plan), tmp_path / "run")
    assert {item.why for item in report.not_measured if item.what.startswith("poisoning/")} == {
        "poisoning/badnets works on training data: give the subject its `train`",
        "poisoning/dlp works on training data: give the subject its `train`",
    }
