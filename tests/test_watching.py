"""What evaluations of detectors of queries share, against what can be counted."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from buckler.data import Rows
from buckler.kinds import Watched
from buckler.watching import alarms, higher, looked


def test_the_first_alarm_is_numbered_from_one() -> None:
    quiet, late, early = torch.zeros(4) > 0, torch.arange(4) > 1, torch.ones(4) > 0
    assert alarms([quiet, late, early]).tolist() == [math.inf, 3, 1]


@pytest.mark.parametrize("hits", [0, 1, 2, 3])
def test_chance_is_the_share_of_orders_in_which_so_many_are_higher(hits: int) -> None:
    """Of 3 scores and 4 others, every set of places that the 3 may have is as probable; place 0 is the highest."""
    orders = list(combinations(range(7), 3))
    above = [next(n for n in range(4) if n == 3 or places[n] != n) for places in orders]
    assert higher(hits, 3, 4) == pytest.approx(sum(one >= hits for one in above) / len(orders))


@pytest.mark.parametrize(
    ("flags", "scores", "says"), [(4, 5, "5 questions, got"), (5, 4, r"\(4,\) scores"), (5, 0, "got NaN")]
)
def test_a_look_says_something_of_every_question(flags: int, scores: int, says: str) -> None:
    def watch(queries: Rows) -> Watched:
        return Watched(torch.zeros(flags) > 0, torch.zeros(scores) if scores else queries[0].flatten() / 0)

    with pytest.raises(ValueError, match=says):
        looked(watch, (torch.zeros(5, 1), torch.zeros(5)))
