"""Subject: what is being audited, and where it comes from: `buckler.toml`, Python, or an embedded demo.

A subject that was loaded can say in a small JSON object how to load it again in another process (`spec`, `from_spec`).
Weights are read with safetensors, or with `torch.load(weights_only=True)`; nothing is ever unpickled.
"""

from __future__ import annotations

import difflib
import inspect
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pydantic
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from buckler import __version__, nets, pretrained, train
from buckler.data import BadRow, Data, as_tensors, cache_folder, count, digits, fashion_mnist, from_arrays, write_whole
from buckler.endpoint import Endpoint, header, is_address
from buckler.findings import rules
from buckler.imported import FILE, BadSubject, imported, kind_of, raised, usable
from buckler.target import Oracle
from buckler.threat import Ball
from buckler.trial import fingerprint, fingerprint_tensors
from buckler.weights import weighted

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

Tick = Callable[[float, float], None]
LIMITS: Mapping[str, tuple[str, ...]] = {
    "digits": ("linf:0.1", "l2:0.5", "l1:2", "l0:4"),
    "fashion-mnist": ("linf:8/255", "l2:0.5", "l1:5", "l0:10"),
}
"""How far a demo's images may be moved; the radii at which undefended models differ are small."""
DEMOS = tuple(LIMITS)


@dataclass(frozen=True)
class Subject:
    """What is being audited, and what the user could give with it."""

    name: str
    model: nn.Module | Oracle
    """Inputs in [0, 1], logits `(B, K)` out; or an oracle, where only answers can be had: the `encoder` itself, if it
    is one and comes alone."""
    test: Data
    train: Data | None = None
    recipe: Callable[[Data], nn.Module] | None = None
    """The user's own training: data in, a trained model out."""
    net: Callable[[], nn.Module] | None = None
    """The network untrained: what defences by training start from."""
    encoder: nn.Module | Oracle | None = None
    """What was pre-trained without labels and `model` stands on: inputs in [0, 1], features `(B, D)` out."""
    gate: str = "high"
    """The severity at or above which an audit fails."""
    severity: Mapping[str, object] = field(default_factory=dict[str, object])
    """Thresholds of the user's own, laid over `severity.toml`."""
    limits: tuple[Ball, ...] = ()
    """How far inputs may be moved; none given means what the plan says."""
    body: Callable[[], nn.Module] | None = None
    """An encoder untrained: what is pre-trained where no `encoder` is given; else `net` without its last layer."""
    origin: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def device(self) -> torch.device:
        """Where the model is, or else the encoder; an oracle is asked from the CPU."""
        held = (one for one in (self.model, self.encoder) if isinstance(one, nn.Module))
        return next(map(nets.where, held), torch.device("cpu"))

    def spec(self) -> dict[str, str]:
        """How to load this subject again, as JSON holds it."""
        if not self.origin:
            raise BadSubject("expected a subject from a file or a demo, got one built in Python: write a buckler.toml")
        return dict(self.origin)

    def on(self, device: str = "auto") -> Subject:
        """The same subject with its model and its encoder on `device`; `auto` is a GPU if there is one. An oracle stays
        where it is."""
        if not any(isinstance(one, nn.Module) for one in (self.model, self.encoder)):
            return self
        try:
            where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
            if where.type == "meta":
                raise RuntimeError("it computes nothing")
            moved = [one.to(where) if isinstance(one, nn.Module) else one for one in (self.model, self.encoder)]
            return replace(self, model=moved[0], encoder=moved[1])
        except (RuntimeError, AssertionError) as error:  # torch raises the one or the other
            reason = str(error).strip().splitlines()[0]
            raise BadSubject(f"expected a device that torch has here, got {device!r} ({reason}): use cpu") from error


def from_spec(spec: Mapping[str, str], *, tick: Tick | None = None) -> Subject:
    """The subject that `spec` describes: `{"file": path}` or `{"demo": name}`."""
    if set(spec) == {"file"}:
        return load(Path(spec["file"]))
    if set(spec) == {"demo"}:
        return demo(spec["demo"], tick=tick)
    raise BadSubject(f"expected a spec with the key file or demo, got {', '.join(sorted(spec)) or 'nothing'}")


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class _SubjectTable(_Strict):
    name: str
    test: str
    model: str | None = None
    weights: str | None = None
    net: str | None = None
    url: str | None = None
    answers: Literal["scores", "labels", "features"] = "scores"
    timeout: pydantic.PositiveFloat = 30.0
    batch: pydantic.PositiveInt = 64
    headers: dict[str, str] = {}
    train: str | None = None
    recipe: str | None = None
    encoder: str | None = None
    body: str | None = None


class _ThreatTable(_Strict):
    limits: tuple[str, ...] = ()


class _GateTable(_Strict):
    fail_on: Literal["info", "low", "medium", "high", "critical"] = "high"


class _File(_Strict):
    subject: _SubjectTable
    threat: _ThreatTable = _ThreatTable()
    gate: _GateTable = _GateTable()
    severity: dict[str, object] = {}


