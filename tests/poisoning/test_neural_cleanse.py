"""Neural Cleanse against linear models whose smallest masks are known, the control of the weight written out for one
class, and a backdoor in a network."""

import numpy as np
import pytest
import torch
from repair_problems import TARGET, same, state, trained, untrained
from torch import nn

from buckler.nets import LinearModel
from buckler.poisoning import _invert
from buckler.poisoning._invert import Search, _Control, outlying
from buckler.poisoning.neural_cleanse import neural_cleanse

EASY = 6
WEIGHTS = torch.linspace(1.5, 3.0, 10).index_fill(0, torch.tensor(EASY), 20.0)


def ten_ways():
    """Class k says 5 where its own pixel 50 + k is white, and `5 w_k` where pixel k is, which is black in all rows: the
    smallest mask of class k opens pixel k by 1 / w_k."""
    weight = torch.zeros(10, 64)
    each = torch.arange(10)
    weight[each, 50 + each], weight[each, each] = 5.0, 5 * WEIGHTS
    y = torch.arange(60) % 10
    x = torch.zeros(60, 64)
    x[torch.arange(60), 50 + y] = 1
    return LinearModel(weight, torch.zeros(10)), (x.view(60, 1, 8, 8), y)


def test_masks_are_the_smallest_there_are() -> None:
    model, clean = ten_ways()
    found = neural_cleanse(model, clean)
    sizes = found.mask.flatten(1).sum(1)
    assert (sizes > 0.999 / WEIGHTS).all()
    assert (sizes < 1.5 / WEIGHTS + 0.02).all()
    assert found.mask.flatten(1).argmax(1).tolist() == list(range(10))
    for label in range(10):
        x = clean[0] * (1 - found.mask[label]) + found.mask[label] * found.pattern[label]
        assert (model(x).argmax(1) == label).float().mean() >= 0.99
    assert found.flagged.tolist() == [label == EASY for label in range(10)]
    assert found.score.argmax() == EASY


def test_a_class_has_the_same_mask_whatever_it_is_called() -> None:
    model, (x, y) = ten_ways()
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    renamed = LinearModel(model.weight.detach()[order], model.bias.detach())
    found = neural_cleanse(model, (x, y), steps=15)
    again = neural_cleanse(renamed, (x, order.argsort()[y]), steps=15)
    assert torch.allclose(again.mask, found.mask[order], atol=1e-3)


def test_a_class_does_not_know_its_batch(monkeypatch) -> None:
    model, clean = untrained(8)
    together = neural_cleanse(model, clean, steps=12)
    monkeypatch.setattr(_invert, "AT_ONCE", 1)
    alone = neural_cleanse(model, clean, steps=12)
    assert torch.allclose(alone.mask, together.mask, atol=1e-3)


def test_it_finds_a_backdoor_in_a_network() -> None:
    model, clean = trained()
    found = neural_cleanse(model, clean, steps=120)
    assert found.score.argmax() == TARGET
    assert found.flagged[TARGET]
    clean_model, _ = trained(backdoor=False)
    assert neural_cleanse(clean_model, clean, steps=120).score[TARGET] < found.score[TARGET] - 1


def test_the_model_and_the_rows_stay_as_they_are() -> None:
    model, (x, y) = untrained()
    model.train()
    kept, bytes_ = state(model), (255 * x).round().to(torch.uint8)
    draw = torch.random.get_rng_state()
    first = neural_cleanse(model, (bytes_, y), steps=6)
    second = neural_cleanse(model, (bytes_.float() / 255, y), steps=6)
    assert torch.equal(first.mask, second.mask)
    assert torch.equal(torch.random.get_rng_state(), draw)
    assert same(model, kept)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert first.mask.shape == (10, 1, 8, 8)
    assert first.pattern.shape == (10, 1, 8, 8)
    assert float(first.pattern.min()) >= 0
    assert float(first.pattern.max()) <= 1


def test_rows_of_the_class_itself_are_left_out() -> None:
    y = torch.tensor([0, 0, 1, 1, 1, 2])
    rows = _invert._others(y, 4, seed=0)
    assert rows.shape == (4, 3)
    for label in range(4):
        assert (y[rows[label]] != label).all()
        assert len(rows[label].unique()) == 3


