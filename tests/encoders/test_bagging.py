"""The vote's certificate against every adversary there is, and parts that no row of another reaches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations, product

import pytest
import torch
from torch import Tensor, nn

from buckler.data import Rows
from buckler.embedding import elected
from buckler.encoders.bagging import bagging
from buckler.encoders.indiscriminate import indiscriminate
from buckler.kinds import Bagged, Encoder
from buckler.threat import Share
from buckler.train import portions
from buckler.trial import fingerprint_model

PARTS = 8


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12))


quick = partial(bagging, net=net, parts=PARTS, steps=3)


def naive(votes: tuple[int, ...], classes: int) -> int:
    """Who wins, counted one by one; of several the lowest."""
    return max(range(classes), key=lambda one: (votes.count(one), -one))


def turns(votes: tuple[int, ...], many: int, classes: int) -> bool:
    """Whether any choice of `many` voters, saying anything, changes who wins."""
    before = naive(votes, classes)
    for voters in combinations(range(len(votes)), many):
        for said in product(range(classes), repeat=many):
            new = dict(zip(voters, said, strict=True))
            if naive(tuple(new.get(voter, vote) for voter, vote in enumerate(votes)), classes) != before:
                return True
    return False


@pytest.mark.parametrize(("voters", "classes"), [(1, 3), (2, 3), (3, 3), (4, 3), (5, 2), (5, 3), (6, 2), (4, 4)])
def test_a_radius_is_what_no_adversary_passes_and_the_next_one_does(voters: int, classes: int) -> None:
    every = list(product(range(classes), repeat=voters))
    label, radius = elected(torch.tensor(every).T, classes=classes)
    for votes, won, reach in zip(every, label.tolist(), radius.tolist(), strict=True):
        assert won == naive(votes, classes)
        assert not any(turns(votes, many, classes) for many in range(reach + 1)), votes
        assert turns(votes, reach + 1, classes), votes
    assert int(radius.max()) == voters // 2, "of one voter nothing is proven"


def test_one_class_is_no_choice() -> None:
    with pytest.raises(ValueError, match="two classes or more"):
        elected(torch.zeros(3, 4, dtype=torch.long), classes=1)


def weights(made: Bagged) -> list[str]:
    return [fingerprint_model(encoder) for encoder in made.encoders]


def differ(one: Bagged, other: Bagged) -> set[int]:
    return {part for part, (a, b) in enumerate(zip(weights(one), weights(other), strict=True)) if a != b}


def joined(data: Rows, more: Rows) -> Rows:
    return torch.cat([data[0], more[0]]), torch.cat([data[1], more[1]])


def test_a_row_reaches_its_own_part_bit_for_bit(learnt: Rows, unseen: Rows) -> None:
    made = quick(learnt)
    assert made.part.shape == (300,)
    assert len({*weights(made)}) == PARTS
    assert differ(made, quick(learnt)) == set()
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    shuffled = quick((learnt[0][order], learnt[1][order]))
    assert differ(made, shuffled) == set()
    assert torch.equal(shuffled.part, made.part[order])
    added = quick(joined((unseen[0][:1], unseen[1][:1]), learnt))
    assert torch.equal(added.part[1:], made.part)
    assert differ(made, added) == {int(added.part[0])}
    removed = quick((learnt[0][1:], learnt[1][1:]))
    assert differ(made, removed) == {int(made.part[0])}


def test_poison_reaches_the_parts_that_its_rows_leave_and_enter(learnt: Rows) -> None:
    poisoned = indiscriminate(learnt, net=net, share=Share(0.01), epochs=2)
    touched = poisoned.rows
    assert int(touched.sum()) == 3
    made, again = quick(learnt), quick(poisoned.seen)
    reached = {*made.part[touched].tolist(), *again.part[touched].tolist()}
    assert torch.equal(made.part[~touched], again.part[~touched])
    assert differ(made, again) == reached
    assert len(reached) < PARTS


def test_labels_neither_deal_nor_teach_and_bytes_are_rows_too(learnt: Rows) -> None:
    x = (255 * learnt[0]).byte()
    made, other = quick((x, learnt[1])), quick((x, torch.zeros_like(learnt[1])))
    assert torch.equal(made.part, other.part)
    assert differ(made, other) == set()


def recorded(seen: list[tuple[Tensor, Tensor, int, float]]) -> Callable[..., Encoder]:
    def by(data: Rows, *, net: Callable[[], nn.Module], epochs: float = 1, batch: int = 16, seed: int = 0) -> Encoder:
        seen.append((*data, seed, epochs * len(portions(len(data[1]), batch))))
        return net()

    return by


def test_parts_share_no_row_and_take_as_many_steps(learnt: Rows) -> None:
    seen = list[tuple[Tensor, Tensor, int, float]]()
    made = bagging(learnt, net=net, by=recorded(seen), parts=5, steps=7, seed=3)
    assert [seed for _, _, seed, _ in seen] == [3, 4, 5, 6, 7]
    assert [steps for *_, steps in seen] == pytest.approx([7] * 5)
    assert sorted(tuple(row.flatten().tolist()) for x, *_ in seen for row in x) == sorted(
        tuple(row.flatten().tolist()) for row in learnt[0]
    )
    for part, (x, y, *_) in enumerate(seen):
        own = made.part == part
        assert sorted(y.tolist()) == sorted(learnt[1][own].tolist())
        assert {row.sum().item() for row in x} == {row.sum().item() for row in learnt[0][own]}
    assert 30 < min(made.part.bincount()) < max(made.part.bincount()) < 90, "about as many to each"


def test_copies_of_a_row_with_other_labels_stand_in_one_order(learnt: Rows) -> None:
    x, y = learnt[0][:1].repeat(6, 1, 1, 1), torch.tensor([3, 1, 2, 5, 4, 0])
    seen = list[tuple[Tensor, Tensor, int, float]]()
    for order in (torch.arange(6), torch.arange(5, -1, -1)):
        bagging((x[order], y[order]), net=net, by=recorded(seen), parts=1)
    assert torch.equal(seen[0][1], seen[1][1])


def test_parts_are_at_least_one_and_have_two_rows_on_average(learnt: Rows) -> None:
    for parts in (0, -1, 151):
        with pytest.raises(ValueError, match=f"expected 1 to 150 parts, .* got {parts}"):
            bagging(learnt, net=net, parts=parts)
    seen = list[tuple[Tensor, Tensor, int, float]]()
    made = bagging(learnt, net=net, by=recorded(seen), parts=150, steps=1)
    taught = int((made.part.bincount(minlength=150) >= 2).sum())
    assert len(made.encoders) == 150 > taught == len(seen), "what got one row or none stays untrained"
