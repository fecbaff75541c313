"""What identifies the trials of a plan in a run: whatever may decide what comes of them."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

import torch
from torch import nn

from buckler.data import as_tensors, batches
from buckler.imported import classes, written
from buckler.method import describe, plain
from buckler.nets import where
from buckler.plan import Job
from buckler.subject import Subject
from buckler.target import frozen
from buckler.train import started
from buckler.trial import fingerprint, fingerprint_model, fingerprint_tensors


def fingerprints(todo: list[Job], subject: Subject, identity: dict[str, str]) -> list[str]:
    """What identifies each trial: its method and knobs, what was asked, the subject, and the code that it runs on."""
    learns = list(map(_learns, todo))
    about: dict[str, object] = {
        "identity": identity,
        "network": [classes(one) for one in _models(subject)],
        "answers": _answers(subject),
    }
    learnt = lessons(subject) if any(learns) else ""
    return [_fingerprint(job, about, learnt if own else "") for job, own in zip(todo, learns, strict=True)]


def _learns(job: Job) -> bool:
    """Whether anything is learnt from the subject's rows, which an attack on the model as it is does not do."""
    trains = describe(job.method).kind == "loss" or "through" in job.asked or job.measures == "encoder"
    return trains or "ball" not in job.asked


def _fingerprint(job: Job, subject: dict[str, object], lessons: str) -> str:
    described = describe(job.method)
    others = [describe(value) for value in job.asked.values() if callable(value)]
    areas = sorted({job.area, *(other.path.partition("/")[0] for other in others if "/" in other.path)})
    parts = {
        "method": job.path,
        "params": described.params,
        "asked": {key: plain(value) for key, value in job.asked.items()},
        "subject": subject,
        "lessons": lessons,
        "sources": [described.source, *(other.source for other in others)],
        "code": [*map(_code, areas), torch.__version__],
    }
    return fingerprint(parts)


@cache
def _code(area: str) -> str:
    """Of the core's modules and the area's, helpers included, and of other areas whose methods it finds by their names:
    any of them may decide what a trial comes to."""
    digest = hashlib.sha256()
    own = b"".join(_held("").values()) + b"".join(_held(area).values())
    found = {name.decode() for name in re.findall(rb'\bfind\("(\w+)/', own)}
    for name in ("", *sorted({area, *found})):
        for path, content in _held(name).items():
            digest.update(f"{path}|".encode() + content)
    return digest.hexdigest()[:16]


def _held(area: str) -> dict[str, bytes]:
    """The modules of an area, or of the core, by their paths."""
    root = Path(__file__).parent
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted((root / area).glob("*.py"))}


def lessons(subject: Subject) -> str:
    """Of what is learnt from and how: all training and test rows, the recipe, the network and the encoder's body as
    they begin, and the encoder that was given."""
    digest = hashlib.sha256()
    for data in (subject.test, subject.train):
        for x, y in () if data is None else batches(data, 1024):
            digest.update(fingerprint_tensors({"x": x, "y": y}).encode())
        digest.update(b"|")
    parts: dict[str, object] = {"rows": digest.hexdigest(), "recipe": written(subject.recipe)}
    for name, build in (("net", subject.net), ("body", subject.body)):
        if build is not None:
            first = started(build, 0)
            parts[name] = [written(build), classes(first), fingerprint_model(first)]
    if isinstance(subject.encoder, nn.Module):
        parts["encoder"] = [classes(subject.encoder), fingerprint_model(subject.encoder)]
    return fingerprint(parts)


def _models(subject: Subject) -> tuple[nn.Module, ...]:
    """What of the subject can be seen into: its model, and the encoder that it stands on or that is given beside it."""
    return tuple(one for one in (subject.model, subject.encoder) if isinstance(one, nn.Module))


def _answers(subject: Subject) -> list[str]:
    """Of what can be seen into: what it answers on the first rows, to two digits, as code elsewhere decides. Of what
    can only be asked, its identity has its labels."""
    x, _ = as_tensors(subject.test, 16)
    found = list[str]()
    with torch.random.fork_rng(), torch.no_grad():
        for one in _models(subject):
            torch.manual_seed(0)
            with frozen(one):
                found.append(fingerprint_tensors({"answers": one(x.to(where(one))).bfloat16()}))
    return found