def load(path: Path | str = FILE) -> Subject:
    """Read `buckler.toml` (or the one in the folder `path`) and load what it names; paths are relative to it."""
    path = Path(path)
    path = (path / FILE if path.is_dir() else path).absolute()
    try:
        content = tomllib.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise BadSubject(
            f"expected a subject file at {path}, got none: `buckler init` writes one, `--demo digits` needs none"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadSubject(f"expected a readable TOML file at {path}, got: {error}") from error
    try:
        file = _File.model_validate(content)
    except pydantic.ValidationError as error:
        raise BadSubject(f"{path.name}: {_sentence(error)}") from error
    table, folder = file.subject, path.parent
    if not table.name.strip() or not table.name.isprintable():
        raise BadSubject(f"{path.name}: [subject] name: expected one line of text, got {table.name!r}")
    try:
        limits = _limits(file.threat.limits)
        rules(file.severity)
    except ValueError as error:
        raise BadSubject(f"{path.name}: {error}") from error
    net = None if table.net is None else imported(folder, "net", table.net)
    body = None if table.body is None else imported(folder, "body", table.body)
    model, encoder = _models(folder, table, net, body)
    test = _data(folder, "test", table.test)
    train = None if table.train is None else _data(folder, "train", table.train)
    return Subject(
        name=table.name,
        model=pretrained.classifier(cast("nn.Module | Oracle", encoder), train, test) if model is None else model,
        test=test,
        train=train,
        recipe=None if table.recipe is None else imported(folder, "recipe", table.recipe),
        net=net,
        encoder=encoder,
        body=body,
        gate=file.gate.fail_on,
        severity=file.severity,
        limits=limits,
        origin={"file": str(path)},
    )


def _limits(texts: tuple[str, ...]) -> tuple[Ball, ...]:
    try:
        limits = tuple(Ball.parse(text) for text in texts)
    except OverflowError:
        raise ValueError(f"[threat] limits: expected numbers that fit, got {', '.join(texts)}") from None
    for text, ball in zip(texts, limits, strict=True):
        if not 0 < float(ball.radius) <= torch.finfo(torch.float32).max:
            raise ValueError(f"[threat] limits: expected a finite radius above 0, got {text!r}")
        if sum(ball.norm == other.norm for other in limits) > 1:
            raise ValueError(f"[threat] limits: expected one limit for {ball.norm}, got {', '.join(texts)}")
    return limits


def _sentence(error: pydantic.ValidationError) -> str:
    """The first thing wrong, in our words."""
    first = error.errors()[0]
    *tables, key = [str(part) for part in first["loc"]] or ["file"]
    where = f"[{'.'.join(tables)}] {key}" if tables else f"[{key}]"
    if first["type"] == "missing":
        return f"expected {where}, got nothing: add it"
    if first["type"] == "extra_forbidden":
        table = {"subject": _SubjectTable, "threat": _ThreatTable, "gate": _GateTable}.get(tables[0] if tables else "")
        known = list((table or _File).model_fields)
        near = difflib.get_close_matches(key, known, 1)
        return f"{where} is not known: expected {f'{near[0]!r}' if near else 'one of ' + ', '.join(known)}"
    if first["type"] in ("model_type", "model_attributes_type"):
        return f"expected a table [{key}] with keys and values, got {first['input']!r}"
    return f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}"


def _models(
    folder: Path, table: _SubjectTable, net: Callable[[], Any] | None, body: Callable[[], Any] | None
) -> tuple[nn.Module | Oracle | None, nn.Module | Oracle | None]:
    """The model and the encoder, one of which may be none."""
    asked = None if table.url is None else _asked(table.url, table)
    service = asked if asked is not None and asked.reveals == "features" else None
    if service is not None and table.encoder is not None:
        raise BadSubject('[subject]: expected one of encoder or url with answers = "features", got both: leave out one')
    encoder = service if table.encoder is None else pretrained.encoder(folder, table.encoder, body)
    given = {"model": table.model, "weights": table.weights, "url": None if service else table.url}
    forms = [name for name, text in given.items() if text is not None]
    if len(forms) > 1 or (not forms and encoder is None):
        raise BadSubject(
            "[subject]: expected one of model, weights (with net), url or encoder, got "
            f"{' and '.join(forms) or 'none of them'}"
        )
    if forms == ["url"]:
        return asked, encoder
    if table.weights is not None:
        if net is None:
            raise BadSubject("weights: expected net as well, the function that builds the network, got none: add net")
        return weighted(net, folder / table.weights), encoder
    if table.model is None:
        return None, encoder
    model = imported(folder, "model", table.model)()
    if not isinstance(model, nn.Module | Oracle):
        raise BadSubject(
            f"model = {table.model!r}: expected a function that returns an nn.Module, got {kind_of(model)}"
        )
    return usable(model, f"model = {table.model!r}") if isinstance(model, nn.Module) else model, encoder


def _asked(url: str, table: _SubjectTable) -> Oracle:
    if not is_address(url):
        raise BadSubject(f"url: expected an address such as https://host/path, got {url!r}")
    try:
        headers = {name: header(name, value) for name, value in table.headers.items()}
    except ValueError as error:
        raise BadSubject(str(error)) from None
    return Oracle(Endpoint(url, table.answers, table.timeout, headers=headers), table.answers, batch=table.batch)


