"""The command line. It parses, calls and shows; it computes nothing, and imports torch only where a model is needed.

Exit codes: 0 nothing at or above the gate, 1 findings at or above it, 2 an error, 3 nothing could be measured.
"""

from __future__ import annotations

import os
import re
import sys
import typing
from collections.abc import Sequence
from contextlib import redirect_stdout
from enum import Enum
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from buckler import __version__

app = typer.Typer(
    name="buckler",
    help="Attack, measure and defend deep-learning models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
TRIAL = {"trial.json", "evidence.safetensors", "method.py.txt"}
TEXTS = {
    "ball": "a limit such as linf:8/255, or linf",
    "share": "a share such as 5%",
    "attack": "the path of an attack",
    "defence": "the path of a defence by training, or of a guard",
    "through": "the path of a method",
    "pretraining": "the path of a method of pre-training",
}
"""What stays text here, and is read as a row of a plan is: a bare norm is a limit too, at the reference radius."""
INTERRUPTED, GONE = 130, 141  # as shells count a process that SIGINT or SIGPIPE ended
UsageError = typer.BadParameter.__mro__[1]  # click's, wherever this version of typer keeps it


class Demo(str, Enum):
    digits = "digits"
    fashion_mnist = "fashion-mnist"


class Engine(str, Enum):
    inline = "inline"
    loky = "loky"
    ray = "ray"
    dask = "dask"


class Display(str, Enum):
    auto = "auto"
    rich = "rich"
    plain = "plain"
    none = "none"


class Gate(str, Enum):
    info = "info"
    low = "low"
    medium = "medium"
    high = "high"
    critical = "critical"


DemoOption = Annotated[Demo | None, typer.Option("--demo", help="Audit an embedded demo instead of a file.")]
DisplayOption = Annotated[Display, typer.Option("--display", help="Progress on stderr; auto: bars on a terminal.")]


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; an error is one sentence on stderr."""
    try:
        code = app(args=words if words is None else list(words), standalone_mode=False)
    except SystemExit as error:
        if isinstance(error.__context__, OSError):  # the reader of stdout went away, as `head` does
            return GONE
        return _complain(f"expected the model and the data to go on, got sys.exit({error.code!r}) from them", 2)
    except Exception as error:  # a traceback is a bug: whatever went wrong is said in one sentence
        if isinstance(error, UsageError) and not str(error):  # no command was given, and the help has been shown
            return 2
        if os.environ.get("BUCKLER_DEBUG"):
            raise
        return _complain(_sentence(error), 2)
    if code == INTERRUPTED:
        return _complain("interrupted; what had finished is kept, and the same command continues", code)
    return code if isinstance(code, int) else 0


def _sentence(error: Exception) -> str:
    if isinstance(error, UsageError):
        return " ".join(cast(typer.BadParameter, error).format_message().split())
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, ValueError):
        return text
    if isinstance(error, OSError):
        return f"{error.strerror or text}{f': {error.filename}' if error.filename else ''}"
    if type(error).__name__ == "TerminatedWorkerError":  # joblib's, which is not imported here
        return "a worker process died, of too little memory perhaps: run the same command again with fewer --jobs"
    return f"unexpected {type(error).__name__}: {text} (BUCKLER_DEBUG=1 shows where)"


def _complain(text: str, code: int) -> int:
    typer.echo(f"buckler: {text}", err=True)
    return code


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if show:
        typer.echo(f"buckler {__version__}")
        raise typer.Exit


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("buckler.toml"),
) -> None:
    """Write a commented buckler.toml; a file that is there is never overwritten."""
    path = path / "buckler.toml" if path.is_dir() else path
    try:
        with path.open("x", encoding="utf8") as handle:
            handle.write((files("buckler") / "starter.toml").read_text("utf8"))
    except FileExistsError:
        raise ValueError(f"expected no file at {path}, got one: edit it, or name another path") from None
    typer.echo(f"{path}: say where your model and your test data are, then run `buckler audit {path}`")


@app.command("list")
def list_(
    area: Annotated[str | None, typer.Argument(help="Only this area.")] = None,
) -> None:
    """List every method: path, kind, what it holds, title."""
    from buckler.catalog import cards, plugins

    known = cards(area)
    wide = max((len(card.path) for card in known), default=0)
    for card in known:
        typer.echo(f"{card.path:{wide}}  {card.kind:8}  {card.sees:7}  {card.title}")
    for path, value in plugins() if area is None else ():
        typer.echo(f"{path:{wide}}  from {value}")


@app.command()
def show(path: Annotated[str, typer.Argument(help="The path of a method, evasion/pgd.")]) -> None:
    """Show a method: its paper, what it holds, its flags and their defaults."""
    from buckler.catalog import card

    found = card(path)
    typer.echo(f"{found.path}: {found.title}\n")
    typer.echo(f"kind      {found.kind}\nholds     {found.sees}\npaper     {found.reference}")
    typer.echo(f"tags      {', '.join(found.tags)}\n\n{found.text}\n\n{found.summary}\n")
    wide = max((len(knob.flag) for knob in found.knobs), default=0)
    for knob in found.knobs:
        default = "must be given" if knob.default is None else f"default {knob.default}"
        typer.echo(f"  {knob.flag:{wide}}  {knob.type}, {default}")


@app.command()
def audit(
    subject: Annotated[Path | None, typer.Argument(help="A buckler.toml, or its folder.", show_default=False)] = None,
    demo: DemoOption = None,
    plan: Annotated[str, typer.Option(help="quick, full, poisoning, privacy, theft, encoder, or a .toml.")] = "quick",
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/NAME-PLAN if not given.")] = None,
    budget: Annotated[str | None, typer.Option(help="Wall time, 90s, 5m or 2h; what does not fit is left out.")] = None,
    engine: Annotated[Engine | None, typer.Option(help="Where trials run; loky if there is more than one job.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Trials at a time.")] = 1,
    rows: Annotated[int | None, typer.Option(min=1, help="Test rows per trial; the plan's if not given.")] = None,
    seed: Annotated[int, typer.Option(help="Decides every random draw.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto: a GPU if there is one.")] = "auto",
    display: DisplayOption = Display.auto,
    fail_on: Annotated[Gate | None, typer.Option(help="Severity at or above which the exit code is 1.")] = None,
) -> None:
    """Attack a model across its life cycle and write a report. The same command again continues where it stopped."""
    from buckler import audit as audits
    from buckler import console
    from buckler.findings import verdict

    needs = {"ray": "ray", "dask": "distributed"}.get(engine.value if engine else "")
    if needs and not find_spec(needs):
        raise ValueError(f"expected the package {needs} for --engine {needs}, got none: install it, or use loky")
    spec, name = _spec(subject, demo)
    seconds = None if budget is None else _seconds(budget)
    how = console.chosen(display.value)
    _prepared(spec, how)
    folder = out or Path("runs") / f"{name}-{Path(plan).stem}"
    chosen = engine.value if engine else "loky" if jobs > 1 else "inline"
    with console.following(how) as progress, redirect_stdout(sys.stderr):  # a user's model may print
        report = audits.audit(
            spec,
            plan,
            folder,
            budget=seconds,
            engine=chosen,
            workers=jobs,
            rows=rows,
            seed=seed,
            gate=fail_on.value if fail_on else None,
            device=device,
            progress=progress,
        )
    console.show_report(report, folder)
    raise typer.Exit(verdict(report).exit_code)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(
    context: typer.Context,
    path: Annotated[str, typer.Argument(help="The path of a method, evasion/pgd.")],
    subject: Annotated[Path | None, typer.Option(help="A buckler.toml, or its folder.", show_default=False)] = None,
    demo: DemoOption = None,
    out: Annotated[Path | None, typer.Option(help="Keep the trial in this folder.")] = None,
    display: DisplayOption = Display.auto,
) -> None:
    """Run one method on a subject. Further flags are the method's own: `buckler show PATH` lists them."""
    from importlib import import_module

    from buckler import audit as audits
    from buckler import console
    from buckler import plan as plans
    from buckler.catalog import find
    from buckler.flags import hints, read
    from buckler.subject import from_spec
    from buckler.trial import save

    method = find(path)
    if out is not None:
        _free(out)
    evaluate = import_module(f"buckler.{path.partition('/')[0]}.evaluate").evaluate
    asks = {name: kind for name, kind in hints(evaluate).items() if name != "tick"}
    texts = {name: Annotated[str, says] for name, says in TEXTS.items() if name in asks}
    values = read(context.args, {**asks, **hints(method), **texts})
    if "ball" in asks and type(None) not in typing.get_args(asks["ball"]) and "ball" not in values:
        raise ValueError(f"expected a limit for {path}, got none: add --ball linf:8/255, or --ball linf")
    how = console.chosen(display.value)
    spec, _ = _spec(subject, demo)
    _prepared(spec, how)
    loaded = from_spec(spec).on("auto")
    quick = plans.read("quick")
    seed = int(str(values.pop("seed", 0)))
    rows = int(str(values.pop("rows", quick.rows)))
    row = {"method": path, **values}
    single = plans.valid({"title": path, "rows": rows, "limits": quick.limits, "trial": [row]}, path)
    limits = {ball.norm: float(ball.radius) for ball in loaded.limits}
    job = plans.jobs(single, limits, seed=seed)[0]
    with console.working(how, path, "forwards") as tick, redirect_stdout(sys.stderr):  # a user's model may print
        checks = audits.contract(loaded, job.asked["rows"], {job.area})
        trial = evaluate(job.method, loaded, tick=tick, **job.asked)
    if out is not None:
        save(trial, out)
    console.show_trial(trial, checks)
    raise typer.Exit({"ok": 0, "failed": 2}.get(trial.status, 3))


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write the report of a run again, finished or not, from its trials."""
    from buckler import audit as audits
    from buckler import console
    from buckler.findings import verdict

    made = audits.rejudge(run)
    console.show_report(made, run)
    raise typer.Exit(verdict(made).exit_code)


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="A run folder.")],
    after: Annotated[Path, typer.Argument(help="Another.")],
) -> None:
    """Show what changed between two runs, row by row where they saw the same rows."""
    from buckler import compare as comparing
    from buckler import console

    console.show_pairs(*comparing.compare(before, after))


def _free(out: Path) -> None:
    """Refuse to replace what is no trial: a trial is written as a whole folder."""
    if not out.exists() and not out.is_symlink():
        return
    there = sorted(file.name for file in out.iterdir()) if out.is_dir() else ["a file"]
    if out.resolve() == Path.cwd() or out.is_symlink() or not set(there) <= TRIAL:
        got = ", ".join(there[:3]) or "the current folder"
        raise ValueError(f"expected a new folder, or that of a trial, after --out, got {out} with {got}: name another")


def _spec(subject: Path | None, demo: Demo | None) -> tuple[dict[str, str], str]:
    """How to load the subject again, and a name for its run folder."""
    if demo is not None:
        if subject is not None:
            raise ValueError(f"expected a file or --demo, got both: leave out {subject} or --demo {demo.value}")
        return {"demo": demo.value}, demo.value
    path = (subject or Path("buckler.toml")).absolute()
    path = path / "buckler.toml" if path.is_dir() else path
    return {"file": str(path)}, re.sub(
        r"[^a-zA-Z0-9_.-]+", "-", path.parent.name if path.stem == "buckler" else path.stem
    )


def _prepared(spec: dict[str, str], display: Any) -> None:
    """Train a demo's model now, with progress; from here on it comes from the cache."""
    if "demo" in spec:
        from buckler import console
        from buckler.subject import from_spec

        with console.working(display, f"training the {spec['demo']} demo", "loss") as tick:
            from_spec(spec, tick=tick)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h|)", text.strip())
    if not found or float(found[1]) <= 0:
        raise ValueError(f"expected a time such as 90s, 5m or 2h, got {text!r}")
    return float(found[1]) * {"h": 3600, "m": 60}.get(found[2], 1)
