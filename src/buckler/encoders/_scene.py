"""What stands around an encoder: the rows it learnt from and those it did not, and the tasks it is used for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from buckler import accountant, augment, private, train
from buckler.data import Data, Rows, count, digits, drawn, floats, raw, write_whole
from buckler.embedding import Probed
from buckler.encoders import _contrast
from buckler.encoders._setting import Setting
from buckler.huggingface import Seen
from buckler.method import Method, describe, left_open
from buckler.nets import headless
from buckler.subject import Subject
from buckler.target import Oracle
from buckler.train import portions, started
from buckler.trial import fingerprint, fingerprint_model, fingerprint_tensors

LEAST = 20
"""The fewest rows that an encoder, or a task, is worth learning from."""
BUILT = "; of a Hugging Face folder, let `body` return buckler.huggingface.untrained(Path(folder))"


class Task(NamedTuple):
    """What an encoder is used for: rows with labels to learn it from, rows to try it on, and how many classes."""

    name: str
    train: Rows
    test: Rows
    classes: int


@dataclass(frozen=True, eq=False)
class Scene:
    """An encoder; rows that it `learnt` from, if they are known; `spare` rows of the same distribution that it did not
    learn from, with labels; and `test` rows. `own` says whether the encoder is the subject's."""

    encoder: nn.Module | Oracle
    own: bool
    learnt: Rows | None
    spare: Rows
    test: Rows


def refusal(setting: Setting, *, learnt: bool = False, white: bool = False) -> str:
    """Why the subject has no scene, or nothing; `learnt` if its rows must be known, `white` if its weights must be."""
    subject, path = setting.subject, setting.described.path
    if subject.encoder is None and (subject.train is None or body(subject) is None):
        own = "" if setting.described.kind == "pretrain" else "its `encoder`, or "
        return (
            f"{path} needs an encoder: give the subject {own}`train` and `body` (or `net`) to pre-train one"
            + unbuilt(subject)
        )
    if learnt and subject.train is None:
        return f"{path} asks what the encoder learnt from: give the subject its `train`"
    if white and isinstance(subject.encoder, Oracle):
        return f"{path} needs the encoder itself, and only its answers can be had"
    return ""


def unbuilt(subject: Subject) -> str:
    """What a reason says more to whoever brings a folder of Hugging Face's, of which another encoder can be built."""
    model = subject.encoder or (subject.model.encoder if isinstance(subject.model, Probed) else None)
    return BUILT if isinstance(model, Seen) and body(subject) is None else ""


def scene(setting: Setting) -> Scene:
    """The subject's encoder and its rows, or an encoder pre-trained on half of its training rows. A `ValueError` where
    there are too few rows. Ask `refusal` first."""
    subject = setting.subject
    train = None if subject.train is None else _drawn(subject.train, setting.train_rows, setting.seed)
    test = _shuffled(subject.test, 2 * setting.rows if subject.encoder is not None else setting.rows, setting.seed)
    if subject.encoder is not None:
        half = len(test[1]) // 2
        spare, test = _part(test, slice(half)), _part(test, slice(half, None))
        return Scene(subject.encoder, True, train, _enough(spare), test)
    learnt, spare = halved(cast(Rows, train))
    return Scene(pretrained(setting, learnt), False, learnt, _enough(spare), test)


def halved(data: Rows) -> tuple[Rows, Rows]:
    """Every second row, and the others: rows were drawn by chance, but stand in their order."""
    return _part(data, slice(0, None, 2)), _part(data, slice(1, None, 2))


