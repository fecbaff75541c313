"""Run folders: what was asked (`run.json`), which trials are finished, and whether the subject is still the same."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from buckler.trial import DamagedTrial, Trial, load

SCHEMA = "buckler/run/1"


class BadRun(ValueError):
    """A run that cannot be started or continued, in one sentence."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Subject(_Strict):
    name: str
    model: str
    data: str


class _Content(_Strict):
    trial: list[dict[str, Any]]


class _Run(_Strict):
    """What `run.json` has to hold so that a report can be made of it; its plan is checked as every plan is."""

    written: Literal["buckler/run/1"] = Field(alias="schema")
    plan: str
    gate: str
    seed: int
    rows: int | None
    trials: list[Annotated[str, Field(pattern="^[0-9a-f]{16}$")]]
    spec: dict[str, str]
    content: _Content
    limits: dict[str, float]
    severity: dict[str, Any] = {}
    subject: _Subject


def begin(out: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Write `run.json`, or check that the run already there is of the same subject."""
    path = out / "run.json"
    record = {"schema": SCHEMA, **request}
    if path.exists():
        before = read(out)
        same = all(before[key] == record[key] for key in ("rows", "content"))
        data = "the test data" if same else "the test data, or how many rows of it are used (--rows, --plan),"
        changed = [
            {"model": "the weights", "data": data}.get(key, "the subject")
            for key, value in request["subject"].items()
            if before["subject"].get(key) != value
        ]
        if changed:
            raise BadRun(
                f"{' and '.join(changed)} changed since the run in {out} began: "
                "results would be mixed, so name another folder with --out, or delete this one"
            )
    try:
        (out / "trials").mkdir(parents=True, exist_ok=True)
        beside = out / f".run.{uuid.uuid4().hex[:8]}"
        beside.write_text(json.dumps(record, indent=1), "utf8")
        beside.replace(path)
    except OSError as error:
        raise BadRun(f"cannot write to the run folder {out}: {error.strerror or error}") from None
    return record


def read(out: Path) -> dict[str, Any]:
    try:
        run = json.loads((out / "run.json").read_text("utf8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BadRun(f"expected a run folder with a run.json, got {out}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadRun(f"{out}/run.json is not readable ({error}): name another folder with --out") from None
    try:
        sound = _Run.model_validate(run)
        wrong = "" if len(sound.trials) == len(sound.content.trial) else "trials"
    except ValidationError as error:
        wrong = ".".join(str(part) for part in error.errors()[0]["loc"]) or "table"
    if wrong:
        raise BadRun(
            f"{out}/run.json: expected schema {SCHEMA}, got one without a sound {wrong}: name another folder with --out"
        )
    return run


def finished(out: Path, prints: list[str], *, failed: bool = False) -> dict[int, Trial]:
    """The trials that are on disk and sound. One that is damaged, or another than its folder says, is set aside.

    A `failed` trial is left out where the audit goes on, so that it is run again; a report tells of it.
    """
    kept: dict[int, Trial] = {}
    for index, print_ in enumerate(prints):
        folder = out / "trials" / print_
        if not folder.exists() and not folder.is_symlink():
            continue
        try:
            trial = load(folder)
            if trial.fingerprint != print_:
                raise DamagedTrial(f"{folder.name}: holds the trial {trial.fingerprint}")
        except DamagedTrial:
            folder.rename(folder.with_name(f"{print_}.damaged-{uuid.uuid4().hex[:6]}"))
            continue
        if failed or trial.status != "failed":
            kept[index] = trial
    return kept
