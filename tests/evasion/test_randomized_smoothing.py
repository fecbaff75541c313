import math

import pytest
import torch
from scipy.stats import binom
from torch import nn

from buckler.evasion.randomized_smoothing import randomized_smoothing
from buckler.kinds import ABSTAIN
from buckler.nets import LinearModel, SmallCNN
from buckler.target import metered


def half_space(size=6):
    """Two classes, x beyond 0.5 along the first axis or not: smoothed, the distance is exactly the certified radius."""
    weight = torch.zeros(2, size)
    weight[1, 0] = 1
    return LinearModel(weight, torch.tensor([0.5, 0.0]))


def at_distances(distances, size=6, seed=0):
    x = torch.rand(len(distances), size, generator=torch.Generator().manual_seed(seed))
    x[:, 0] = 0.5 + torch.as_tensor(distances)
    return x


def test_radii_are_close_below_the_exact_ones():
    exact = torch.tensor([-0.4, -0.2, -0.1, 0.1, 0.2, 0.4])
    label, radius, _ = randomized_smoothing(half_space(), at_distances(exact), sigma=0.25, samples=4000)
    assert label.tolist() == [0, 0, 0, 1, 1, 1]
    assert bool((radius <= exact.abs()).all())
    assert bool((radius >= 0.75 * exact.abs()).all())


def test_the_radius_is_the_formula_of_the_paper():
    """A row of which every draw hits: p >= alpha^(1/n), radius sigma times its normal quantile."""
    _, radius, _ = randomized_smoothing(half_space(), at_distances([5.0]), sigma=0.5, samples=300, alpha=0.01)
    expected = 0.5 * torch.special.ndtri(torch.tensor(0.01 ** (1 / 300), dtype=torch.float64))
    assert float(radius[0]) == pytest.approx(float(expected), rel=1e-5)
    assert float(radius[0]) <= float(expected)


@pytest.mark.parametrize("distance", [0.02, 0.1])
def test_false_certificates_are_as_rare_as_promised_and_the_bound_is_tight(distance):
    """500 rows with the same known probability: at most alpha of them may be certified beyond the true distance."""
    x = at_distances(torch.full((500,), distance), seed=1)
    label, radius, _ = randomized_smoothing(half_space(), x, samples=200, selection=20, alpha=0.1, seed=2)
    false = int(((label == 0) | (radius > distance)).sum())
    assert binom.sf(false - 1, 500, 0.1) > 1e-4
    if distance == 0.1:
        assert false > 10


def test_a_fair_coin_is_almost_never_certified():
    x = at_distances(torch.zeros(500), seed=3)
    label, radius, _ = randomized_smoothing(half_space(), x, samples=200, selection=20, alpha=0.05)
    certified = int((label != ABSTAIN).sum())
    assert binom.sf(certified - 1, 500, 0.05) > 1e-4
    assert bool((radius[label == ABSTAIN] == 0).all())


def test_early_abstention_saves_work_and_changes_no_certificate():
    """Three classes of a third each are given up after a block; a row of 0.3 sigma needs every draw."""
    torch.manual_seed(0)
    angles = torch.tensor([0, 2 * math.pi / 3, 4 * math.pi / 3])
    model = LinearModel(torch.stack([angles.cos(), angles.sin()], 1), torch.zeros(3))
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    with metered(model) as meter:
        label, _, _ = randomized_smoothing(model, x, sigma=1.0, samples=5000)
    assert label.tolist() == [ABSTAIN, 0]
    assert meter.forwards == 2 * 100 + 5000 + 500
    alone = randomized_smoothing(model, x[1:], sigma=1.0, samples=5000)
    assert alone.label[0] == 0


def naive_hits(model, x, draws, sigma):
    generator = torch.Generator().manual_seed(9)
    noise = torch.randn(draws, len(x), generator=generator)
    return float((model(x + sigma * noise).argmax(1) == 1).double().mean())


def test_a_network_gets_the_radius_of_a_naive_estimate():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    x = torch.rand(4)
    gap = model(x).detach()
    model[2].bias.data[1] += gap[0] - gap[1] + 0.2
    rate = naive_hits(model, x, 40_000, 0.5)
    assert 0.7 < rate < 0.95
    label, radius, _ = randomized_smoothing(model, x[None], sigma=0.5, samples=20_000, alpha=0.01)
    expected = 0.5 * float(torch.special.ndtri(torch.tensor(rate, dtype=torch.float64)))
    assert label[0] == 1
    assert float(radius[0]) == pytest.approx(expected, rel=0.1)


def test_rows_do_not_depend_on_their_batch_nor_on_how_it_is_split():
    torch.manual_seed(0)
    model, x = SmallCNN(width=2).train(), torch.rand(5, 1, 8, 8)
    state = torch.random.get_rng_state()
    whole = randomized_smoothing(model, x, samples=700, selection=30)
    picked = torch.tensor([3, 1])
    some = randomized_smoothing(model, x[picked], samples=700, selection=30, batch=64)
    assert torch.equal(some.label, whole.label[picked])
    assert torch.allclose(some.radius, whole.radius[picked])
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.training
    other = randomized_smoothing(half_space(), at_distances([0.1] * 4), samples=700, seed=1)
    again = randomized_smoothing(half_space(), at_distances([0.1] * 4), samples=700, seed=2)
    assert not torch.equal(other.radius, again.radius)


def test_nothing_in_nothing_out():
    label, radius, _ = randomized_smoothing(half_space(), torch.rand(0, 6), samples=100)
    assert label.shape == radius.shape == (0,)


@pytest.mark.parametrize("knobs", [{"sigma": 0.0}, {"alpha": 0.5}, {"samples": 0}])
def test_bad_knobs_get_one_sentence(knobs):
    with pytest.raises(ValueError, match="expected sigma > 0"):
        randomized_smoothing(half_space(), torch.rand(1, 6), **knobs)
