"""The p-values that claims are made of, against sums, enumerations and simulations."""

from __future__ import annotations

import math
from itertools import permutations, product

import pytest
import torch
from owned_worlds import drawn_by_chance
from torch import nn

from buckler.claims import SHUFFLES, binomial_tail, by_chance, rank, secret, shuffled
from buckler.target import Oracle
from buckler.theft._claims import answers, assigned, classes_of, readable


@pytest.mark.parametrize("hits", [1, 2, 3, 5])
def test_no_dependence_makes_as_many_claims_more_probable(hits: int) -> None:
    """Reached where p-values are small together: `hits` of them, in a share of trials that leaves each one right."""
    many, level, trials = 5, 0.1, 3000
    small = torch.zeros(trials, many, dtype=torch.bool)
    worst = round(trials * many * level / hits)
    for trial in range(worst):
        small[trial, [(trial + turn) % many for turn in range(hits)]] = True
    assert small.double().mean(0).tolist() == pytest.approx([level] * many, abs=1e-3)
    assert float((small.sum(1) >= hits).double().mean()) == pytest.approx(by_chance(hits, many, level), abs=1e-3)
    assert by_chance(0, many, level) == 1.0


@pytest.mark.parametrize(("hits", "many", "chance"), [(0, 5, 0.1), (1, 5, 0.1), (7, 20, 0.25), (20, 20, 0.1)])
def test_the_binomial_tail_is_the_sum_of_its_terms(hits: int, many: int, chance: float) -> None:
    naive = sum(math.comb(many, k) * chance**k * (1 - chance) ** (many - k) for k in range(hits, many + 1))
    assert binomial_tail(hits, many, chance) == pytest.approx(naive, rel=1e-9)


def test_a_rank_counts_ties_against_the_claim() -> None:
    others = torch.tensor([1.0, 2.0, 2.0, 3.0])
    assert rank(2.0, others) == 4 / 5
    assert rank(3.5, others) == 1 / 5
    assert rank(1e9, torch.tensor([1e9 - 1e-5, 0.0]).double()) == 2 / 3, "what differs by how sums are rounded is a tie"


def test_assignments_are_ranked_as_all_of_them_would_be() -> None:
    gains = torch.tensor([[2.0, 0.3, -0.4], [0.1, 0.5, 0.9], [-1.0, 0.2, 0.4]], dtype=torch.double)
    every = [
        sum(sign * float(gains[i, j]) for i, (j, sign) in enumerate(zip(order, way, strict=True)))
        for order in permutations(range(3))
        for way in product((1, -1), repeat=3)
    ]
    naive = sum(value >= float(gains.trace()) - 1e-12 for value in every) / len(every)
    assert assigned(gains, secret(0, "t")) == pytest.approx(naive, abs=0.01)


def test_divisions_are_ranked_as_all_of_them_would_be() -> None:
    scores, member = torch.tensor([3.0, 1.0, 2.5, 0.0, 0.2, 0.1]), torch.tensor([1, 0, 1, 0, 0, 0]) == 1
    pairs = [(i, j) for i in range(6) for j in range(i)]
    naive = sum(float(scores[list(pair)].sum()) >= 5.5 for pair in pairs) / len(pairs)
    assert shuffled(scores, member, secret(0, "t")) == pytest.approx(naive, abs=0.01)


def test_a_secret_is_its_seed_s_and_its_purpose_s() -> None:
    draws = [
        torch.rand(3, generator=secret(seed, what)).tolist() for seed, what in ((1, "a"), (1, "a"), (2, "a"), (1, "b"))
    ]
    assert draws[0] == draws[1]
    assert draws[0] not in draws[2:]
    assert draws[0] != torch.rand(3, generator=torch.Generator().manual_seed(1)).tolist()


def test_answers_are_counted_and_the_suspect_is_left_in_its_mode() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), drawn_by_chance(None, 0)).train()
    x = torch.rand(7, 1, 4, 4)
    said, queries = answers(model, x)
    assert queries == 7
    assert model.training
    assert torch.equal(said, answers(Oracle(model[2], "scores"), x)[0])
    with pytest.raises(ValueError, match="reveals labels only"):
        answers(Oracle(model, "labels"), x, "scores")


def test_what_cannot_be_claimed_with_is_said() -> None:
    with pytest.raises(ValueError, match="two classes or more"):
        classes_of((torch.rand(3, 1), torch.zeros(3, dtype=torch.long)), "x")
    with pytest.raises(ValueError, match="got an oracle"):
        readable(Oracle(nn.Identity(), "labels"))
    with pytest.raises(ValueError, match="both sides"):
        shuffled(torch.rand(3), torch.ones(3, dtype=torch.bool), secret(0, "t"))
    assert SHUFFLES >= 999
