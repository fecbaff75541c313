import math

import pytest
import torch
from norm_problems import Counting, digits, linear, norms

from buckler.evasion.ddn import ddn
from buckler.evasion.fmn import fmn
from buckler.nets import LinearModel
from buckler.threat import NORMS, Ball

ORDER = {"linf": math.inf, "l2": 2, "l1": 1, "l0": 0}


def fewest(model, x, y):
    """The least number of elements: for each other class take the largest gains that the box allows until it wins."""
    best = []
    for row, label in zip(x.flatten(1), y, strict=True):
        counts = []
        for other in range(len(model.weight)):
            if other != label:
                slope = (model.weight[other] - model.weight[label]).detach()
                gains = torch.maximum(slope * (1 - row), -slope * row).sort(descending=True).values
                logits = model(row[None])[0]
                margin = (logits[label] - logits[other]).detach()
                counts.append(int((gains.cumsum(0) <= margin).sum()) + 1)
        best.append(min(counts))
    return torch.tensor(best).float()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4])
def test_finds_the_distance_of_a_linear_model_whatever_the_scale_of_its_logits(norm, scale):
    model, x, y = linear(scale=scale)
    distance = model.distances(x, y, norm)
    found = norms(model, x, y, fmn(model, x, y, ball=Ball(norm, math.inf)), ORDER[norm])
    assert distance.max() < 0.4  # the box does not matter
    assert bool((found >= distance * 0.9999).all())
    assert bool((found <= distance * 1.05).all())


def test_l0_is_the_greedy_optimum():
    for seed in (3, 4):
        model, x, y = linear(rows=24, seed=seed, near=False)
        found = norms(model, x, y, fmn(model, x, y, ball=Ball("l0", math.inf)), 0)
        least = fewest(model, x, y)
        assert bool((found >= least).all())
        assert (found == least).float().mean() >= 0.95
        assert found.median() == least.median()


def test_l0_counts_gain_not_distance_to_the_wall():
    weight = torch.zeros(2, 6)
    weight[1] = torch.tensor([10.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    model, x = LinearModel(weight, torch.tensor([0.0, -3.0])), torch.tensor([[0.05, 0.0, 0.0, 0.0, 0.0, 0.0]])
    moved = fmn(model, x, torch.tensor([0]), ball=Ball("l0", math.inf))
    assert (moved != x).sum() == 1


def test_no_further_than_foolbox_and_never_without_a_result():
    foolbox = pytest.importorskip("foolbox")
    model, x, y = digits()
    peer = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attacks = foolbox.attacks
    for norm, theirs in {
        "l2": attacks.DDNAttack,
        "linf": attacks.LInfFMNAttack,
        "l1": attacks.L1FMNAttack,
        "l0": attacks.L0FMNAttack,
    }.items():
        other = norms(model, x, y, theirs(steps=60)(peer, x, y, epsilons=None)[0], ORDER[norm])
        ours = norms(model, x, y, fmn(model, x, y, ball=Ball(norm, math.inf), steps=60), ORDER[norm])
        assert ours.isfinite().all()
        assert ours.median() <= 1.02 * other.median()
    assert ours.mean() < other.mean()  # l0
    closest = norms(model, x, y, ddn(model, x, y, ball=Ball("l2", math.inf)), 2)
    ours = norms(model, x, y, fmn(model, x, y, ball=Ball("l2", math.inf)), 2)
    assert ours.median() <= 1.01 * closest.median()


def test_the_loss_of_the_paper_is_there_and_is_no_better():
    model, x, y = digits()
    ball = Ball("l2", math.inf)
    soft, hard = (norms(model, x, y, fmn(model, x, y, ball=ball, softness=s), 2) for s in (1 / 3, 0.0))
    assert hard.isfinite().all()
    assert soft.mean() <= hard.mean()


@pytest.mark.parametrize("norm", NORMS)
def test_a_finite_radius_is_kept_and_ends_rows(norm):
    model, x, y = digits()
    least = norms(model, x, y, fmn(model, x, y, ball=Ball(norm, math.inf)), ORDER[norm])
    even = torch.arange(60) % 2 == 0
    ball = Ball(norm, torch.where(even, 1.3 * least, 0.5 * least if norm != "l0" else (least - 1).clamp_min(0)))
    counting = Counting(model)
    moved = fmn(counting, x, y, ball=ball)
    assert ball.contains(x, moved).all()
    inside = norms(model, x, y, moved, ORDER[norm]).isfinite()
    assert inside[even].float().mean() >= 0.9
    assert (inside & (least > 0))[~even].float().mean() <= (0.1 if norm == "l0" else 0)
    assert torch.equal(moved[~inside], x[~inside])
    assert counting.rows == sorted(counting.rows, reverse=True)
    assert sum(counting.rows) < 4600


@pytest.mark.parametrize("norm", NORMS)
def test_one_look_per_step_and_rows_do_not_depend_on_their_batch(norm):
    model, x, y = digits()
    model, x, y = type(model)(width=8).double().eval(), x[:10].double(), y[:10]
    model.load_state_dict(digits()[0].state_dict())
    counting = Counting(model)
    ball = Ball(norm, math.inf)
    whole = fmn(counting, x, y, ball=ball, steps=30)
    assert len(counting.rows) <= 30
    alone = fmn(model, x[4:5], y[4:5], ball=ball, steps=30)
    assert torch.allclose(alone, whole[4:5], atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_targeted_wrong_rows_no_gradient_and_no_rows(norm):
    model, x, y = digits()
    ball = Ball(norm, math.inf)
    moved = fmn(model, x, y, ball=ball, goal=torch.full_like(y, 7))
    assert (model(moved).argmax(1) == 7).float().mean() > 0.95
    wrong = model(x).argmax(1)
    assert torch.equal(fmn(model, x, (wrong + 1) % 10, ball=ball), x)
    flat = LinearModel(torch.zeros(3, 64), torch.tensor([1.0, 0.0, 0.0]))
    assert torch.equal(fmn(flat, x, torch.zeros_like(y), ball=ball, steps=20), x)
    assert fmn(model, x[:0], y[:0], ball=ball).shape == x[:0].shape


def test_refuses():
    model, x, y = linear()
    with pytest.raises(ValueError, match="softness"):
        fmn(model, x, y, ball=Ball("l2", 1), softness=-1)
    with pytest.raises(ValueError, match="steps"):
        fmn(model, x, y, ball=Ball("l2", 1), steps=0)
