"""Rows: tensors, streaming, splits, real images and idx files."""

from __future__ import annotations

import gzip
import hashlib
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from buckler import data


class Counted(Dataset[tuple[Tensor, Tensor]]):
    """Rows made when they are asked for, which are remembered."""

    def __init__(self, many: int, shape: tuple[int, ...] = (1, 2, 2)) -> None:
        self.many, self.shape, self.asked = many, shape, list[int]()

    def __len__(self) -> int:
        return self.many

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        self.asked.append(row)
        return torch.full(self.shape, row / self.many), torch.tensor(row % 10)


def test_batches_stream_in_order() -> None:
    rows = Counted(10)
    stream = data.batches(rows, 4)
    x, y = next(stream)
    assert rows.asked == [0, 1, 2, 3], "no row is made before it is needed"
    assert x.shape == (4, 1, 2, 2)
    assert [len(part) for part, _ in stream] == [4, 2]
    assert rows.asked == list(range(10))
    assert y.dtype == torch.int64
    assert x.dtype == torch.float32


def test_only_one_batch_is_held_however_many_rows_there_are() -> None:
    alive: set[int] = set()
    most = [0]

    class Watched(Counted):
        def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
            x, y = super().__getitem__(row)
            alive.add(row)
            weakref.finalize(x, alive.discard, row)
            most[0] = max(most[0], len(alive))
            return x, y

    for _ in data.batches(Watched(500), 16):
        pass
    assert most[0] <= 2 * 16


@pytest.mark.parametrize("kind", ["tensors", "dataset"])
def test_the_same_rows_whatever_holds_them(kind: str) -> None:
    x, y = torch.rand(20, 3), torch.arange(20)
    rows: data.Data = (x, y)
    if kind == "dataset":
        rows = torch.utils.data.TensorDataset(x, y)  # pyright: ignore[reportAssignmentType]
    assert torch.equal(data.as_tensors(rows)[0], x)
    assert torch.equal(data.as_tensors(rows, 7)[1], y[:7])
    assert torch.equal(data.as_tensors(rows, torch.tensor([3, 19, 0]))[1], torch.tensor([3, 19, 0]))
    assert torch.equal(data.as_tensors(rows, [5])[0], x[5:6])
    assert data.count(rows) == 20
    assert len(data.as_tensors(rows, 99)[0]) == 20


def test_bytes_stay_bytes_until_they_are_taken() -> None:
    x = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
    held = data.from_arrays(x, [1])
    assert held[0].dtype == torch.uint8
    taken, _ = data.as_tensors(held)
    assert torch.equal(taken, torch.tensor([[0.0, 0.2, 1.0]]))


def test_arrays_are_rows_wherever_tensors_are() -> None:
    x, y = torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 1, 2, 0])
    pixels = (x * 255).round().to(torch.uint8)
    for held in (x, pixels):
        arrays = cast("data.Rows", (held.numpy(), y.numpy()))
        for kept in (data.raw, data.as_tensors):
            for one, other in zip(kept(arrays, [3, 0]), kept((held, y), [3, 0]), strict=True):
                assert one.dtype == other.dtype
                assert torch.equal(one, other)
    whole = data.raw(cast("data.Rows", (pixels.numpy(), y.numpy())))[0]
    whole += 1
    assert torch.equal(pixels, (x * 255).round().to(torch.uint8)), "a copy"
    with pytest.raises(ValueError, match="whole numbers"):
        data.raw(cast("data.Rows", (x.numpy(), y.float().numpy())))
    with pytest.raises(ValueError, match=r"expected data as \(x, y\), got a tuple of 3"):
        data.raw(cast("data.Rows", (x, y, y)))


