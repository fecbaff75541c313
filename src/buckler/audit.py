"""An audit: a subject and a plan become trials, trials become findings, findings become a report.

Everything that finished is on disk before the next thing starts. The same command again therefore continues: a trial
whose fingerprint is there is not run twice, and if the subject has changed since the run began the audit stops and says
what changed. Trials are independent, so they fan out through joblib's backends.
"""

from __future__ import annotations

import inspect
import json
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import joblib
import torch
from torch import nn

from buckler import plan as plans
from buckler.contract import check_contract, check_encoder, fatal
from buckler.data import as_tensors, batches, count
from buckler.findings import NotMeasured, Report, Severity, rules
from buckler.imported import in_a_line
from buckler.method import describe
from buckler.plan import Job
from buckler.prints import fingerprints, lessons
from buckler.replay import replayed
from buckler.report.render import render
from buckler.runs import BadRun, begin, finished, read
from buckler.subject import Subject, from_spec
from buckler.target import Oracle
from buckler.threat import Threat
from buckler.trial import Cost, Trial, identity, load, save, versions

Engine = Literal["inline", "loky", "ray", "dask"]


@dataclass(frozen=True)
class Progress:
    """Where an audit stands with one trial: `state` is `kept`, `left out`, `running` or `done`."""

    state: Literal["kept", "left out", "running", "done"]
    index: int
    total: int
    method: str
    share: float = 0.0
    forwards: int = 0
    says: str = ""


def audit(
    spec: dict[str, Any],
    plan: str,
    out: Path,
    *,
    budget: float | None = None,
    engine: Engine = "inline",
    workers: int = 1,
    rows: int | None = None,
    seed: int = 0,
    gate: str | None = None,
    device: str = "auto",
    progress: Callable[[Progress], None] = lambda _: None,
) -> Report:
    """Audit the subject that `spec` names (see `Subject.spec`) with `plan`, in the run folder `out`.

    `budget` is wall seconds: what does not fit is left out, in the plan's order, and said so. `engine` runs the trials
    here (`inline`) or through joblib (`loky`, `ray`, `dask`) in `workers` processes; a trial's result does not depend
    on it. `gate` overrides the subject's severity gate. Raises `BadRun`, `BadPlan` or `BadSubject` with one sentence
    before minutes are spent; a method that raises makes a `failed` trial and the audit goes on.
    """
    began = time.monotonic()
    chosen = plans.read(plan)
    subject = _subject(json.dumps(spec, sort_keys=True), device)
    todo = plans.jobs(chosen, _limits(subject), seed=seed, rows=rows)
    request = {"spec": spec, "plan": plan, "rows": rows, "seed": seed, "device": device}
    most = max(job.asked["rows"] for job in todo)
    identity, checks = _identity(subject, most), contract(subject, most, {job.area for job in todo})
    more = {"limits": _limits(subject), "gate": gate or subject.gate, "severity": dict(subject.severity)}
    prints = fingerprints(todo, subject, identity)
    request |= {"subject": identity}
    run = begin(out, {**request, **more, "content": chosen.model_dump(mode="json"), "trials": prints})
    kept = finished(out, prints)
    for index in kept:
        progress(Progress("kept", index, len(todo), todo[index].path, 1.0))
    runs, left = _within([i for i in range(len(todo)) if i not in kept], todo, subject, budget, began)
    for index in left:
        progress(Progress("left out", index, len(todo), todo[index].path, says="does not fit the budget"))
    deadline = None if budget is None else time.time() + budget - (time.monotonic() - began)
    with _watched(out, [(i, prints[i]) for i in runs], todo, progress):
        for index in _fan_out(request, [(i, prints[i]) for i in runs], out, engine, workers, deadline):
            trial = load(out / "trials" / prints[index])
            kept[index] = trial
            progress(Progress("done", index, len(todo), todo[index].path, 1.0, says=outcome(trial)))
    return _rendered(_report(run, todo, kept, checks), out)


