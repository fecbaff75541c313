"""Sponges: what a query costs against closed forms, early exits against a naive loop, and noise as the control."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from buckler import nets
from buckler.data import Rows
from buckler.encoders._early_exit import EarlyExit, busy, early_exit, in_blocks, products
from buckler.encoders._judged_depletion import COSTS
from buckler.encoders.evaluate import evaluate
from buckler.encoders.judge import judge
from buckler.encoders.sponge import sponge
from buckler.findings import rules
from buckler.stats import recompute
from buckler.subject import Subject
from buckler.threat import Ball


@pytest.fixture(scope="module")
def served(encoder: nn.Module, unseen: Rows) -> EarlyExit:
    return early_exit(encoder, unseen[0][:300])


def test_products_and_zeros_are_counted_as_by_hand() -> None:
    """A convolution with 2 x 3 channels, 3 x 3, on 4 x 4 places, and a linear layer of 48 x 5."""
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(48, 5))
    x = torch.ones(2, 2, 4, 4)
    x[1, 0] = 0
    assert products(net, x) == 2 * 3 * 9 * 16 + 240
    with torch.no_grad():
        middle = (net[0](x) != 0).flatten(1).float().mean(1)
    by_hand = (864 * torch.tensor([1.0, 0.5]) + 240 * middle) / 1104
    torch.testing.assert_close(busy(net, x), by_hand)


def test_a_layer_that_is_given_parts_of_inputs_is_counted_for_each_input() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each, self.all = nn.Linear(4, 2, bias=False), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.all(self.each(x.reshape(-1, 4)).reshape(len(x), -1))

    x, net = torch.ones(3, 1, 4, 4), Parts()
    x[1, 0, :2], x[2] = 0, 0
    assert products(net, x) == 4 * 4 * 2 + 8 * 3
    torch.testing.assert_close(busy(net, x), torch.tensor([1.0, 0.5, 0.0]))
    assert sponge(net, x, ball=Ball("linf", 0.1), steps=1).shape == x.shape


def test_a_dense_encoder_does_the_same_for_every_input(encoder: nn.Module, unseen: Rows) -> None:
    assert products(encoder, torch.zeros(1, 1, 8, 8)) == products(encoder, unseen[0][:1]) > 0


def test_rows_leave_where_two_exits_agree(served: EarlyExit, unseen: Rows) -> None:
    x = unseen[0][300:340]
    with torch.no_grad():
        said, left, out = served.foreseen(x), served.left(x), served(x)
    for row in range(len(x)):
        place = next(
            (
                i
                for i in (1, 2)
                if float(torch.cosine_similarity(said[i, row], said[i - 1, row], 0)) >= served.threshold
            ),
            3,
        )
        assert int(left[row]) == place
        torch.testing.assert_close(out[row], said[place, row] + served.centre)
    assert {1, 3} <= set(left.tolist())


def test_the_last_exit_says_what_the_encoder_says(served: EarlyExit, encoder: nn.Module, unseen: Rows) -> None:
    x = unseen[0][:20]
    with torch.no_grad():
        torch.testing.assert_close(served.foreseen(x)[-1] + served.centre, encoder(x))


def test_a_cap_bounds_the_cost(served: EarlyExit, unseen: Rows) -> None:
    served = copy.deepcopy(served)
    served.most = 2
    with torch.no_grad():
        assert float(served.spent(unseen[0]).max()) == float(served.costs[1])


def test_a_cap_is_what_honest_queries_can_pay_for(served: EarlyExit, unseen: Rows) -> None:
    with torch.no_grad():
        usual = float(served.spent(unseen[0]).mean())
        with served.capped(unseen[0]):
            most = float(served.spent(unseen[0]).max())
    assert most == max(cost for place, cost in enumerate(served.costs.tolist()) if cost <= usual or place == 1)
    assert served.most == 4


def test_blocks_follow_each_other(encoder: nn.Module, unseen: Rows) -> None:
    blocks = in_blocks(encoder)
    x = unseen[0][:4]
    with torch.no_grad():
        assert nn.Sequential(*blocks)(x).equal(encoder(x))
    assert len(blocks) == 4
    assert in_blocks(nets.SmallCNN())[0].__class__ is nets.SmallCNN
    with pytest.raises(ValueError, match="four blocks"):
        early_exit(nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), x)


@pytest.mark.parametrize("early", [False, True])
def test_sponges_cost_more_than_noise_of_their_size(
    served: EarlyExit, encoder: nn.Module, unseen: Rows, *, early: bool
) -> None:
    x, ball = unseen[0][300:364], Ball("linf", 0.1)

    def cost(rows: Tensor) -> Tensor:
        with torch.no_grad():
            return served.spent(rows) if early else busy(encoder, rows)

    made = sponge(served if early else encoder, x, ball=ball, steps=10)
    noise = ball.clip(x, x + 0.1 * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 1))
    assert bool(ball.contains(x, made).all())
    assert float((cost(made) - cost(noise)).mean()) > 0.01
    with pytest.raises(ValueError, match="one step"):
        sponge(encoder, x, ball=ball, steps=0)


def test_an_audit_says_what_a_dense_encoder_costs_and_what_a_cap_leaves(subject: Subject, encoder: nn.Module) -> None:
    own = replace(subject, encoder=encoder)
    trial = evaluate(partial(sponge, steps=10), own, ball=Ball("linf", 0.1), rows=200)
    known = trial.estimates
    assert known["dense"].low == known["dense"].high == 1
    assert known["spent_factor"].low > 1
    assert known["capped_factor"].value <= 1
    assert known["capped_factor"].high < known["spent_factor"].low
    verdict = judge([trial], {}, rules(), "run {method}")
    (found,) = [finding for finding in verdict.findings if finding.id == "encoders/depletion"]
    assert found.state == "found"
    assert "nothing to deplete per query" in found.claim
    assert len(found.estimates) == sum(name in known for name in COSTS), "none hides another"
    assert len(set(COSTS.values())) == len(COSTS)
    (ten,) = [finding for finding in verdict.findings if finding.id == "encoders/ten"]
    assert ten.grid[10][1].startswith("sponge")


def test_what_has_no_layer_to_count_is_skipped_and_what_is_not_sure_is_not_clear(
    subject: Subject, encoder: nn.Module
) -> None:
    bare = evaluate(sponge, replace(subject, encoder=nn.Flatten()), rows=60)
    assert bare.status == "skipped"
    trial = evaluate(partial(sponge, steps=1), replace(subject, encoder=encoder), rows=60)
    for values, state in (([0.5, 2.0], "not measured"), ([1.0, 1.0], "clear"), ([2.0, 2.1], "found")):
        planted = {**trial.evidence, **{f"{way}_factor": torch.tensor(values) for way in ("spent", "busy")}}
        found = {name: recompute(e, planted) for name, e in trial.estimates.items()}
        verdict = judge([replace(trial, evidence=planted, estimates=found)], {}, rules(), "run {method}")
        assert [finding.state for finding in verdict.findings if finding.id == "encoders/depletion"] == [state]