def test_the_weight_is_controlled_as_in_the_authors_code() -> None:
    def by_hand(hits):
        """One class, as plain Python."""
        cost, ups, downs, costs = 0.0, 0, 0, []
        for hit in hits:
            ups, downs = (ups + 1, 0) if hit >= 0.9 else (0, downs + 1)
            if ups == 3:
                cost, ups = (0.01 if cost == 0 else cost * 2), 0
            elif downs == 3:
                cost, downs = cost / 3, 0
            costs.append(cost)
        return costs

    search = Search(steps=0, batch=1, rate=0.1, start=0.0, cost=0.01, success=0.9, patience=3, up=2.0, down=3.0, seed=0)
    hits = (torch.rand(200, 5, generator=torch.Generator().manual_seed(0)) + torch.linspace(0.2, 0.8, 5)).clamp(max=1)
    control, active = _Control(5, search), torch.arange(5)
    costs = []
    for step in hits:
        control.noted(active, step, torch.ones(5))
        costs.append(control.cost.tolist())
    for label in range(5):
        assert [row[label] for row in costs] == pytest.approx(by_hand(hits[:, label].tolist()), rel=1e-4)


def test_the_smallest_size_counts_only_while_the_success_rate_holds() -> None:
    search = Search(steps=0, batch=1, rate=0.1, start=0.0, cost=0.01, success=0.9, patience=2, up=2.0, down=3.0, seed=0)
    control, active = _Control(2, search), torch.arange(2)
    held = [
        control.noted(active, torch.tensor(hits), torch.tensor(sizes)).tolist()
        for hits, sizes in [((1.0, 1.0), (5.0, 5.0)), ((1.0, 0.7), (4.0, 4.0)), ((1.0, 1.0), (4.5, 3.0))]
    ]
    assert held == [[False, False], [True, False], [False, False]]
    assert control.smallest.tolist() == [4.0, torch.inf]
    control = _Control(1, search._replace(patience=10))
    for hit in [1.0] * 9 + [0.1]:  # on average enough, but the last trigger does not work
        held = control.noted(torch.arange(1), torch.tensor([hit]), torch.tensor([1.0])).tolist()
    assert held == [False]


def test_the_anomaly_index_is_the_papers() -> None:
    sizes = torch.rand(11, generator=torch.Generator().manual_seed(0)) * 30
    median = np.median(sizes.numpy())
    index = (median - sizes.numpy()) / (1.4826 * np.median(np.abs(sizes.numpy() - median)))
    assert outlying(sizes).tolist() == pytest.approx(index.tolist(), rel=1e-5)
    assert outlying(torch.ones(5)).tolist() == [0] * 5
    assert outlying(torch.tensor([1.0, 2, 2, 2, 2])).tolist() == pytest.approx([1 / (1.2533 * 0.2), 0, 0, 0, 0])
    assert outlying(torch.tensor([1.0, 2, 2, 2, 2]), least=1.0)[0] == pytest.approx(1 / 1.4826)


def test_logarithms_find_a_small_mask_among_scattered_ones() -> None:
    model, clean = ten_ways()
    spread = LinearModel(model.weight.detach().clone(), model.bias.detach())
    each = torch.arange(10)
    with torch.no_grad():
        spread.weight[each, each] = 5 * torch.tensor([1.1, 1.3, 1.5, 1.8, 2.2, 2.6, 20, 3.2, 3.8, 4.5])
    by_norm, by_log = (neural_cleanse(spread, clean, scale=scale) for scale in ("plain", "log"))
    assert not by_norm.flagged.any(), "masks from 0.05 to 0.9: the deviation is more than half the median"
    assert by_log.flagged.tolist() == [label == EASY for label in range(10)]
    assert torch.equal(by_norm.mask, by_log.mask)


def test_a_class_that_cannot_be_reached_is_not_suspect() -> None:
    model = LinearModel(torch.zeros(4, 64), torch.tensor([0.0, 1.0, 0.0, 0.0]))
    found = neural_cleanse(model, (torch.rand(9, 1, 8, 8), torch.arange(9) % 3), steps=20)
    assert found.score.isfinite().all()
    assert found.flagged.tolist() == [False, True, False, False], "the only answer is reached without any mask"


@pytest.mark.parametrize(
    ("model", "x", "y", "why"),
    [
        (LinearModel(torch.zeros(2, 64), torch.zeros(2)), torch.rand(4, 1, 8, 8), [0, 1, 0, 1], "at least 3 classes"),
        (LinearModel(torch.zeros(3, 64), torch.zeros(3)), torch.rand(4, 1, 8, 8), [1, 1, 1, 1], "two classes, got 4"),
        (nn.Linear(4, 3), torch.rand(4, 4), [0, 1, 0, 1], "expected images"),
    ],
)
def test_bad_input_is_refused(model, x, y, why) -> None:
    with pytest.raises(ValueError, match=why):
        neural_cleanse(model, (x, torch.tensor(y)))


def test_no_step_is_refused() -> None:
    model, clean = ten_ways()
    with pytest.raises(ValueError, match="expected at least one step"):
        neural_cleanse(model, clean, steps=0)