def _data(folder: Path, key: str, text: str) -> Data:
    if text.lower().endswith(".npz"):
        data: object = _arrays(folder / text, key)
    else:
        data = imported(folder, key, text)()
    try:
        if isinstance(data, tuple | list):
            if len(cast("tuple[object, ...]", data)) != 2:
                raise ValueError(f"expected a Dataset or (x, y), got {kind_of(data)}")
            data = from_arrays(*cast("tuple[object, object]", data))
        elif not isinstance(data, torch.utils.data.Dataset):
            raise ValueError(f"expected a Dataset or (x, y), got {kind_of(data)}")
        if count(data) == 0:
            raise ValueError("expected at least one row, got none")
        as_tensors(data, 64)
    except Exception as error:  # the user's own Dataset may fail in any way
        theirs = error.__cause__ if isinstance(error, BadRow) else None if isinstance(error, ValueError) else error
        says = f"expected rows (x, y), got {raised(theirs)}" if theirs else error
        raise BadSubject(f"{key} = {text!r}: {says}") from error
    return data


def _arrays(path: Path, key: str) -> tuple[object, object]:
    try:
        with path.open("rb") as handle, zipfile.ZipFile(handle):  # numpy would take what is no archive for a pickle
            handle.seek(0)
            with np.load(handle, allow_pickle=False) as archive:
                if {"x", "y"} <= set(archive.files):
                    return archive["x"], archive["y"]
                got = f"arrays {', '.join(archive.files) or 'none'}"
    except FileNotFoundError:
        raise BadSubject(f"{key}: expected a file at {path}, got none: check the path, relative to {FILE}") from None
    except Exception as error:  # a damaged archive fails in many ways, and the answer is one
        objects = "allow_pickle" in str(error)  # numpy advises to unpickle them
        got = "arrays of Python objects" if objects else f"a file that is no sound archive ({error})"
    raise BadSubject(
        f"{key}: expected arrays x and y of numbers in {path.name}, got {got}: write it with np.savez(path, x=x, y=y)"
    )


def demo(name: str, *, tick: Tick | None = None) -> Subject:
    """An embedded subject, trained on the spot the first time and read from the cache afterwards.

    `digits` is a small CNN on scikit-learn's digits (seconds); `fashion-mnist` is a ResNet-8 on Fashion-MNIST (minutes
    on a CPU, and 30 MB are downloaded if they are not on this machine). `tick(done, loss)` follows the training.
    """
    if name == "digits":
        net, recipe = nets.SmallCNN, partial(_recipe, net=nets.SmallCNN, epochs=15.0, batch=64, rate=0.1)
        body = partial(nets.encoder, stride=1)
        training, test = digits(True), digits(False)
    elif name == "fashion-mnist":
        net, recipe = nets.ResNet, partial(_recipe, net=nets.ResNet, epochs=3.0, batch=128, rate=0.2)
        body = nets.encoder
        training, test = fashion_mnist(True, download=True), fashion_mnist(False, download=True)
    else:
        raise BadSubject(f"expected a demo out of {', '.join(DEMOS)}, got {name!r}")
    return Subject(
        name=f"{name} demo",
        model=_trained(name, recipe, training, tick),
        test=test,
        train=training,
        recipe=recipe,
        net=net,
        limits=tuple(Ball.parse(text) for text in LIMITS[name]),
        body=body,
        origin={"demo": name},
    )


def _recipe(
    data: Data, *, net: Callable[[], nn.Module], epochs: float, batch: int, rate: float, tick: Tick | None = None
) -> nn.Module:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _seeded(net).to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    model = train.fit(model, data, epochs=epochs, batch=batch, rate=rate, seed=0, tick=tick)
    return model.to("cpu").to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]


def _seeded(net: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return net()


def _trained(name: str, recipe: partial[nn.Module], data: tuple[Tensor, Tensor], tick: Tick | None) -> nn.Module:
    """The demo's model: from the cache if everything that decides its weights is the same, else trained and kept."""
    model = _seeded(recipe.keywords["net"])
    settings = {key: value for key, value in recipe.keywords.items() if key != "net"}
    key = fingerprint(
        {
            "start": fingerprint_tensors(model.state_dict()),
            "data": fingerprint_tensors({"x": data[0], "y": data[1]}),
            "loop": inspect.getsource(train),
            "versions": [__version__, torch.__version__],
            **settings,
        }
    )
    path = cache_folder() / "demo" / f"{name}-{key}.safetensors"
    try:
        model.load_state_dict(load_file(path))
        return model.eval()
    except (OSError, SafetensorError, RuntimeError):  # not there, or damaged: made anew
        model = recipe(data, tick=tick)
    try:
        write_whole(path, save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}))
    except OSError as error:
        raise BadSubject(
            f"expected to keep the demo's weights at {path}, got {error.strerror}: set XDG_CACHE_HOME to another folder"
        ) from error
    return model
