"""Rows: how test and training data are read, split and streamed; and two sets of real images.

Data is tensors `(x, y)`, `x` `(N, ...)` float in [0, 1] or uint8 (kept so, divided by 255 when rows are taken), `y`
`(N,)` whole numbers; or a `torch.utils.data.Dataset` of such rows with a length. Whatever is read here has been looked
at: finite, in [0, 1], labelled. What is not raises a `ValueError` that names the rows.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

Rows: TypeAlias = tuple[Tensor, Tensor]
Data: TypeAlias = Rows | Dataset[tuple[Tensor, Tensor]]

FASHION_MNIST = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
"""Where Xiao, Rasul and Vollgraf publish Fashion-MNIST, https://arxiv.org/abs/1708.07747."""
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""Of the files' content, so that it does not matter who compressed them."""

MOST_OF = 0.8
"""The share of the rows of a class that `mixed` hands out at most, so that no two get the same."""


@dataclass(frozen=True, eq=False)
class Poisoned:
    """Training rows that an adversary has touched, and what only the adversary and the evaluator know of them.

    A defence is given `seen`, which holds nothing else. `x` `(N, C, H, W)` and `y` `(N,)` are what a trainer gets;
    `rows` `(N,)` is true where a row was touched, `covers` `(N,)` where a touched row keeps its true label on purpose;
    `original` `(N,)` are the labels before. `trigger` changes test inputs `(B, C, H, W)` in [0, 1], and `wanted` gives
    the label that the adversary wants for inputs with true labels `(B,)`; without a trigger, `prey` are inputs and the
    labels wanted for them, and with neither the adversary wants the model to be wrong. `survives` says whether the
    trigger outlives flips and crops.
    """

    x: Tensor
    y: Tensor
    rows: Tensor
    original: Tensor
    trigger: Callable[[Tensor], Tensor] | None = None
    wanted: Callable[[Tensor], Tensor] | None = None
    prey: Rows | None = None
    covers: Tensor | None = None
    survives: bool = True

    @property
    def seen(self) -> Rows:
        """What a trainer and a defence are given."""
        return self.x, self.y

    @property
    def poison(self) -> Tensor:
        """The rows that teach what the adversary wants, covers aside: `(N,)`."""
        return self.rows if self.covers is None else self.rows & ~self.covers

    @property
    def class_rate(self) -> float:
        """The share of poisoned rows in the label that holds most of them, as the trainer sees labels."""
        if not bool(self.poison.any()):
            return 0.0
        many = torch.bincount(self.y[self.poison])
        label = int(many.argmax())
        return int(many[label]) / int((self.y == label).sum())


class BadRow(ValueError):
    """A row that the user's own Dataset cannot give; the cause is what it raised."""


def count(data: Data) -> int:
    """How many rows there are; data without a length is a `ValueError`."""
    if isinstance(data, tuple):
        if len(data[0]) != len(data[1]):
            raise ValueError(f"expected one label per row, got {len(data[0])} rows and {len(data[1])} labels")
        return len(data[0])
    if not isinstance(data, Sized):
        raise ValueError(f"expected a Dataset with a length, got {type(data).__name__}, which has no __len__")
    return len(data)