def test_arrays_become_tensors() -> None:
    x, y = data.from_arrays(np.full((2, 3), 0.5), np.array([1, 0], np.uint8))
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (torch.full((3, 2), 255.0), torch.zeros(3).long(), "got values from 255 to 255"),
        (torch.full((3, 2), -0.1), torch.zeros(3).long(), r"in \[0, 1\]"),
        (torch.tensor([[0.5], [torch.nan]]), torch.zeros(2).long(), r"NaN or infinity \(first at row 1\)"),
        (torch.zeros(2, 2).int(), torch.zeros(2).long(), "uint8 or float"),
        (torch.zeros(2, 2), torch.zeros(2), "whole number"),
        (torch.zeros(2, 2), torch.tensor([0, -1]), r"labels 0 or more, got -1 \(first at row 1\)"),
        (torch.zeros(2, 2), torch.zeros(3).long(), "one label per row, got 2 rows and 3 labels"),
        (torch.zeros(0, 2), torch.zeros(0).long(), "at least one row"),
    ],
)
def test_what_is_not_legal_is_named(x: Tensor, y: Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        data.as_tensors((x, y))


class Odd(Counted):
    def __init__(self, row: object) -> None:
        super().__init__(3)
        self.row = row

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return super().__getitem__(row) if row < 2 else self.row  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (torch.zeros(1), r"rows \(x, y\), got Tensor at row 2"),
        ((torch.zeros(1), 1, 2), r"got tuple of 3 at row 2"),
        ((torch.zeros(5), 1), r"one shape and type, got \(1, 2, 2\) of torch.float32 at row 0 and \(5,\)"),
        ((object(), 1), "inputs as tensors or arrays"),
    ],
)
def test_odd_rows_of_a_dataset_are_named(row: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        data.as_tensors(Odd(row))


def test_a_stream_without_length_is_refused() -> None:
    class Stream(torch.utils.data.IterableDataset[tuple[Tensor, Tensor]]):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield torch.zeros(1), torch.tensor(0)

    with pytest.raises(ValueError, match="Dataset with a length, got Stream"):
        next(data.batches(Stream()))


def test_rows_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="rows in 0 to 1, got 0 to 2"):
        data.as_tensors((torch.zeros(2, 1), torch.zeros(2).long()), [0, 2])


def test_split_is_disjoint_whole_and_decided_by_the_seed() -> None:
    rows = (torch.arange(100).float()[:, None] / 100, torch.arange(100))
    before = torch.random.get_rng_state()
    first, second = data.split(rows, 0.3, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    labels = [data.as_tensors(part)[1] for part in (first, second)]
    assert [len(part) for part in labels] == [30, 70]
    assert sorted(torch.cat(labels).tolist()) == list(range(100))
    assert torch.equal(data.as_tensors(data.split(rows, 0.3, seed=1)[0])[1], labels[0])
    assert not torch.equal(data.as_tensors(data.split(rows, 0.3, seed=2)[0])[1], labels[0])
    streamed = data.split(Counted(100), 0.3, seed=1)[0]
    assert torch.equal(data.as_tensors(streamed)[1], labels[0] % 10)
    with pytest.raises(ValueError, match="between 0 and 1"):
        data.split(rows, 1.0)


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    (x, y), (tx, ty) = data.digits(True), data.digits(False)
    assert x.shape == (1197, 1, 8, 8)
    assert tx.shape == (600, 1, 8, 8)
    assert float(tx.max()) == 1.0
    both = torch.cat([x, tx]).flatten(1) * 16
    original = torch.from_numpy(load_digits().data).float()
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, original.tolist()))
    assert torch.bincount(torch.cat([y, ty])).tolist() == np.bincount(load_digits().target).tolist()


def idx(array: np.ndarray) -> bytes:
    """An idx file written as its description says, number by number."""
    sizes = b"".join(int(side).to_bytes(4, "big") for side in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + bytes(array.flatten().tolist())


def test_idx_files_are_read() -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 4, 5), np.uint8)
    assert np.array_equal(data.read_idx(idx(array), "a"), array)


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x00", b"\x00\x00\x09\x01\x00\x00\x00\x00", b"\x00\x00\x08\x03\x00\x00"]
)
def test_a_file_that_is_not_idx_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="a: expected an idx file"):
        data.read_idx(content, "a")


def test_a_cut_idx_file_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected 6 bytes for shape \(2, 3\), got 5"):
        data.read_idx(idx(np.zeros((2, 3), np.uint8))[:-1], "a")


