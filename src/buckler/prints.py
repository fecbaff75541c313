"""What identifies the trials of a plan in a run: whatever may decide what comes of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from buckler.data import batches
from buckler.method import describe
from buckler.plan import Job
from buckler.subject import Subject
from buckler.trial import fingerprint, fingerprint_model, fingerprint_tensors


def fingerprints(todo: list[Job], subject: Subject, identity: dict[str, str]) -> list[str]:
    """What identifies each trial: its method and knobs, what was asked, the subject, and the code that it runs on."""
    learns = ["ball" not in job.asked or describe(job.method).kind == "loss" or "through" in job.asked for job in todo]
    train = subject.test if subject.train is None else subject.train
    lessons = _lessons(batches(train, 1024), subject.net) if any(learns) else ""
    return [_fingerprint(job, identity, lessons if own else "") for job, own in zip(todo, learns, strict=True)]


def _fingerprint(job: Job, identity: dict[str, str], lessons: str) -> str:
    described = describe(job.method)
    others = {key: describe(value) for key, value in job.asked.items() if callable(value)}
    parts = {
        "method": job.path,
        "params": described.params,
        "asked": {key: others[key].path if key in others else str(value) for key, value in job.asked.items()},
        "subject": identity,
        "lessons": lessons,
        "sources": [one.source for one in (described, *others.values())],
        "code": [_code(job.area), torch.__version__],
    }
    return fingerprint(parts)


@cache
def _code(area: str) -> str:
    """Of the core's modules and the area's, helpers included: any of them may decide what a trial comes to."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for file in (*sorted(root.glob("*.py")), *sorted((root / area).glob("*.py"))):
        digest.update(f"{file.relative_to(root)}|".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _lessons(rows: Iterable[tuple[Tensor, Tensor]], net: Callable[[], nn.Module] | None) -> str:
    """Of what a defence by training or a substitute learns from: the training rows, and the network as it begins."""
    digest = hashlib.sha256()
    for x, y in rows:
        digest.update(fingerprint_tensors({"x": x, "y": y}).encode())
    if net is not None:
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            digest.update(fingerprint_model(net()).encode())
    return digest.hexdigest()[:16]