def floats(x: Tensor) -> Tensor:
    """`x` as float in [0, 1]: uint8 divided by 255, anything else as it is."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


def held_as(like: Tensor, x: Tensor) -> Tensor:
    """`x`, float in [0, 1], of the type of `like`: rounded to eight bits where that is uint8."""
    return (x * 255).round().to(torch.uint8) if like.dtype == torch.uint8 else x.to(like.dtype)


def batches(data: Data, size: int = 256, rows: int | Sequence[int] | Tensor | None = None) -> Iterator[Rows]:
    """Stream `data` in order as `x` `(B, ...)` float32 in [0, 1] and `y` `(B,)` int64, B <= `size`.

    `rows` is how many of the first rows to take, or which; all of them if not given. Only one batch is held at a time.
    """
    data = _pair(data)
    many = count(data)
    index = range(min(rows, many)) if isinstance(rows, int) else range(many) if rows is None else _checked(rows, many)
    for start in range(0, len(index), size):
        part = index[start : start + size]
        x, y = _taken(data, part)
        yield _inputs(x, part), _labels(y, part)


def as_tensors(data: Data, rows: int | Sequence[int] | Tensor | None = None) -> Rows:
    """`x` `(N, ...)` float32 in [0, 1] and `y` `(N,)` int64: all of `data`, its first `rows`, or the rows listed."""
    parts = list(batches(data, 1024, rows))
    if not parts:
        raise ValueError("expected at least one row of data, got none")
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def raw(data: Data, rows: int | Sequence[int] | Tensor | None = None) -> Rows:
    """`x` `(N, ...)` as uint8 where it is, else float32 in [0, 1], and `y` `(N,)` int64: checked, in memory, a copy."""
    data = _pair(data)
    if not (isinstance(data, tuple) and data[0].dtype == torch.uint8):
        return as_tensors(data, rows)
    index = torch.arange(count(data))[:rows] if rows is None or isinstance(rows, int) else torch.as_tensor(rows)
    if len(index) == 0:
        raise ValueError("expected at least one row of data, got none")
    return data[0][index], _labels(data[1][index], index.tolist())


def split(data: Data, share: float, *, seed: int = 0) -> tuple[Data, Data]:
    """Two disjoint parts of `data`, the first with `share` of the rows, drawn by `seed` alone."""
    if not 0 < share < 1:
        raise ValueError(f"expected a share between 0 and 1, got {share}")
    many = count(data)
    order = torch.randperm(many, generator=torch.Generator().manual_seed(seed))
    first, second = order[: round(share * many)], order[round(share * many) :]
    if isinstance(data, tuple):
        x, y = data
        return (x[first], y[first]), (x[second], y[second])
    return Subset(data, first.tolist()), Subset(data, second.tolist())


def drawn(data: Data, most: int, seed: int) -> Tensor:
    """Which rows of `data` to use where at most so many are: drawn by `seed` alone, in their order, `(N,)`."""
    return torch.randperm(count(data), generator=torch.Generator().manual_seed(seed))[:most].sort().values


def mixed(y: Tensor, label: int, shares: tuple[float, ...], models: int, seed: int) -> tuple[Tensor, Tensor]:
    """Who learns from what, `(models, N)`, and which of `shares` it has of class `label`, `(models,)`, in turns.

    All learn from equally many rows, drawn by `seed` out of those labelled `y` `(N,)`. A `ValueError` for shares that
    are no shares, too few models, or too few rows.
    """
    own, others = (y == label).nonzero().squeeze(1), (y != label).nonzero().squeeze(1)
    if len(shares) < 2 or not all(0 <= share < 1 for share in shares) or models < len(shares):
        raise ValueError(f"expected shares of 0 or more and below 1, a model for each, got {shares} and {models}")
    room = [MOST_OF * len(own) / max(shares)] if max(shares) else []
    size = int(min(*room, MOST_OF * len(others) / (1 - min(shares)), len(y)))
    if size < 10:
        raise ValueError(f"expected rows enough for {shares} of class {label}, got {len(own)} of {len(y)}")
    draw = torch.Generator().manual_seed(seed)
    held = torch.zeros(models, len(y), dtype=torch.bool)
    which = torch.arange(models) % len(shares)
    for model, kind in enumerate(which.tolist()):
        many = round(shares[kind] * size)
        held[model, own[torch.randperm(len(own), generator=draw)[:many]]] = True
        held[model, others[torch.randperm(len(others), generator=draw)[: size - many]]] = True
    return held, which


def from_arrays(x: object, y: object) -> Rows:
    """Tensors `(x, y)` from anything array-like; `x` stays uint8 if it is, and becomes float32 otherwise."""
    inputs, labels = _tensor(x, "inputs"), _tensor(y, "labels")
    if inputs.dtype != torch.uint8:
        if not inputs.is_floating_point():
            raise ValueError(f"expected inputs as uint8 or float in [0, 1], got {inputs.dtype}")
        inputs = inputs.float()
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"expected labels (N,) as whole numbers, got {tuple(labels.shape)} of {labels.dtype}")
    count((inputs, labels))
    return inputs, labels.long()


def digits(train: bool) -> Rows:
    """Scikit-learn's 1,797 scans of handwritten digits, `(N, 1, 8, 8)`: 1,197 to train on and 600 to test with."""
    from sklearn.datasets import load_digits  # only here: it takes half a second to import

    images, labels = cast("tuple[np.ndarray, np.ndarray]", load_digits(return_X_y=True))
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16
    first, second = split((x, torch.from_numpy(labels).long()), 1197 / 1797, seed=0)
    return cast(Rows, first if train else second)


