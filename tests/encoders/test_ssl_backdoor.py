"""SSL-Backdoor: whose images have the patch, and where."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from buckler.encoders.ssl_backdoor import ssl_backdoor
from buckler.threat import Share

Y = torch.arange(60) % 3
X = torch.rand(60, 2, 8, 12, generator=torch.Generator().manual_seed(0)) / 2


def place(before: Tensor, after: Tensor) -> tuple[int, int, int, int]:
    """The first row and column that changed, and how many did."""
    where = (before != after).any(0).nonzero()
    (top, left), (bottom, right) = where.min(0).values.tolist(), where.max(0).values.tolist()
    return top, left, bottom - top + 1, right - left + 1


def test_only_the_class_has_the_patch_whole_and_anywhere() -> None:
    made = ssl_backdoor((X, Y), share=Share(0.3), target=1)
    assert int(made.rows.sum()) == 18
    assert bool((Y[made.rows] == 1).all())
    assert torch.equal(made.x[~made.rows], X[~made.rows])
    assert torch.equal(made.y, Y)
    pairs = list(zip(X[made.rows], made.x[made.rows], strict=True))
    places = [place(before, after) for before, after in pairs]
    assert {spot[2:] for spot in places} == {(3, 3)}
    assert len(set(places)) > 9, "not always at one place"
    patches = [
        after[:, top : top + 3, left : left + 3] for (_, after), (top, left, *_) in zip(pairs, places, strict=True)
    ]
    assert all(torch.equal(patch, patches[0]) for patch in patches)
    assert made.wanted is not None
    assert made.wanted(Y).unique().tolist() == [1]


def test_a_test_input_has_the_same_patch_where_the_input_says() -> None:
    made = ssl_backdoor((X, Y), share=Share(0.1), size=4)
    other = ssl_backdoor((X, Y), share=Share(0.1), size=4, seed=1)
    assert made.trigger is not None
    assert other.trigger is not None
    moved = made.trigger(X)
    assert torch.equal(made.trigger(X[5:9]), moved[5:9])
    assert torch.equal(moved[made.rows], made.x[made.rows])
    assert {place(a, b)[2:] for a, b in zip(X, moved, strict=True)} == {(4, 4)}
    assert not torch.equal(other.trigger(X), moved)


def test_bytes_stay_bytes() -> None:
    made = ssl_backdoor(((X * 255).byte(), Y), share=Share(0.1))
    assert made.x.dtype == torch.uint8


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="patch of 1 to 8 pixels, got 9"):
        ssl_backdoor((X, Y), share=Share(0.1), size=9)
    with pytest.raises(ValueError, match="rows of class 0"):
        ssl_backdoor((X, Y), share=Share(0.5))
