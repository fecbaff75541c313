"""Weights in a file and the network that they belong to: safetensors, or `torch.load(weights_only=True)`.

Nothing is ever unpickled; what does not fit is one sentence.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from buckler.imported import FILE, BadSubject, kind_of, usable

SUFFIXES = (".safetensors", ".pt", ".pth")


def weighted(net: Callable[[], Any], path: Path, key: str = "weights", made_by: str = "net") -> nn.Module:
    """The network that `net` builds with the weights in `path`, evaluating; `key` and `made_by` say where in the
    subject's file these stand."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise BadSubject(
            f"{key}: expected a .safetensors file (or a .pt or .pth file of tensors), got {path.name}: "
            "files that can hold pickled code are not opened; save the state_dict with safetensors"
        )
    if not path.is_file():
        raise BadSubject(f"{key}: expected a file at {path}, got none: check the path, which is relative to {FILE}")
    try:
        if suffix == ".safetensors":
            weights = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what it warns of is the error below
                weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file fails in many ways, and the answer is one
        # torch's own text advises to unpickle the file
        why = "damaged, or pickled objects" if type(error).__name__ == "UnpicklingError" else str(error).strip()
        reason = why.splitlines()[0] if why else type(error).__name__
        raise BadSubject(
            f"{key}: expected only tensors in {path.name}, got a file that does not load as such ({reason[:160]}): "
            "save the state_dict with safetensors"
        ) from error
    model = net()
    if not isinstance(model, nn.Module):
        raise BadSubject(f"{made_by}: expected a function that returns an nn.Module, got {kind_of(model)}")
    if not isinstance(weights, Mapping) or not all(
        isinstance(name, str) and isinstance(w, Tensor) for name, w in cast("dict[object, object]", weights).items()
    ):
        keys = ", ".join(map(str, list(cast("dict[object, object]", weights))[:4])) if isinstance(weights, dict) else ""
        raise BadSubject(
            f"{key}: expected a state_dict (names and tensors) in {path.name}, got {kind_of(weights)}"
            f"{f' with {keys}' if keys else ''}: save model.state_dict() and nothing else"
        )
    try:
        model.load_state_dict(cast("dict[str, Tensor]", weights))
    except RuntimeError as error:
        wrong = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise BadSubject(
            f"{key}: expected the tensors of the network that {made_by} builds, got others: {wrong}"
        ) from error
    return usable(model.eval(), made_by)