def fashion_mnist(train: bool, *, download: bool = False) -> Rows:
    """Fashion-MNIST as uint8 `(N, 1, 28, 28)`: 60,000 images to train on or 10,000 to test with.

    Read from Debian's package, else from the cache, else, with `download`, from where it is published. Every file's
    SHA-256 is compared. A `ValueError` says how to get the files if there are none.
    """
    part = "train" if train else "t10k"
    images = read_idx(_fashion_file(f"{part}-images-idx3-ubyte", download), f"{part}-images-idx3-ubyte")
    labels = read_idx(_fashion_file(f"{part}-labels-idx1-ubyte", download), f"{part}-labels-idx1-ubyte")
    return torch.from_numpy(images)[:, None], torch.from_numpy(labels).long()


def read_idx(content: bytes, name: str) -> np.ndarray:
    """The array in an idx file of unsigned bytes (LeCun, http://yann.lecun.com/exdb/mnist/): `(N, ...)` uint8."""
    head = np.frombuffer(content[:4], np.uint8)
    if len(head) < 4 or head[0] or head[1] or head[2] != 8 or len(content) < 4 + 4 * int(head[3]):
        raise ValueError(f"{name}: expected an idx file of unsigned bytes, got {content[:4].hex() or 'an empty file'}")
    shape = [int(side) for side in np.frombuffer(content, ">u4", int(head[3]), 4)]
    body = np.frombuffer(content, np.uint8, offset=4 + 4 * int(head[3]))
    if len(body) != np.prod(shape):
        raise ValueError(f"{name}: expected {np.prod(shape)} bytes for shape {tuple(shape)}, got {len(body)}")
    return body.reshape(shape).copy()