def tasks(setting: Setting, seen: Scene) -> tuple[Task, ...]:
    """What the encoder is tried on: the subject's labels; pairs of its classes as one; and, unless they are what it
    learnt from, scikit-learn's digits in the size and channels of its images."""
    many = int(torch.cat([seen.spare[1], seen.test[1]]).max()) + 1
    own = Task("labels", seen.spare, seen.test, many)
    found = [own]
    if many > 3:
        pairs = tuple((x, y // 2) for x, y in (own.train, own.test))
        found.append(Task("pairs", pairs[0], pairs[1], (many + 1) // 2))
    shape = seen.test[0].shape[1:]
    if tuple(shape) != (1, 8, 8):
        like = partial(_shown_as, shape=tuple(shape))
        train, test = digits(True), digits(False)
        found.append(Task("digits", (like(train[0]), train[1]), (like(test[0]), test[1]), 10))
    return tuple(found)


def body(subject: Subject) -> Callable[[], nn.Module] | None:
    """What is pre-trained where no encoder is given: the subject's `body`, or its `net` without the last layer."""
    if subject.body is not None or subject.net is None:
        return subject.body
    net = subject.net
    return lambda: headless(net())


def pretrained(setting: Setting, data: Rows, *, seed: int | None = None, method: Method | None = None) -> nn.Module:
    """An encoder that `method`, or the pre-training that was asked for, makes of `data`; read from the folder `keep`
    if everything that decides its weights is the same."""
    method, seed = method or setting.pretraining, setting.seed if seed is None else seed
    build = body(setting.subject)
    if build is None:
        raise ValueError("expected `body` (or `net`), from which other encoders are pre-trained, got neither: add body")
    data = data[0].to(setting.device), data[1].to(setting.device)
    if len(data[1]) < LEAST:
        raise ValueError(f"expected at least {LEAST} rows to pre-train an encoder on, got {len(data[1])}")
    first = started(build, seed)
    described = describe(method)
    given: dict[str, Any] = {"net": lambda: build().to(setting.device), "seed": seed}
    given |= {"epochs": epochs_of(method, setting.encoder_steps, len(data[1]))}

    def trained(epochs: Mapping[str, float]) -> nn.Module:
        own = {name: given[name] for name in left_open(method, *given)}
        return cast(nn.Module, method(data, **own | {name: epochs[name] for name in {*epochs} & {*described.knobs}}))

    key = fingerprint(
        {
            "method": [described.path, described.params, described.source],
            "rows": fingerprint_tensors({"x": data[0], "y": data[1]}),
            "start": fingerprint_model(first),
            "asked": [seed, setting.encoder_steps, str(setting.device), torch.__version__],
            "code": [inspect.getsource(module) for module in (train, private, accountant, augment, _contrast)],
        }
    )
    path = None if setting.keep is None else setting.keep / f"encoder-{key}.safetensors"
    if path is not None:
        try:
            held = _sound(path)
            same = first.state_dict().keys() == held.keys()
            made = first if same else trained({"epochs": 0})  # what the method makes of it has more parts
            made.load_state_dict(held)
            return made.to(setting.device).eval()
        except (OSError, SafetensorError, RuntimeError):  # not there, or damaged: made anew
            pass
    made = trained({})
    if path is not None:
        weights = {name: tensor.contiguous().cpu() for name, tensor in made.state_dict().items()}
        write_whole(path, save(weights, {"digest": fingerprint_tensors(weights)}))
    return made


def _sound(path: Path) -> dict[str, Tensor]:
    """The weights in a file that are as they were written; an `OSError` or `SafetensorError` where they are not."""
    with safe_open(path, "pt") as file:
        digest = (file.metadata() or {}).get("digest")
        held = {name: file.get_tensor(name) for name in list(file.keys())}
    if fingerprint_tensors(held) != digest:
        raise OSError(f"expected the weights that were written to {path}, got others")
    return held


def epochs_of(method: Method, steps: int, rows: int) -> float:
    """How many epochs of `rows` rows are so many steps of a method of pre-training."""
    return steps / len(portions(rows, cast(int, describe(method).params["batch"])))


def _shown_as(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    grown = F.interpolate(floats(x), size=shape[1:], mode="bilinear", align_corners=False)
    return grown.expand(-1, shape[0], -1, -1).contiguous()


def _drawn(data: Data, most: int, seed: int) -> Rows:
    return raw(data, drawn(data, most, seed))


def _shuffled(data: Data, most: int, seed: int) -> Rows:
    """At most so many rows, drawn by `seed`, in no order: those of a class may stand together, and a part is to be like
    the whole."""
    return raw(data, torch.randperm(count(data), generator=torch.Generator().manual_seed(seed))[:most])


def _part(data: Rows, which: slice) -> Rows:
    return data[0][which], data[1][which]


def _enough(data: Rows) -> Rows:
    if len(data[1]) < LEAST:
        raise ValueError(f"expected at least {LEAST} rows that the encoder did not learn from, got {len(data[1])}")
    return data
