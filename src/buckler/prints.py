"""What identifies the trials of a plan in a run: whatever may decide what comes of them."""

from __future__ import annotations

import hashlib
import inspect
import re
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn

from buckler.data import as_tensors, batches
from buckler.method import describe, plain
from buckler.plan import Job
from buckler.subject import Subject
from buckler.target import Oracle, frozen
from buckler.train import started
from buckler.trial import fingerprint, fingerprint_model, fingerprint_tensors


def fingerprints(todo: list[Job], subject: Subject, identity: dict[str, str]) -> list[str]:
    """What identifies each trial: its method and knobs, what was asked, the subject, and the code that it runs on."""
    learns = ["ball" not in job.asked or describe(job.method).kind == "loss" or "through" in job.asked for job in todo]
    about = {"identity": identity, "network": _network(subject.model), "answers": _answers(subject)}
    learnt = lessons(subject) if any(learns) else ""
    return [_fingerprint(job, about, learnt if own else "") for job, own in zip(todo, learns, strict=True)]


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
    """Of what is learnt from and how: all training and test rows, the recipe, and the network as it begins."""
    digest = hashlib.sha256()
    for data in (subject.test, subject.train):
        for x, y in () if data is None else batches(data, 1024):
            digest.update(fingerprint_tensors({"x": x, "y": y}).encode())
        digest.update(b"|")
    parts: dict[str, object] = {"rows": digest.hexdigest(), "recipe": _written(subject.recipe)}
    if subject.net is not None:
        first = started(subject.net, 0)
        parts["net"] = [_written(subject.net), _network(first), fingerprint_model(first)]
    return fingerprint(parts)


def _network(model: nn.Module | Oracle) -> object:
    """Of a model that can be seen into: how its modules compute, which their weights and names do not say."""
    return [] if isinstance(model, Oracle) else sorted({str(_written(type(module))) for module in model.modules()})


def _answers(subject: Subject) -> str:
    """Of a model that can be seen into: what it answers on the first rows, to two digits, as code elsewhere decides."""
    model = subject.model
    if isinstance(model, Oracle):
        return ""  # its identity has its labels
    x, _ = as_tensors(subject.test, 16)
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    with torch.random.fork_rng(), torch.no_grad(), frozen(model):
        torch.manual_seed(0)
        return fingerprint_tensors({"answers": model(x.to(device)).bfloat16()})


def _written(value: object) -> object:
    """A function or class by its name and the file that it is written in, with what it is configured with."""
    if isinstance(value, partial):
        given = {**{str(place): item for place, item in enumerate(value.args)}, **value.keywords}
        return [_written(value.func), {name: _written(item) for name, item in given.items()}]
    if not callable(value):
        return plain(value)
    made = value if inspect.isroutine(value) or inspect.isclass(value) else type(value)
    with suppress(OSError, TypeError):  # of what is built in, or was typed in
        return [made.__qualname__, hashlib.sha256(Path(inspect.getfile(made)).read_bytes()).hexdigest()]
    return made.__qualname__
