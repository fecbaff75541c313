"""Trial: one run of one method and all that is needed to believe it.

On disk a trial is a folder of `trial.json`, `evidence.safetensors` and `method.py.txt` (the method's source as it ran).
Folders are written beside their place and renamed into it, so a trial is there whole or not at all. `load` recomputes
every estimate from the evidence and compares digests of both files; what does not match is an error. Nothing is ever
pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy
import scipy
import torch
from safetensors.torch import load_file
from safetensors.torch import save as packed
from torch import Tensor, nn

from buckler import __version__
from buckler.stats import Estimate, agree, recompute
from buckler.target import Oracle
from buckler.threat import Threat

SCHEMA = "buckler/trial/1"
State = Literal["ok", "inconclusive", "failed", "skipped"]


class DamagedTrial(Exception):
    """A trial on disk that is incomplete, altered, or does not reproduce its own estimates."""


@dataclass(frozen=True)
class Check:
    """One doubt: what was looked at, whether it holds, and what that means in a sentence."""

    name: str
    passed: bool
    says: str
    value: float | None = None


@dataclass(frozen=True)
class Cost:
    """Rows forwards and backwards, rows asked of an oracle, wall seconds, and the process's peak memory.

    `method_seconds` are those of the seconds that the method itself took, where an evaluation trains as well.
    """

    forwards: int = 0
    backwards: int = 0
    queries: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    method_seconds: float = 0.0


@dataclass(frozen=True)
class Trial:
    method: str
    """The method's path, `evasion/pgd`."""
    kind: str
    params: dict[str, object]
    """Every parameter of the method, defaults included, as JSON holds it; limits in their text form."""
    threat: Threat
    subject: dict[str, str]
    """The subject's name and the SHA-256 of its weights and of the rows used: `name`, `model`, `data`."""
    seed: int
    status: State
    reason: str = ""
    """Why, when the status is not `ok`: one sentence."""
    checks: tuple[Check, ...] = ()
    estimates: dict[str, Estimate] = field(default_factory=dict)
    evidence: dict[str, Tensor] = field(default_factory=dict)
    """One tensor per name, first dimension = row of the test data in order."""
    cost: Cost = field(default_factory=Cost)
    versions: dict[str, str] = field(default_factory=lambda: versions())
    source: str = ""
    """The method's own source file, as it ran."""
    fingerprint: str = ""
    """What identifies this trial in a run: see `fingerprint`."""

    def record(self) -> dict[str, object]:
        return {
            "schema": SCHEMA,
            "method": self.method,
            "kind": self.kind,
            "params": self.params,
            "threat": self.threat.record(),
            "subject": self.subject,
            "seed": self.seed,
            "status": self.status,
            "reason": self.reason,
            "checks": [asdict(check) for check in self.checks],
            "estimates": {name: estimate.record() for name, estimate in self.estimates.items()},
            "cost": asdict(self.cost),
            "versions": self.versions,
            "fingerprint": self.fingerprint,
        }


def versions() -> dict[str, str]:
    return {
        "buckler": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def fingerprint(parts: Mapping[str, object]) -> str:
    """SHA-256 of what decides a trial's outcome, named parts in any order, as 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()[:16]


def fingerprint_model(model: nn.Module) -> str:
    """Of a model: its structure as printed, and its weights and buffers."""
    return fingerprint({"structure": repr(model), "weights": fingerprint_tensors(model.state_dict())})


def identity(
    name: str,
    model: nn.Module | Oracle,
    rows: Iterable[tuple[Tensor, Tensor]],
    encoder: nn.Module | Oracle | None = None,
) -> dict[str, str]:
    """What a trial is about: the subject's name, its model, with its `encoder` where it brings one, and the test rows
    used, streamed batch by batch.

    Of what can only be asked, the fingerprint is of what it reveals and of its labels on the first rows (of features:
    which is the largest).
    """
    digest, first = hashlib.sha256(), None
    for x, y in rows:
        first = x[:16] if first is None else first
        digest.update(fingerprint_tensors({"x": x, "y": y}).encode())
    weights = _shown(model, first)
    if encoder is not None and encoder is not model:
        weights = fingerprint({"model": weights, "encoder": _shown(encoder, first)})
    return {"name": name, "model": weights, "data": digest.hexdigest()[:16]}


def _shown(model: nn.Module | Oracle, first: Tensor | None) -> str:
    if isinstance(model, nn.Module):
        return fingerprint_model(model)
    if first is None:
        raise ValueError("expected at least one test row, got none")
    return fingerprint({"reveals": model.reveals, "labels": model.labels(first).tolist()})


def peak_bytes(device: torch.device) -> int:
    """The most memory the process (or the GPU) has held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def save(trial: Trial, folder: Path) -> None:
    """Write `trial` as `folder`, whole or not at all; a trial already there is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"
    beside.mkdir()
    try:
        payload = packed({name: tensor.contiguous().clone() for name, tensor in trial.evidence.items()})
        (beside / "evidence.safetensors").write_bytes(payload)
        record = {**trial.record(), "evidence_sha256": hashlib.sha256(payload).hexdigest()}
        record["digest"] = fingerprint(record)
        (beside / "trial.json").write_text(json.dumps(record, indent=1, allow_nan=False), "utf8")
        (beside / "method.py.txt").write_text(trial.source, "utf8")
        for file in beside.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        if folder.exists():
            if not (folder / "trial.json").is_file() and any(folder.iterdir()):
                raise FileExistsError(
                    17, "expected a new folder or one that holds a trial, got other files", str(folder)
                )
            shutil.rmtree(folder)
        beside.rename(folder)
        descriptor = os.open(folder.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def load(folder: Path) -> Trial:
    """Read a trial and recompute its estimates from its evidence; `DamagedTrial` says what does not hold."""
    try:
        record = json.loads((folder / "trial.json").read_text("utf8"))
        written = record.pop("digest")
        payload = folder / "evidence.safetensors"
        digest = hashlib.sha256(payload.read_bytes()).hexdigest()
        if record["schema"] != SCHEMA:
            raise DamagedTrial(f"{folder.name}: expected schema {SCHEMA}, got {record['schema']!r}")
        if record["evidence_sha256"] != digest:
            raise DamagedTrial(f"{folder.name}: evidence.safetensors is not the file that trial.json was written with")
        evidence = load_file(payload)
        trial = Trial(
            method=record["method"],
            kind=record["kind"],
            params=record["params"],
            threat=Threat(**dict(record["threat"], tags=tuple(record["threat"]["tags"]))),
            subject=record["subject"],
            seed=record["seed"],
            status=record["status"],
            reason=record["reason"],
            checks=tuple(Check(**check) for check in record["checks"]),
            estimates={name: Estimate.load(estimate) for name, estimate in record["estimates"].items()},
            evidence=evidence,
            cost=Cost(**record["cost"]),
            versions=record["versions"],
            source=(folder / "method.py.txt").read_text("utf8"),
            fingerprint=record["fingerprint"],
        )
        for name, estimate in trial.estimates.items():
            again = recompute(estimate, evidence)
            if not agree(estimate, again):
                raise DamagedTrial(f"{folder.name}: {name} is written as {estimate} but its evidence gives {again}")
        if fingerprint(record) != written:
            raise DamagedTrial(f"{folder.name}: trial.json is not as it was written")
    except DamagedTrial:
        raise
    except Exception as error:  # whatever is wrong with the files of a trial, the answer is the same
        raise DamagedTrial(f"{folder.name}: not a readable trial ({type(error).__name__}: {error})") from error
    return trial