@pytest.fixture
def fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without Fashion-MNIST, and an address where small files of its form are published."""
    rng = np.random.default_rng(0)
    published = tmp_path / "published"
    published.mkdir()
    sums: dict[str, str] = {}
    for part, many in (("train", 6), ("t10k", 4)):
        for name, shape in ((f"{part}-images-idx3-ubyte", (many, 28, 28)), (f"{part}-labels-idx1-ubyte", (many,))):
            content = idx(rng.integers(0, 10, shape, np.uint8))
            (published / f"{name}.gz").write_bytes(gzip.compress(content))
            sums[name] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(data, "SHA256", sums)
    monkeypatch.setattr(data, "DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(data, "FASHION_MNIST", published.as_uri() + "/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return published


def test_fashion_mnist_is_downloaded_only_when_asked(fashion: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="install Debian's package dataset-fashion-mnist"):
        data.fashion_mnist(True)
    assert not (tmp_path / "cache").exists()
    x, y = data.fashion_mnist(True, download=True)
    assert x.shape == (6, 1, 28, 28)
    assert x.dtype == torch.uint8
    assert y.shape == (6,)
    for file in fashion.iterdir():
        file.unlink()
    assert torch.equal(data.fashion_mnist(True)[0], x), "the second time it comes from the cache"


def test_debians_files_are_preferred(fashion: Path, tmp_path: Path) -> None:
    fashion.rename(tmp_path / "debian")
    assert data.fashion_mnist(False)[0].shape == (4, 1, 28, 28)
    assert not (tmp_path / "cache").exists()


def test_other_content_is_refused_and_not_kept(fashion: Path, tmp_path: Path) -> None:
    name = "t10k-images-idx3-ubyte.gz"
    (fashion / name).write_bytes(gzip.compress(idx(np.zeros((4, 28, 28), np.uint8))))
    with pytest.raises(ValueError, match="expected content with SHA-256"):
        data.fashion_mnist(False, download=True)
    (fashion / name).write_bytes(gzip.compress(b"x" * 100)[:-20])
    with pytest.raises(ValueError, match="damaged"):
        data.fashion_mnist(False, download=True)
    (fashion / name).unlink()
    with pytest.raises(ValueError, match="go online, or install"):
        data.fashion_mnist(False, download=True)
    assert not list(tmp_path.glob("cache/**/*.gz"))


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    data.write_whole(tmp_path / "a" / "b", b"one")
    data.write_whole(tmp_path / "a" / "b", b"two")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    with pytest.raises(TypeError):
        data.write_whole(tmp_path / "a" / "c", "not bytes")  # type: ignore[arg-type]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_the_real_fashion_mnist_if_it_is_here() -> None:
    if not data.DEBIAN.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    x, y = data.fashion_mnist(False)
    assert x.shape == (10_000, 1, 28, 28)
    assert torch.bincount(y).tolist() == [1000] * 10


def test_raw_rows_keep_their_eight_bits_and_are_a_copy() -> None:
    x = torch.arange(24, dtype=torch.uint8).view(6, 1, 2, 2)
    y = torch.arange(6)
    held, labels = data.raw((x, y), [4, 1])
    assert held.dtype == torch.uint8
    assert torch.equal(held, x[[4, 1]])
    assert labels.tolist() == [4, 1]
    held += 1
    assert int(x[4, 0, 0, 0]) == 16
    assert data.raw((x.float() / 255, y))[0].dtype == torch.float32
    with pytest.raises(ValueError, match="at least one row"):
        data.raw((x, y), [])


def test_a_class_rate_leaves_covers_out() -> None:
    y = torch.tensor([0, 0, 0, 0, 1, 1])
    rows, covers = torch.tensor([1, 1, 0, 0, 1, 0]).bool(), torch.tensor([0, 0, 0, 0, 1, 0]).bool()
    held = data.Poisoned(torch.zeros(6, 1, 2, 2), y, rows, y, covers=covers)
    assert held.class_rate == 0.5
    assert held.poison.tolist() == [True, True, False, False, False, False]
    assert held.seen == (held.x, held.y)
    assert data.Poisoned(held.x, y, rows & False, y).class_rate == 0.0


def test_floats_and_back_are_the_same_bytes() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(data.floats(every), torch.tensor([value / 255 for value in range(256)]))
    assert torch.equal(data.held_as(every, data.floats(every)), every)
    assert data.held_as(every, torch.tensor([0.5019, 0.5021])).tolist() == [128, 128]
    half = torch.tensor([0.3], dtype=torch.float64)
    assert data.floats(half) is half
    assert torch.equal(data.held_as(torch.zeros(1), half), half.float())


def test_drawn_rows_are_so_many_at_most_in_order_and_by_seed() -> None:
    rows = (torch.rand(100, 2), torch.zeros(100, dtype=torch.long))
    assert data.drawn(rows, 100, 3).tolist() == data.drawn(rows, 900, 4).tolist() == list(range(100))
    few, again, other = (data.drawn(rows, 30, seed).tolist() for seed in (3, 3, 4))
    assert few == again == sorted(set(few))
    assert len(few) == 30
    assert few != other
    assert max(few) > 30, "not simply the first"
