"""DLP: its parts against naive computations and planted triggers, the whole on small problems with a known answer."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Rows, digits
from buckler.nets import SmallCNN
from buckler.poisoning import _stages, _transplant
from buckler.poisoning._measure import isolation, outcome
from buckler.poisoning._stages import divided, estimated, learn, owed, tune, unlearn, views
from buckler.poisoning._transplant import blurred, filtered, mixed, obedience, ranked
from buckler.poisoning.badnets import badnets
from buckler.poisoning.dlp import dlp
from buckler.threat import Share
from buckler.train import fit, started

SMALL = partial(SmallCNN, width=16)


class Corner(nn.Module):
    """Class 0 if the last pixel is bright (above 0.6), else 1 or 2 by which half of the image is brighter."""

    def forward(self, x: Tensor) -> Tensor:
        above = x[:, 0, :4].mean((1, 2)) - x[:, 0, 4:].mean((1, 2))
        return torch.stack([100 * (x[:, 0, -1, -1] - 0.6), 20 * above, -20 * above], 1)


def halves(many: int = 120) -> tuple[Rows, Tensor]:
    """Images of two classes; every tenth has a bright last pixel and label 0."""
    draws = torch.Generator().manual_seed(0)
    x, y = 0.1 * torch.rand(many, 1, 8, 8, generator=draws), 1 + torch.arange(many) % 2
    x[y == 1, :, :4] += 0.4
    x[y == 2, :, 4:] += 0.4
    bad = torch.arange(many) % 10 == 0
    x[bad, :, -1, -1] = 1.0
    return (x, torch.where(bad, 0, y)), bad


def test_a_blur_is_the_naive_weighted_mean_and_keeps_what_is_flat() -> None:
    x = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    taps = torch.exp(-(torch.arange(-3, 4.0) ** 2) / 2)
    taps /= taps.sum()
    wide = F.pad(x, (3, 3, 3, 3), mode="replicate")
    naive = torch.zeros_like(x)
    for i in range(9):
        for j in range(7):
            window = wide[:, :, i : i + 7, j : j + 7]
            naive[:, :, i, j] = (window * taps[:, None] * taps[None]).sum((2, 3))
    assert torch.allclose(blurred(x, 1.0), naive, atol=1e-6)
    assert torch.allclose(blurred(torch.full((1, 1, 5, 5), 0.3), 2.0), torch.tensor(0.3), atol=1e-6)


def test_a_row_with_a_trigger_is_obeyed_and_others_are_not() -> None:
    data, bad = halves()
    obeyed, usual = obedience(Corner(), data, ways=(_transplant.details,), hosts=4)
    assert obeyed.shape == (1, 120)
    assert usual.shape == (1, 3)
    assert float(obeyed[0, bad].mean()) > 0.5
    assert float(obeyed[0, ~bad].mean()) < 0.1
    assert isolation_of(ranked(obeyed), bad) > 0.95


def isolation_of(score: Tensor, bad: Tensor) -> float:
    """The area under the ROC curve, by every pair."""
    pairs = (score[bad][:, None] > score[~bad][None]).float()
    return float(pairs.mean())


def test_obedience_asks_only_hosts_of_other_labels() -> None:
    """A model that answers the host's label gives nothing to any donor: no host has the donor's own."""
    data, _ = halves()
    lookup = {row.numpy().tobytes(): int(label) for row, label in zip(*data, strict=True)}

    class Host(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            labels = torch.tensor([lookup[row.numpy().tobytes()] for row in x])
            return 50.0 * F.one_hot(labels, 3)

    obeyed, _ = obedience(Host(), data, ways=(lambda host, donor: host,), hosts=3)
    assert float(obeyed.max()) < 1e-6


def test_ranks_do_not_see_the_scale_of_a_way() -> None:
    obeyed = torch.rand(4, 50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ranked(obeyed), ranked(obeyed * torch.tensor([[1.0], [5.0], [0.1], [2.0]])))


@pytest.mark.parametrize(("planted", "low", "high"), [(0, 0.0, 0.0), (30, 0.08, 0.12)])
def test_the_poison_rate_is_estimated_and_none_is_none(planted: int, low: float, high: float) -> None:
    y = torch.arange(300) % 3
    obeyed = 0.5 * torch.rand(2, 300, generator=torch.Generator().manual_seed(0))
    obeyed[0, (y == 1).nonzero().squeeze(1)[:planted]] = 0.99
    assert low <= estimated(obeyed, torch.zeros(2, 3), y) <= high


def test_what_a_way_does_by_itself_is_no_poison() -> None:
    y = torch.arange(300) % 3
    obeyed = torch.zeros(1, 300)
    obeyed[0, y == 1] = 0.99
    assert estimated(obeyed, torch.zeros(1, 3), y) > 0.3
    assert estimated(obeyed, torch.tensor([[0.0, 1.0, 0.0]]), y) == 0.0


def test_a_split_suspects_the_highest_and_trusts_what_agrees() -> None:
    y = torch.tensor([0, 1, 0, 1, 0])
    said = F.one_hot(torch.tensor([0, 1, 1, 1, 0]), 2).float()
    split = divided(torch.tensor([0.9, 0.1, 0.2, 0.3, 0.4]), said, y, y < 0, suspected=0.2)
    assert split.suspected.tolist() == [True, False, False, False, False]
    assert split.trusted.tolist() == [False, True, False, True, True]


def test_the_ascent_ends_at_an_even_guess() -> None:
    """Flagged rows alone, climbed for as long as one likes, end near chance: the ascent is bounded by itself."""
    data = digits(True)
    bad = torch.arange(len(data[1])) < 60
    model, _ = learn(data, SMALL, epochs=8, batch=64, rate=0.1)
    before = views(model, data, many=0).gather(1, data[1][:, None]).squeeze(1)
    assert float(before[bad].mean()) > 0.8
    nothing = _stages.Split(bad, torch.zeros_like(bad), torch.zeros_like(bad))
    unlearn(model, data, nothing, bad, epochs=10, batch=64, rate=0.02)
    own = views(model, data, many=0).gather(1, data[1][:, None]).squeeze(1)
    assert 0.02 < float(own[bad].mean()) < 0.4


def test_mixed_images_are_images_and_differ_from_their_hosts() -> None:
    host, donor = torch.rand(2, 6, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        for seed in range(14):
            torch.manual_seed(seed)
            out = mixed(host, donor)
            assert out.shape == host.shape
            assert float(out.min()) >= 0
            assert float(out.max()) <= 1
            assert float((out - host).abs().max()) > 0.01


def test_the_last_stage_learns_suspected_rows_by_the_labels_that_it_is_sure_of() -> None:
    """Trained a little, with false labels on the suspected rows, it answers them rightly in the end."""
    x, y = (part[:600] for part in digits(True))
    suspected = torch.arange(600) < 120
    rest = x[~suspected], y[~suspected]
    early = fit(started(SMALL, 0), rest, epochs=1.5, batch=64, rate=0.1)
    before = float((views(early, (x, y), many=0).argmax(1) == y)[suspected].float().mean())
    assert before < 0.7
    for shift in (1, 2):
        twin = copy.deepcopy(early)
        false = torch.where(suspected, (y + shift) % 10, y)
        tune(
            twin,
            (x, false),
            _stages.Split(suspected, ~suspected, torch.zeros_like(suspected)),
            epochs=6,
            batch=64,
            rate=0.1,
            sure=0.5,
        )
        after = float((views(twin, (x, y), many=0).argmax(1) == y)[suspected].float().mean())
        assert after > before + 0.2


def test_of_doubted_rows_those_are_learnt_whose_label_the_model_gives() -> None:
    x, y = (part[:600] for part in digits(True))
    first, nobody, others = torch.arange(600) < 120, torch.zeros(600, dtype=torch.bool), torch.arange(600) >= 580
    early = fit(started(SMALL, 0), (x[~first], y[~first]), epochs=8, batch=64, rate=0.1)
    false = torch.where(first, (y + 1) % 10, y)

    def learnt(labels: Tensor, suspected: Tensor, doubted: Tensor) -> float:
        """How probable the labels of the first rows have become, where no row is given another label."""
        twin, split = copy.deepcopy(early), _stages.Split(suspected, ~suspected, doubted)
        tune(twin, (x, labels), split, epochs=6, batch=64, rate=0.1, sure=1.01)
        return float(views(twin, (x, y), many=0).gather(1, labels[:, None])[first].mean())

    assert 4 * learnt(false, others, first) < learnt(false, others, nobody)
    assert learnt(y, first | others, first) > learnt(y, first | others, nobody)


class Smooth(nn.Module):
    """Class 0 if the image has few details, else 1 or 2 by which half of it is brighter."""

    def forward(self, x: Tensor) -> Tensor:
        rough = (x - blurred(x, 1.0)).abs().mean((1, 2, 3))
        above = x[:, 0, :14].mean((1, 2)) - x[:, 0, 14:].mean((1, 2))
        return torch.stack([2000 * (0.03 - rough), 5 * above, -5 * above], 1)


def test_rows_that_owe_their_label_to_smoothness_lose_it_when_sharpened() -> None:
    draws = torch.Generator().manual_seed(0)
    x, y = 0.2 + 0.2 * torch.rand(90, 1, 28, 28, generator=draws), 1 + torch.arange(90) % 2
    x[y == 1, :, :14] += 0.4
    x[y == 2, :, 14:] += 0.4
    soft = torch.arange(90) < 30
    x[soft] = blurred(x[soft], 0.6)
    y = torch.where(soft, 0, y)
    with torch.no_grad():
        assert torch.equal(Smooth()(x).argmax(1), y)  # or the problem is not what it says
    lost, made, went = filtered(Smooth(), (x, y))
    assert made.tolist() == [1.0, 0.0, 0.0]
    assert float(lost[0, soft].min()) > 0.9
    assert float(lost[0, ~soft].abs().max()) < 0.1  # these owe nothing to it
    assert torch.equal(owed(lost, made, went, y) > 0.5, soft)


def test_filters_count_as_a_naive_loop_does() -> None:
    x = torch.rand(60, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    model = started(lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 4)), 0)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[:5] = (y[:5] + 1) % 4  # these are answered wrongly
    lost, made, went = filtered(model, (x, y))
    became = [0] * 4
    with torch.no_grad():
        for i, label in enumerate(y.tolist()):
            row = x[i : i + 1]
            soft = blurred(row, 1.0)
            views = (row, (row + (row - soft)).clamp(0, 1), blurred(row, 0.6), soft)
            said, keen, less, dull = (model(seen).softmax(1)[0] for seen in views)
            assert abs(float(said[label] - keen[label]) - float(lost[0, i])) < 1e-5
            assert abs(float(said[label] - less[label]) - float(lost[1, i])) < 1e-5
            assert int(less.argmax()) == int(went[i])
            if int(said.argmax()) == label != int(dull.argmax()):
                became[int(dull.argmax())] += 1
    assert sum(became) > 5
    assert torch.allclose(made, torch.tensor([times / int((y != k).sum()) for k, times in enumerate(became)]))


def test_nothing_is_owed_where_no_class_stands_out() -> None:
    y = torch.arange(30) % 3
    lost = torch.stack([torch.full((30,), 0.9), torch.full((30,), 0.2)])
    nowhere = torch.full_like(y, 9)
    assert float(owed(lost, torch.tensor([0.20, 0.15, 0.0]), nowhere, y).max()) == 0
    assert torch.equal(owed(lost, torch.tensor([0.05, 0.50, 0.0]), nowhere, y), torch.where(y == 1, 0.9, 0.0))
    fine = lost.clone()
    fine[1, [2, 5, 8]] = 0.8  # three of the ten rows of class 2 lose their label to a slight blur
    owing = owed(fine, torch.zeros(3), nowhere, y)
    assert torch.equal(owing, torch.where(y == 2, fine[1], 0.0))


def test_a_class_that_blurring_makes_something_else_of_is_not_taken_for_a_fine_one() -> None:
    """A strong warp makes all blurred rows its target; the class that loses most by that owes nothing."""
    y = torch.arange(30) % 3
    lost = torch.full((2, 30), 0.1)
    lost[0, y == 0], lost[1, y == 2] = 0.9, 0.8
    smooth, target = torch.tensor([0.9, 0.0, 0.0]), torch.zeros_like(y)
    assert torch.equal(owed(lost, smooth, target, y), torch.where(y == 0, 0.9, 0.0))
    assert torch.equal(owed(lost, smooth, target + 1, y), torch.stack([lost[0], lost[1] * 0, lost[1]])[y, range(30)])


def test_a_backdoor_is_learnt_without_and_not_with() -> None:
    poisoned = badnets(digits(True), share=Share(0.1), seed=0)
    test = digits(False)
    plain = fit(started(SMALL, 0), poisoned.seen, epochs=12, batch=64, rate=0.1)
    before = outcome(plain, test, poisoned)
    grown = dlp(poisoned.seen, net=SMALL, epochs=(8, 8, 15), batch=64, rate=0.1)
    after = outcome(grown.model, test, poisoned)
    assert float(before["success"].float().mean()) > 0.9
    assert float(after["success"].float().mean()) < 0.2
    assert float(after["correct"].float().mean()) > 0.85
    assert grown.suspicion is not None
    assert isolation(grown.suspicion, poisoned)[1]["separation"].value > 0.9
    assert set(grown.dynamics) == {"loss", "confidence", "agreement"}
    assert grown.dynamics["loss"].shape == (8, len(poisoned.y))


def test_the_same_seed_gives_the_same_model_and_leaves_the_random_state() -> None:
    data = tuple(part[:120] for part in digits(True))
    state = torch.get_rng_state()
    one, two = (dlp(data, net=SMALL, epochs=(1, 1, 1), seed=3).model.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("semi", ["pseudo", "mixmatch", "fixmatch"])
def test_every_last_stage_runs_and_stages_can_be_left_out(semi) -> None:
    data = tuple(part[:90] for part in digits(True))
    for epochs in ((1, 1, 1), (1, 0, 1), (1, 1, 0)):
        grown = dlp(data, net=SMALL, epochs=epochs, semi=semi, batch=32)
        assert all(parameter.isfinite().all() for parameter in grown.model.parameters())


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"suspected": 0.0}, "expected to suspect 1 to 45 rows"),
        ({"suspected": 0.7}, "expected to suspect 1 to 45 rows"),
        ({"carried": 1.5}, "a share of 0 to 1"),
        ({"batch": 0}, "at least 1 row to a batch"),
    ],
)
def test_bad_knobs_are_one_sentence(knobs, says) -> None:
    data = tuple(part[:90] for part in digits(True))
    with pytest.raises(ValueError, match=says):
        dlp(data, net=SMALL, **knobs)


def test_bad_data_is_one_sentence() -> None:
    x, y = (part[:90] for part in digits(True))
    with pytest.raises(ValueError, match="expected images"):
        dlp((x.flatten(1), y), net=SMALL)
    with pytest.raises(ValueError, match="at least two classes"):
        dlp((x, torch.zeros_like(y)), net=SMALL)
