"""Blacklight against sets of windows that nobody hashed, and against what it is known to see and not to see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from buckler.data import Rows
from buckler.theft._traffic import Unsuited
from buckler.theft.stateful import stateful


def images(many: int, seed: int = 0, side: int = 8) -> Tensor:
    return torch.rand(many, 1, side, side, generator=torch.Generator().manual_seed(seed))


def asked(x: Tensor) -> Rows:
    return x, torch.zeros(len(x), dtype=torch.long)


def naive(x: Tensor, window: int, stride: int, coarse: int) -> list[int]:
    """The most windows, all of them kept and none hashed, that an input shares with an earlier one."""
    kept: list[set[tuple[int, ...]]] = []
    scores: list[int] = []
    for row in x.flatten(1):
        pixels = [round(float(p) * 255 / coarse) for p in row]
        mine = {tuple(pixels[at : at + window]) for at in range(0, len(pixels) - window + 1, stride)}
        scores.append(max((len(mine & other) for other in kept), default=0))
        kept.append(mine)
    return scores


@pytest.mark.parametrize(("window", "stride", "coarse"), [(20, 1, 50), (4, 3, 120), (2, 1, 200)])
def test_all_fingerprints_are_all_windows(window: int, stride: int, coarse: int) -> None:
    x = images(12)
    walk = (x[:6] + 0.1 * images(6, 1)).clamp(0, 1)
    flat = torch.zeros(2, 1, 8, 8)
    stream = torch.cat([x, walk, x[:3], flat])
    found = stateful(asked(stream), threshold=0, keep=64, window=window, stride=stride, coarse=coarse)
    assert found.score.tolist() == naive(stream, window, stride, coarse)
    assert float(found.score[-1]) == 1, "windows that are alike count once"


def test_of_many_windows_only_the_highest_hashes_are_compared() -> None:
    x = images(2, side=16)
    stream = torch.cat([x, x[:1]])
    assert stateful(asked(stream)).score.tolist() == [0, 0, 50]
    half = x[:1].clone()
    half[:, :, 8:] = images(1, 9, side=16)[:, :, 8:]
    shared = [float(stateful(asked(torch.cat([x[:1], half])), seed=seed).score[1]) for seed in range(40)]
    assert len(set(shared)) > 3, "which ones they are is the key's secret"
    whole = naive(torch.cat([x[:1], half]), 20, 1, 50)[1]
    assert sum(shared) / 40 == pytest.approx(50 * whole / 237, rel=0.15)


def test_inputs_sent_again_are_flagged_and_different_ones_are_not() -> None:
    x = images(300)
    assert not stateful(asked(x)).flagged.any()
    found = stateful(asked(torch.cat([x[:50], x[7:8], x[50:80]])))
    assert found.flagged.nonzero()[0] == 50
    assert found.flagged[50:].all()


def test_small_steps_are_seen_and_large_ones_are_not() -> None:
    x, draw = images(1), torch.Generator().manual_seed(3)
    noise = 2 * torch.rand(60, 1, 8, 8, generator=draw) - 1
    assert stateful(asked((x + 0.01 * noise).clamp(0, 1))).flagged[1:].float().mean() > 0.9
    assert not stateful(asked((x + 0.3 * noise).clamp(0, 1))).flagged.any()


@pytest.mark.parametrize("many", [0, 1, 20])
def test_the_past_alone_decides(many: int) -> None:
    x = torch.cat([images(20), images(20)])
    part = stateful(asked(x[:many]))
    assert torch.equal(part.score, stateful(asked(x)).score[:many])
    assert part.flagged.shape == (many,)
    assert part.flagged.dtype == torch.bool


@pytest.mark.parametrize("sides", [6, 20, 44])
def test_inputs_too_small_to_be_flagged_at_all_are_refused(sides: int) -> None:
    with pytest.raises(Unsuited, match=f"more than 25 windows of 20 pixels, got {max(0, sides - 19)} in {sides}"):
        stateful(asked(torch.rand(3, sides)))
    assert stateful(asked(torch.rand(1, 45).expand(3, 45))).flagged[-1]


@pytest.mark.parametrize(
    "wrong",
    [{"threshold": -1}, {"threshold": 50}, {"keep": 0}, {"stride": 0}, {"coarse": 0}, {"coarse": 256}, {"window": 65}],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        stateful(asked(images(3)), **wrong)