def cache_folder() -> Path:
    """Where downloads and the demo's trained weights are kept: `$XDG_CACHE_HOME/buckler`, else `~/.cache/buckler`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "buckler"


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` as `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def _fashion_file(name: str, download: bool) -> bytes:
    cached = cache_folder() / "fashion-mnist" / f"{name}.gz"
    for path in (DEBIAN / f"{name}.gz", cached):
        if path.is_file():
            return _verified(path.read_bytes(), name, str(path))
    if not download:
        raise ValueError(
            "expected Fashion-MNIST on this machine, got no file: install Debian's package dataset-fashion-mnist, "
            "or let `buckler audit --demo fashion-mnist` download it (30 MB)"
        )
    address = f"{FASHION_MNIST}{name}.gz"
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            packed = answer.read()
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise ValueError(
            f"expected to download {address}, got {error}: go online, or install Debian's package dataset-fashion-mnist"
        ) from error
    content = _verified(packed, name, address)
    write_whole(cached, packed)
    return content


def _verified(packed: bytes, name: str, where: str) -> bytes:
    try:
        content = gzip.decompress(packed)
    except (OSError, EOFError) as error:
        raise ValueError(
            f"{where}: expected a gzip file, got a damaged one ({error}): remove it and try again"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[name]:
        raise ValueError(
            f"{where}: expected content with SHA-256 {SHA256[name]}, got {digest}: remove it and try again"
        )
    return content


def _pair(data: Data) -> Data:
    """`data` as it is, or as tensors where it is a pair of arrays; a `ValueError` for a tuple that is no pair."""
    if not isinstance(data, tuple):
        return data
    parts = cast("tuple[object, ...]", data)
    if len(parts) != 2:
        raise ValueError(f"expected data as (x, y), got a tuple of {len(parts)}")
    return data if all(isinstance(part, Tensor) for part in parts) else from_arrays(*parts)


def _checked(rows: Sequence[int] | Tensor, many: int) -> list[int]:
    index = [int(row) for row in rows]
    if index and not 0 <= min(index) <= max(index) < many:
        raise ValueError(f"expected rows in 0 to {many - 1}, got {min(index)} to {max(index)}")
    return index


def _taken(data: Data, part: Sequence[int]) -> Rows:
    if isinstance(data, tuple):
        rows = slice(part.start, part.stop) if isinstance(part, range) else torch.as_tensor(part)
        return data[0][rows], data[1][rows]
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    for row in part:
        try:
            pair = cast(object, data[row])
        except Exception as error:  # the user's own Dataset may fail in any way
            raise BadRow(f"expected rows (x, y), got {type(error).__name__}: {error} at row {row}") from error
        if not isinstance(pair, tuple | list) or len(cast("Sequence[object]", pair)) != 2:
            raise ValueError(f"expected a Dataset of rows (x, y), got {_named(pair)} at row {row}")
        x, y = cast("Sequence[object]", pair)
        xs.append(_tensor(x, "inputs"))
        ys.append(_tensor(y, "labels"))
    for row, x in zip(part, xs, strict=True):
        if x.shape != xs[0].shape or x.dtype != xs[0].dtype:
            raise ValueError(
                f"expected rows of one shape and type, got {tuple(xs[0].shape)} of {xs[0].dtype} at row {part[0]} "
                f"and {tuple(x.shape)} of {x.dtype} at row {row}"
            )
    return torch.stack(xs), torch.stack(ys)


def _tensor(value: object, what: str) -> Tensor:
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise ValueError(f"expected {what} as a dense tensor, got {value.layout}: call .to_dense() on it")
        return value.detach()
    try:
        array = np.require(value, requirements="W")  # torch warns of what cannot be written to
        return torch.as_tensor(array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("=")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected {what} as tensors or arrays of numbers, got {_named(value)}") from error


def _named(value: object) -> str:
    long = isinstance(value, tuple | list) and len(cast("Sequence[object]", value)) != 2
    return f"{type(value).__name__} of {len(cast('Sequence[object]', value))}" if long else type(value).__name__


def _inputs(x: Tensor, part: Sequence[int]) -> Tensor:
    if not x[:1].numel():
        raise ValueError(f"expected inputs (N, ...) with at least one element per row, got {tuple(x.shape)}")
    if x.dtype == torch.uint8:
        return floats(x)
    if not x.is_floating_point():
        raise ValueError(f"expected inputs as uint8 or float in [0, 1], got {x.dtype}")
    x = x.float()
    if x.numel() and not bool(((x >= 0) & (x <= 1)).all()):
        bad = ~((x >= 0) & (x <= 1)).flatten(1).all(1)
        row = part[int(bad.nonzero()[0])]
        values = (
            f"values from {float(x.min()):.4g} to {float(x.max()):.4g}" if x.isfinite().all() else "NaN or infinity"
        )
        raise ValueError(
            f"expected inputs in [0, 1], got {values} (first at row {row}): "
            "scale the data to [0, 1] and put any normalisation inside the model"
        )
    return x


def _labels(y: Tensor, part: Sequence[int]) -> Tensor:
    if y.ndim != 1 or y.is_floating_point() or y.is_complex():
        raise ValueError(f"expected one whole number per row as its label, got {tuple(y.shape)} of {y.dtype}")
    y = y.long()
    if bool((y < 0).any()):
        row = part[int((y < 0).nonzero()[0])]
        raise ValueError(f"expected labels 0 or more, got {int(y.min())} (first at row {row})")
    return y
