"""Dataset inference: the null over divisions by chance, distances that are known, and a model that remembers."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from owned_worlds import CLASSES, blobs, drawn_by_chance, never_too_small, p_values, taught
from torch import Tensor

from buckler.kinds import Owned
from buckler.nets import LinearModel
from buckler.target import Oracle
from buckler.theft.dataset_inference import STEP, _descent, _walk, dataset_inference


def divided(seed: int, many: int = 120) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    x, y = blobs(many, noise=0.3)
    y = torch.randint(CLASSES, y.shape, generator=torch.Generator().manual_seed(5))
    mine = torch.randperm(many, generator=torch.Generator().manual_seed(seed)) < many // 2
    return (x[mine], y[mine]), (x[~mine], y[~mine])


@pytest.mark.parametrize("distances", ["walk", "descent"])
def test_p_values_are_never_too_small_for_a_fixed_model(distances: Literal["walk", "descent"]) -> None:
    def keyed(seed: int) -> Owned:
        mine, others = divided(seed, 48)
        model = drawn_by_chance(None, 10_000 + seed)
        return dataset_inference(model, mine, unseen=others, distances=distances, directions=1, steps=5, seed=seed)

    never_too_small(p_values(keyed, drawn_by_chance(None, 7), 100))


@pytest.mark.parametrize("distances", ["walk", "descent"])
def test_a_model_that_remembers_is_claimed_and_others_are_not(distances: Literal["walk", "descent"]) -> None:
    mine, others = divided(0, 240)
    model = taught(mine, 0, 80)
    made = dataset_inference(model, mine, unseen=others, distances=distances, directions=2, steps=8)
    assert made.claim(model).p < 1e-3
    assert made.claim(taught(others, 1, 40)).p > 0.5
    assert made.claim(taught(blobs(200, seed=9), 9)).p > 0.01
    assert made.claim(model) == made.claim(model)


def test_descent_goes_as_far_as_a_half_space_is() -> None:
    weight = torch.zeros(2, 16)
    weight[1, 0] = 1.0
    model = LinearModel(weight, torch.tensor([0.5, 0.0])).eval()
    x = torch.zeros(3, 1, 4, 4)
    x[:, 0, 0, 0] = torch.tensor([0.05, 0.25, 0.45])
    found, _ = _descent(model, x, torch.tensor([0, 0, 0]), 20)
    assert (found.squeeze(1) * 4 * STEP - (0.5 - x[:, 0, 0, 0])).abs().max() <= 4 * STEP
    assert int(found[0]) > int(found[2])
    assert float(_descent(model, x, torch.tensor([1, 1, 1]), 20)[0].max()) == 0


def test_a_walk_counts_steps_and_questions() -> None:
    model = LinearModel(torch.zeros(2, 16), torch.tensor([1.0, 0.0])).eval()
    taken, queries = _walk(model, torch.rand(4, 1, 4, 4), torch.tensor([0, 0, 0, 1]), torch.randn(6, 1, 4, 4), 5)
    assert taken[:3].eq(5).all()
    assert taken[3].eq(0).all()
    assert queries == 4 * 6 + 4 * (3 * 6)


def test_what_cannot_be_inferred_is_said() -> None:
    mine, others = divided(0)
    with pytest.raises(ValueError, match="eight rows"):
        dataset_inference(drawn_by_chance(None, 1), (mine[0][:4], mine[1][:4]), unseen=others)
    made = dataset_inference(drawn_by_chance(None, 1), mine, unseen=others, distances="descent", steps=2)
    with pytest.raises(ValueError, match="got an oracle"):
        made.claim(Oracle(drawn_by_chance(None, 1), "labels"))
