"""An encoder of the user's own, and the classifier that a linear probe makes of it where no model is given."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from buckler import __version__, embedding, train
from buckler.contract import check_encoder, fatal
from buckler.data import Data, Rows, as_tensors, cache_folder, drawn, raw, write_whole
from buckler.embedding import Probe, Probed, probed
from buckler.huggingface import hugging_face
from buckler.imported import BadSubject, classes, imported, kind_of, usable
from buckler.target import Oracle
from buckler.trial import fingerprint, fingerprint_model, fingerprint_tensors
from buckler.weights import SUFFIXES, weighted

ROWS = 2000
"""How many training rows a probe learns from at most: that many are features soon computed, and enough."""


def encoder(folder: Path, text: str, body: Callable[[], Any] | None) -> nn.Module | Oracle:
    """What `encoder = text` names: a folder of Hugging Face's, a file of weights (with `body`, the encoder untrained),
    or a function `module:name`."""
    path = folder / text
    if path.is_dir():
        return hugging_face(path)
    if path.suffix.lower() in SUFFIXES:
        if body is None:
            raise BadSubject(
                f"encoder = {text!r}: expected body as well, the function that builds the encoder untrained, got none: "
                "add body"
            )
        return weighted(body, path, "encoder", "body")
    if ":" not in text:
        raise BadSubject(
            f"encoder = {text!r}: expected 'module:function', a .safetensors file, or a folder that save_pretrained "
            f"wrote, got no folder at {path}: nothing is fetched, so a name on the hub has to be downloaded first"
        )
    made = imported(folder, "encoder", text)()
    if isinstance(made, nn.Module):
        return usable(made, f"encoder = {text!r}")
    if not isinstance(made, Oracle) or made.reveals != "features":
        got = f"an Oracle that reveals {made.reveals}" if isinstance(made, Oracle) else kind_of(made)
        raise BadSubject(f"encoder = {text!r}: expected a function that returns an nn.Module, got {got}")
    return made


def classifier(found: nn.Module | Oracle, train_data: Data | None, test: Data) -> nn.Module | Oracle:
    """The subject's `model` where it brings an encoder alone: the encoder with a linear probe that learnt at most
    `ROWS` labels of `train`, kept in the cache, so that every process reads the same. Of an encoder that can only be
    asked no probe is learnt, as every answer may cost: the model is the oracle of features itself."""
    if isinstance(found, Oracle):
        return found
    if train_data is None:
        raise BadSubject(
            "[subject]: expected model, or train with labels from which a probe above the encoder is learnt, "
            "got neither: add train"
        )
    rows = raw(train_data, drawn(train_data, ROWS, 0))
    if len(rows[1].unique()) < 2:
        raise BadSubject(
            f"train: expected labels of at least two classes for a probe above the encoder, got "
            f"{int(rows[1][0])} on all {len(rows[1])} rows: give a task's labels, or a model"
        )
    for check in check_encoder(found, *as_tensors(test, 64)):
        if fatal(check):
            raise BadSubject(f"encoder: {check.says[0].lower()}{check.says[1:]}")
    try:
        return _kept(found, rows)
    except ValueError as error:
        raise BadSubject(f"encoder: {error}") from error


def _kept(encoder: nn.Module, rows: Rows) -> nn.Module:
    key = fingerprint(
        {
            "encoder": [fingerprint_model(encoder), classes(encoder)],
            "data": fingerprint_tensors({"x": rows[0], "y": rows[1]}),
            "loop": [inspect.getsource(train), inspect.getsource(embedding)],
            "versions": [__version__, torch.__version__],
        }
    )
    path = cache_folder() / "probes" / f"{key}.safetensors"
    try:
        held = load_file(path)
        probe = Probe(torch.zeros(2, len(held["mean"])), len(held["linear.bias"]))
        probe.load_state_dict(held)
        return Probed(encoder, probe).eval()
    except (OSError, SafetensorError, RuntimeError, KeyError):  # not there, or damaged: made anew
        made = probed(encoder, rows)
    try:
        write_whole(path, save({name: tensor.contiguous() for name, tensor in made.probe.state_dict().items()}))
    except OSError as error:
        raise BadSubject(
            f"expected to keep the probe at {path}, got {error.strerror}: set XDG_CACHE_HOME to another folder"
        ) from error
    return made