def rejudge(out: Path) -> Report:
    """The report of a finished or unfinished run, made again from its trials; the subject is not needed."""
    run = read(out)
    todo = plans.jobs(plans.valid(run["content"], "run.json"), run["limits"], seed=run["seed"], rows=run["rows"])
    return _rendered(_report(run, todo, finished(out, run["trials"], failed=True), ()), out)


def _rendered(report: Report, out: Path) -> Report:
    try:
        render(report, out)
    except OSError as error:
        raise BadRun(f"cannot write the report to {out} ({error.strerror or error}); its trials are kept") from None
    return report


def outcome(trial: Trial) -> str:
    """A trial in a few words, for the console."""
    if trial.status in ("skipped", "failed"):
        return f"{trial.status}: {trial.reason}"
    numbers = ", ".join(
        f"{name.replace('_', ' ')} {estimate}"
        for name, estimate in list(trial.estimates.items())[1:3] or trial.estimates.items()
    )
    return numbers if trial.status == "ok" else f"inconclusive ({trial.reason}) {numbers}"


@cache
def _subject(spec: str, device: str) -> Subject:
    return from_spec(json.loads(spec)).on(device)


def _limits(subject: Subject) -> dict[str, float]:
    return {ball.norm: float(ball.radius) for ball in subject.limits}


def _identity(subject: Subject, rows: int) -> dict[str, str]:
    return identity(subject.name, subject.model, batches(subject.test, 256, rows), subject.encoder)


def contract(subject: Subject, rows: int, areas: set[str]) -> tuple[Any, ...]:
    """What is doubtful about the first `rows` rows, and the model or the encoder, whichever `areas` measure; what makes
    every number meaningless, or is not there to be measured, is a `BadRun`."""
    measured = set(map(plans.measures, areas))
    if "model" in measured and isinstance(subject.model, Oracle) and subject.model.reveals == "features":
        raise BadRun("expected a model that classifies, got an encoder that can only be asked: add a model")
    pretrains = subject.train is not None and (subject.body is not None or subject.net is not None)
    if "model" not in measured and subject.encoder is None and not pretrains:
        raise BadRun(
            "expected an encoder, or what one is pre-trained from, got a classifier alone: add encoder to the subject, "
            "or train with body or net"
        )
    y = torch.cat([labels for _, labels in batches(subject.test, 256, rows)])
    x, y = as_tensors(subject.test, sorted({*range(min(256, count(subject.test))), int(y.argmax())}))
    x, y = x.to(subject.device), y.to(subject.device)
    encoder = subject.encoder if "encoder" in measured else None
    checks = () if encoder is not None and measured == {"encoder"} else check_contract(subject.model, x, y)
    if encoder is not None:
        checks += tuple(check for check in check_encoder(encoder, x, y) if check not in checks)
    for check in checks:
        downstream = check.name == "one_class" and "encoder" in measured and not check.passed
        if fatal(check) or downstream:
            raise BadRun(check.says)
    return checks


def _within(
    missing: list[int], todo: list[Job], subject: Subject, budget: float | None, began: float
) -> tuple[list[int], list[int]]:
    """What to run and what to leave out, so that the plan fits the budget: in order, by passes and measured speed."""
    if budget is None or not missing:
        return missing, []
    x, _ = as_tensors(subject.test, 32)
    model = subject.model
    start = time.monotonic()
    if isinstance(model, nn.Module):
        x = x.to(next((p.device for p in model.parameters()), torch.device("cpu"))).requires_grad_()
        model(x).sum().backward(inputs=[x])
    else:
        model(x)
    per_pass = (time.monotonic() - start) / len(x)
    room = budget - (time.monotonic() - began)
    runs: list[int] = []
    for index in missing:
        cost = todo[index].passes * _per_row(todo[index], subject) * per_pass
        if cost <= room:
            runs.append(index)
            room -= cost
    return runs, [index for index in missing if index not in runs]


