from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from buckler.evasion.jpeg import jpeg
from buckler.evasion.pgd import pgd
from buckler.evasion.square import square
from buckler.kinds import Perturbed
from buckler.method import describe, held, plain
from buckler.target import Oracle
from buckler.threat import Ball


def test_a_method_says_what_it_is() -> None:
    described = describe(partial(pgd, steps=7))
    assert (described.path, described.kind, described.holds) == ("evasion/pgd", "evade", "model")
    assert described.params["steps"] == 7
    assert described.params["restarts"] == 1
    assert "ball" not in described.params
    assert "ball" in described.knobs
    assert any(tag.startswith("atlas:AML.T0043.000@") for tag in described.tags)
    assert "def pgd(" in described.source
    assert describe(square).holds == "scores"
    assert describe(jpeg).kind == "guard"


def test_nested_partials_keep_the_outermost_value() -> None:
    assert describe(partial(partial(pgd, steps=7, restarts=2), steps=9)).params["steps"] == 9


def untyped(model, x):
    return x


def strange(model: int, x: Tensor, y: Tensor, *, ball: Ball) -> Perturbed:
    return x


def test_what_fits_no_kind_is_refused_with_a_sentence() -> None:
    with pytest.raises(ValueError, match="return annotation"):
        describe(untyped)
    with pytest.raises(ValueError, match=r"nn\.Module, Rows, ScoreOracle or LabelOracle"):
        describe(strange)
    with pytest.raises(ValueError, match="unknown parameter 'stepps'"):
        describe(partial(pgd, stepps=3))
    with pytest.raises(ValueError, match="positional"):
        describe(partial(pgd, nn.Linear(1, 1)))


def test_nobody_is_given_more_than_the_target_reveals() -> None:
    model = nn.Linear(3, 2)
    assert held("model", model) is model
    labels = held("labels", model, 5)
    assert isinstance(labels, Oracle)
    assert labels(torch.rand(2, 3)).shape == (2,)
    with pytest.raises(ValueError, match="reveals labels only"):
        held("scores", Oracle(model, "labels"))
    with pytest.raises(ValueError, match="needs the model"):
        held("model", Oracle(model, "scores"))
    assert isinstance(held("labels", Oracle(model, "scores")), Oracle)


def test_parameters_are_recorded_as_json_holds_them() -> None:
    assert plain(Ball("linf", 0.1)) == "linf:0.1"
    assert plain((1, Ball("l2", 1))) == [1, "l2:1"]
    assert plain(pgd) == "evasion/pgd"
    assert plain(partial(pgd, steps=3)) == {"method": "evasion/pgd", "steps": 3}
    assert plain(torch.zeros(2, 3)) == "tensor(2, 3)"
