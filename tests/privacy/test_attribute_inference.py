"""Hidden columns: told by a model that remembers, imputed where it does not, and never looked at."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from buckler.privacy._columns import coded, filled, hidden, imputed, values
from buckler.privacy.attribute_inference import attribute_inference
from buckler.target import Oracle

HIDDEN = (4,)


def table(many: int, seed: int = 0, *, told: float = 0.0) -> tuple[Tensor, Tensor]:
    """Columns of chance, of which the last takes one of three values; with `told` it follows the first that often."""
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.rand(many, 5, generator=draw), torch.randint(0, 2, (many,), generator=draw)
    own = torch.randint(0, 3, (many,), generator=draw)
    follows = torch.rand(many, generator=draw) < told
    x[:, 4] = torch.where(follows, (x[:, 0] * 3).long(), own) / 2
    return x, y


def remembers(x: Tensor, y: Tensor) -> Oracle:
    """It is sure of the label of a row of `x`, and of nothing else."""

    def answer(rows: Tensor) -> Tensor:
        far = torch.cdist(rows, x, compute_mode="donot_use_mm_for_euclid_dist")
        sure = torch.where(far.amin(1) < 1e-6, 0.99, 0.5)
        label = y[far.argmin(1)]
        return torch.stack([torch.where(label == k, sure, 1 - sure) for k in range(2)], 1)

    return Oracle(answer, "scores")


guess = partial(attribute_inference, public=table(300, 9), columns=HIDDEN)


def right(scores: Tensor, x: Tensor) -> float:
    return float((scores.argmax(1) == coded(x, HIDDEN, values(table(300, 9)[0], HIDDEN, 8))).double().mean())


def test_a_model_that_remembers_a_row_tells_its_hidden_value() -> None:
    x, y = table(60)
    oracle = remembers(x, y)
    blind = filled(x, HIDDEN, torch.zeros(1))
    assert right(guess(oracle, blind, y, weight=20.0)["attribute"], x) == 1
    assert oracle.asked == 3 * 60
    u, v = table(60, 1)
    assert right(guess(remembers(x, y), u, v, weight=20.0)["attribute"], u) < 0.6


@pytest.mark.parametrize("prior", ["imputed", "marginal"])
def test_a_model_that_ignores_the_column_tells_nothing_beyond_the_prior(prior: str) -> None:
    x, y = table(60)

    def constant(rows: Tensor) -> Tensor:
        return torch.stack([rows[:, 0], 1 - rows[:, 0]], 1)

    told = guess(Oracle(constant, "scores"), x, y, prior=prior)["attribute"]  # pyright: ignore
    alone = guess(Oracle(constant, "scores"), x, y, prior=prior, weight=0.0)["attribute"]  # pyright: ignore
    assert torch.allclose(told - told[:, :1], alone - alone[:, :1], atol=1e-6)
    assert torch.equal(told.argmax(1), alone.argmax(1))


def test_the_hidden_column_is_not_looked_at() -> None:
    x, y = table(40)
    oracle = remembers(*table(40, 3))
    scores = [guess(oracle, filled(x, HIDDEN, torch.tensor([v])), y)["attribute"] for v in (0.0, 0.7)]
    assert torch.equal(*scores)


def test_imputation_finds_what_other_columns_tell_and_no_more() -> None:
    known = values(table(300, 9)[0], HIDDEN, 8)
    for told, low, high in ((0.9, 0.8, 1.0), (0.0, 0.2, 0.5)):
        x, y = table(200, 1, told=told)
        found = imputed(table(300, 9, told=told), x, y, HIDDEN, known, 0)
        assert found.sum(1).tolist() == pytest.approx([1.0] * 200)
        assert low <= float((found.argmax(1) == coded(x, HIDDEN, known)).double().mean()) <= high


def test_the_marginal_prior_is_how_often_each_value_is_found() -> None:
    x, y = table(5)
    scores = guess(remembers(x, y), x, y, prior="marginal", weight=0.0)["attribute"]
    public = table(300, 9)[0][:, 4]
    often = torch.tensor([float((public == v).sum()) + 1 for v in (0.0, 0.5, 1.0)], dtype=torch.double)
    assert torch.allclose(scores, (often / often.sum()).log().expand(5, 3))


def test_values_are_those_found_or_centres_of_them() -> None:
    x = table(300)[0]
    assert values(x, HIDDEN, 8).tolist() == [[0.0], [0.5], [1.0]]
    centres = values(x, (0,), 4)
    assert centres.shape == (4, 1)
    assert centres.squeeze(1).tolist() == sorted(centres.squeeze(1).tolist())
    naive = [min(range(4), key=lambda v: abs(float(row[0] - centres[v, 0]))) for row in x]
    assert coded(x, (0,), centres).tolist() == naive
    assert values(x, (0, 1), 6).shape == (6, 2)


def test_columns_are_checked_and_the_one_that_varies_most_is_the_default() -> None:
    x = table(50)[0]
    assert hidden(x, None) == (int(x.var(0).argmax()),)
    assert hidden(x.view(50, 1, 5, 1), (1, 3)) == (1, 3)
    for columns in ((), (5,), (-1,), (1, 1), (0, 1, 2, 3, 4)):
        with pytest.raises(ValueError, match="expected some of the columns 0 to 4"):
            hidden(x, columns)
    with pytest.raises(ValueError, match="two levels or more"):
        values(x, HIDDEN, 1)
    with pytest.raises(ValueError, match="weight of 0 or more"):
        guess(remembers(*table(5)), *table(5), weight=-1.0)