def _per_row(job: Job, subject: Subject) -> int:
    """How many rows a trial's passes are counted over: those it attacks, or those it trains on."""
    if ("ball" in job.asked and job.measures == "model") or subject.train is None:
        return job.asked["rows"]
    evaluate = import_module(f"buckler.{job.area}.evaluate").evaluate
    knob = inspect.signature(evaluate).parameters.get("train_rows")
    most = job.asked.get("train_rows", None if knob is None else knob.default)
    return count(subject.train) if most is None else min(count(subject.train), most)


def _fan_out(
    request: dict[str, Any],
    runs: list[tuple[int, str]],
    out: Path,
    engine: Engine,
    workers: int,
    deadline: float | None,
) -> Iterator[int]:
    """Run the trials; yield the index of each as it is on disk. One that no longer fits the budget is not started."""
    if engine == "inline":
        for index, print_ in runs:
            if run_trial(request, index, print_, str(out), 0, deadline):
                yield index
        return
    if engine == "ray":
        import_module("ray.util.joblib").register_ray()
    if engine == "dask":
        import_module("distributed").Client(n_workers=workers, threads_per_worker=1)
    threads = max(1, (os.cpu_count() or 1) // workers)
    with joblib.parallel_config(backend=engine, n_jobs=workers):
        calls = (joblib.delayed(run_trial)(request, i, print_, str(out), threads, deadline) for i, print_ in runs)
        results = joblib.Parallel(return_as="generator_unordered" if engine == "loky" else "list")(calls)
        for (index, _), done in zip(runs, results, strict=True) if engine != "loky" else ():
            if done:
                yield index
        if engine == "loky":
            yield from (value - 1 for value in results if value)


def run_trial(request: dict[str, Any], index: int, print_: str, out: str, threads: int, deadline: float | None) -> int:
    """Run one trial of a plan and save it: what a worker does. Returns `index + 1`, or 0 if it was too late to start.

    A method that raises makes a `failed` trial, with its error as the reason. What an oracle answered to a trial that
    did not come to its end is kept, and not asked again when it is run again.
    """
    if deadline is not None and time.time() > deadline:
        return 0
    if threads:
        torch.set_num_threads(threads)
    subject = _subject(json.dumps(request["spec"], sort_keys=True), request["device"])
    plan = plans.read(request["plan"])
    job = plans.jobs(plan, _limits(subject), seed=request["seed"], rows=request["rows"])[index]
    told = [0.0]
    note = Path(out) / "trials" / f".{print_}.progress"
    paid = note.with_suffix(".answers")
    subject = _remembering(subject, paid)

    def tick(share: float, forwards: int) -> None:
        if time.monotonic() - told[0] > 0.3:
            told[0] = time.monotonic()
            with suppress(OSError):
                note.write_text(json.dumps([share, forwards]), "utf8")

    started = time.monotonic()
    try:
        with redirect_stdout(sys.stderr):  # of a user's model that prints
            evaluate = import_module(f"buckler.{job.area}.evaluate").evaluate
            trial = evaluate(job.method, subject, tick=tick, **{**_shared(evaluate, subject, out), **job.asked})
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # whatever a method or a user's model does, the other trials go on
        trial = _failed(job, request["subject"], error, time.monotonic() - started)
    note.unlink(missing_ok=True)
    seen = all(isinstance(one, nn.Module) for one in (subject.model, subject.encoder or subject.model))
    if seen and trial.subject["model"] != request["subject"]["model"]:
        raise BadRun("the weights changed while the audit ran: run it again in another folder")
    try:
        save(replace(trial, fingerprint=print_), Path(out) / "trials" / print_)
    except OSError as error:
        raise BadRun(
            f"cannot write a trial to {out} ({error.strerror or error}): free some room and run the same command again"
        ) from None
    if trial.status != "failed":
        for file in (paid, paid.with_suffix(".features")):
            file.unlink(missing_ok=True)
    return index + 1


def _remembering(subject: Subject, paid: Path) -> Subject:
    """The subject, whose oracles' answers are kept in `paid` and beside it as they come."""
    model, encoder = subject.model, subject.encoder
    kept = replayed(model, paid) if isinstance(model, Oracle) else model
    if encoder is model or not isinstance(encoder, Oracle):
        return replace(subject, model=kept, encoder=kept if encoder is model else encoder)
    return replace(subject, model=kept, encoder=replayed(encoder, paid.with_suffix(".features")))


def _shared(evaluate: Callable[..., Trial], subject: Subject, out: str) -> dict[str, str]:
    """The folder of what trials of one subject share, such as shadow models, for an area that has a use for it."""
    if "keep" not in inspect.signature(evaluate).parameters:
        return {}
    return {"keep": str(Path(out) / "kept" / lessons(subject))}


def _failed(job: Job, subject: dict[str, str], error: Exception, seconds: float) -> Trial:
    described = describe(job.method)
    first = str(error).partition("\n")[0]
    return Trial(
        method=job.path,
        kind=described.kind,
        params={**described.params, **{key: str(value) for key, value in job.asked.items() if not callable(value)}},
        threat=Threat(described.holds, *job.aim, described.tags),
        subject=subject,
        seed=job.asked["seed"],
        status="failed",
        reason=f"{type(error).__name__}: {in_a_line(first) or 'no message'}",
        cost=Cost(seconds=seconds),
        source=described.source,
    )


@contextmanager
def _watched(
    out: Path, runs: list[tuple[int, str]], todo: list[Job], progress: Callable[[Progress], None]
) -> Generator[None, None, None]:
    """Report what running trials say of themselves, from whatever process they run in."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.4):
            for index, print_ in runs:
                with suppress(OSError, ValueError):
                    share, forwards = json.loads((out / "trials" / f".{print_}.progress").read_text("utf8"))
                    progress(Progress("running", index, len(todo), todo[index].path, share, forwards))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _report(run: dict[str, Any], todo: list[Job], kept: dict[int, Trial], checks: tuple[Any, ...]) -> Report:
    table = rules(run.get("severity"))
    verdicts = [
        import_module(f"buckler.{area}.judge").judge(
            [kept[index] for index in sorted(kept) if todo[index].area == area],
            {**run["content"]["limits"], **run["limits"]},
            table,
            _command(run),
        )
        for area in dict.fromkeys(job.area for job in todo)
    ]
    left = [
        NotMeasured(job.named, "it did not fit the budget, or the run was stopped before it")
        for index, job in enumerate(todo)
        if index not in kept
    ]
    warned = [NotMeasured("model contract", check.says) for check in checks if not check.passed]
    return Report(
        name=run["subject"]["name"],
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        subject=run["subject"],
        plan={"name": run["plan"], "seed": run["seed"], "rows": max(job.asked["rows"] for job in todo)},
        gate=Severity.parse(run["gate"]),
        findings=tuple(finding for found in verdicts for finding in found.findings),
        not_measured=tuple(item for found in verdicts for item in found.not_measured) + tuple(left) + tuple(warned),
        contradictions=tuple(text for found in verdicts for text in found.contradictions),
        trials=tuple(kept[index].record() for index in sorted(kept)),
        severities={path: rule.record() for path, rule in table.items()},
        versions=versions(),
        seconds=sum(trial.cost.seconds for trial in kept.values()),
    )


def _command(run: dict[str, Any]) -> str:
    """The start of the command that repeats one measurement; a finding adds method and parameters."""
    spec = run["spec"]
    where = f"--demo {spec['demo']}" if "demo" in spec else f"--subject {shlex.quote(str(spec.get('file', '')))}"
    return f"buckler run {{method}} {where} --seed {run['seed']}"
