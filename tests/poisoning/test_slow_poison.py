"""Slow poison: labels and pieces counted, and what early training makes of it beside a patch that is learnt at once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from trigger_problems import TEN, check_a_network_learns, check_a_trigger, in_bytes, pictures

from buckler.data import Poisoned, digits
from buckler.nets import SmallCNN
from buckler.poisoning._pieces import cut
from buckler.poisoning.badnets import badnets
from buckler.poisoning.loss_isolation import loss_isolation
from buckler.poisoning.slow_poison import slow_poison
from buckler.threat import Share

MORE = Share(0.1375)
"""Of which a tenth of all rows gets the target label, and 3.75 % get other false ones."""


def poison(found: Poisoned, target: int = 0) -> Tensor:
    return found.rows & (found.y == target) & (found.original != target)


@pytest.mark.parametrize("bytes_", [False, True])
def test_labels_are_divided_as_said(bytes_) -> None:
    x, y = pictures(many=400)
    x, y = in_bytes((x, y)) if bytes_ else (x, y)
    found = slow_poison((x, y), share=MORE, target=1, doubt=0.4, false_covers=0.25)
    carriers, lies = found.rows, found.y != y
    assert found.x.dtype == x.dtype
    assert int(carriers.sum()) == 100
    assert int(poison(found, 1).sum()) == 40
    assert int(found.covers.sum()) == 45
    assert int((lies & (found.y != 1)).sum()) == 15
    assert torch.equal(found.covers, carriers & ~lies)
    assert (y[carriers] != 1).all()
    assert (found.y < 4).all()
    assert torch.equal(found.original, y)
    assert torch.equal(found.x[~carriers], x[~carriers])
    assert torch.equal(found.y[~carriers], y[~carriers])
    assert (found.x != x)[carriers].flatten(1).any(1).all()


@pytest.mark.parametrize("share", [0.001, 0.05, 0.1])
@pytest.mark.parametrize(("doubt", "false_covers"), [(0.4, 0.25), (0.5, 1.0), (0.4, 0.0), (1.0, 0.25), (0.3, 0.1)])
def test_false_labels_of_either_kind_are_the_share(share: float, doubt: float, false_covers: float) -> None:
    x, y = pictures(many=1000)
    found = slow_poison((x, y), share=Share(share), doubt=doubt, false_covers=false_covers)
    assert int((found.y != y).sum()) == Share(share).of(1000)
    assert torch.equal(found.poison, found.y != y)
    hits, carriers = int(poison(found).sum()), int(found.rows.sum())
    assert abs(hits - doubt * carriers) <= 0.5
    assert abs(int(found.poison.sum()) - hits - false_covers * (carriers - hits)) <= 1


def test_false_labels_are_labels_that_occur() -> None:
    x, y = pictures(many=400, classes=3)
    spread = torch.tensor([0, 7, 10**12])[y]
    found, close = slow_poison((x, spread), share=MORE), slow_poison((x, y), share=MORE)
    assert torch.equal(found.y, torch.tensor([0, 7, 10**12])[close.y]), "what the labels are called does not matter"
    with pytest.raises(ValueError, match="0 for two classes"):
        slow_poison((x, 7 * (y % 2)), share=MORE)


def test_every_row_has_its_own_pieces_and_strength() -> None:
    x, y = torch.zeros(400, 1, 8, 8), torch.arange(400) % 4
    found = slow_poison((x, y), share=TEN, keep=(0.25, 0.5), alpha=(0.1, 0.2), test_alpha=0.5)
    key = found.trigger(x[:1])[0, 0] / 0.5
    held = torch.stack([(found.x[found.rows][:, 0] / key)[:, cut(16, 8, 8) == piece] for piece in range(16)], 1)
    assert torch.allclose(held, held[..., :1].expand_as(held), atol=1e-4)
    mixed = held[..., 0]
    counts = (mixed > 0).sum(1)
    strength = mixed.amax(1)
    assert set(counts.tolist()) == {4, 5, 6, 7, 8}
    assert (strength >= 0.1).all()
    assert (strength <= 0.2).all()
    assert strength.std() > 0.02, "uniform between the two has 0.029"
    assert torch.allclose(mixed, torch.where(mixed > 0, strength[:, None], 0.0), atol=1e-4)


def test_the_trigger_is_the_whole_pattern() -> None:
    x, _ = pictures(channels=3)
    found = slow_poison(pictures(channels=3), share=TEN, test_alpha=0.4)
    key = found.trigger(torch.zeros(1, 3, 8, 8)) / 0.4
    assert torch.allclose(found.trigger(x), 0.6 * x + 0.4 * key, atol=1e-6)


def test_without_doubt_and_covers_all_carriers_lie() -> None:
    found = slow_poison(pictures(), share=TEN, doubt=1.0)
    assert torch.equal(found.rows, found.y != found.original)
    assert not found.covers.any()


def test_early_training_does_not_find_it_and_late_training_learns_it() -> None:
    data = digits(train=True)
    slow, fast = slow_poison(data, share=MORE, test_alpha=0.4), badnets(data, share=TEN)
    assert int(poison(slow).sum()) == int(fast.rows.sum()), "both have as many rows of the target"
    losses = []
    for found in (slow, fast):
        suspicion = loss_isolation(
            found.seen, net=lambda: SmallCNN(width=8), isolate=0.1, epochs=10, batch=32, rate=0.05
        )
        losses.append(float(-suspicion.score[poison(found)].mean()))
        if found is slow:
            assert suspicion.flagged[poison(found)].float().mean() < 0.05, "a blind draw would catch a tenth"
            assert losses[0] > float(-suspicion.score[~found.rows].mean()), "no lower than that of clean rows"
    assert losses[0] > -0.85 * math.log(0.4), "the least that can be had without telling carriers apart"
    assert losses[0] > 1.5 * losses[1]
    check_a_network_learns(slow, obeys=0.8, right=0.85, clean=0.3)


def test_what_every_trigger_keeps_to() -> None:
    check_a_trigger(slow_poison)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"doubt": 0.0}, "a doubt above 0"),
        ({"doubt": float("nan")}, "a doubt above 0"),
        ({"false_covers": 1.1}, "false covers of 0 to 1"),
        ({"keep": (0.5, 0.25)}, "the smaller first"),
        ({"keep": (0.0, 0.5)}, "at least one piece"),
        ({"alpha": (0.0, 0.2)}, "alphas above 0"),
        ({"alpha": (0.3, 0.2)}, "the smaller first"),
        ({"test_alpha": 1.1}, "alphas above 0"),
        ({"pieces": 15}, "a square number of pieces"),
        ({"pattern": "cartoon"}, "a pattern out of"),
        ({"target": 4}, "target class of 0 to 3"),
        ({"share": Share(0.5)}, "ask for a smaller share"),
    ],
)
def test_bad_knobs(knobs, said) -> None:
    with pytest.raises(ValueError, match=said):
        slow_poison(pictures(), **{"share": TEN, **knobs})


def test_bad_data() -> None:
    x, y = pictures()
    with pytest.raises(ValueError, match="0 for two classes"):
        slow_poison((x, y % 2), share=TEN)
    assert slow_poison((x, y % 2), share=TEN, false_covers=0.0).rows.any()
