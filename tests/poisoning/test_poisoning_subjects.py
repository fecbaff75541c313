"""What a subject may bring that spoils every number: its training data, its recipe, its network and its test rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from problems import net, pixel, recipe, stripes, subject
from torch import Tensor, nn

from buckler.data import Poisoned, Rows, drawn
from buckler.kinds import Cultivated, Repaired, Suspicion
from buckler.poisoning.evaluate import evaluate
from buckler.threat import Share
from buckler.train import fit, started

TEN = Share(0.1)


class Flawed(nn.Module):
    """A trained network whose answers are changed before they are given."""

    def __init__(self, change: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.inner, self.change = net(), change

    def forward(self, x: Tensor) -> object:
        return self.change(self.inner(x))


def keep(model: nn.Module, clean: Rows) -> Repaired:
    del clean
    return model


def bright(data: Rows) -> Suspicion:
    score = data[0].flatten(1).amax(1)
    return Suspicion(score, score > 0.9)


def grow(data: Rows, *, net: Callable[[], nn.Module], seed: int = 0) -> Cultivated:
    return Cultivated(fit(started(net, seed), data, epochs=1))


FLAWS = {
    "100% of rows answer NaN": Flawed(lambda out: out * torch.nan),
    "The label 2 occurs and the model knows 0 to 1": Flawed(lambda out: out[:, :2]),
    r"Expected \(B, K\) logits .*, got \(17,\)": Flawed(lambda out: out[:, 0]),
    "Expected a tensor of logits from the model, got a tuple": Flawed(lambda out: (out, out)),
    "The model raises KeyError": Flawed(lambda out: {}[out]),
}


@pytest.mark.parametrize("says", FLAWS)
def test_a_recipe_of_whose_model_nothing_can_be_measured_is_one_sentence(says: str) -> None:
    with pytest.raises(ValueError, match=f"recipe: expected a model with 3 finite outputs per row. {says}"):
        evaluate(pixel, subject(recipe=lambda _: FLAWS[says]), share=TEN, rows=50)


@pytest.mark.parametrize("says", FLAWS)
def test_a_net_of_which_nothing_can_be_measured_is_one_sentence(says: str) -> None:
    class Made(Flawed):
        def __init__(self) -> None:
            super().__init__(FLAWS[says].change)

    for method, given in ((pixel, {"recipe": None}), (grow, {})):
        with pytest.raises(ValueError, match=f"net: expected a model with 3 finite outputs per row. {says}"):
            evaluate(method, subject(net=Made, **given), share=TEN if method is pixel else None, rows=50)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_recipe_that_returns_another_precision_is_measured_and_a_script_is_refused() -> None:
    single, double = (
        evaluate(pixel, subject(recipe=made), share=TEN, rows=50).estimates
        for made in (recipe, lambda data: recipe(data).double())
    )
    assert double["attack_success"].value == single["attack_success"].value > 0.9
    with pytest.raises(ValueError, match="recipe: expected an nn.Module in Python"):
        evaluate(pixel, subject(recipe=lambda data: torch.jit.trace(recipe(data), data[0][:1])), share=TEN, rows=50)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_recipe_that_trains_one_network_again_and_again_is_refused(wrapped: bool) -> None:
    one = started(net, 0)

    def again(data: Rows) -> nn.Module:
        made = fit(one, data, epochs=30, batch=32)
        return nn.Sequential(made, nn.Identity()) if wrapped else made

    with pytest.raises(ValueError, match="recipe: expected a new model from every call"):
        evaluate(pixel, subject(recipe=again), share=TEN, rows=50)


def test_a_recipe_that_trains_the_subject_s_own_model_leaves_it_as_it_was() -> None:
    whole = subject()
    before = {name: value.clone() for name, value in whole.model.state_dict().items()}
    spoils = replace(whole, recipe=lambda data: fit(whole.model, data, epochs=1))
    with pytest.raises(ValueError, match="recipe: expected a new model from every call"):
        evaluate(keep, spoils, attack=pixel, share=TEN, rows=50)
    assert all(torch.equal(value, before[name]) for name, value in whole.model.state_dict().items())


def test_models_of_a_recipe_may_share_what_is_not_trained() -> None:
    encoder = nn.Flatten()
    encoder.register_buffer("mean", torch.tensor(0.5))
    fixed = nn.Linear(64, 64).requires_grad_(False)

    def probe(data: Rows) -> nn.Module:
        return fit(nn.Sequential(encoder, fixed, nn.ReLU(), nn.Linear(64, 3)), data, epochs=5)

    assert evaluate(pixel, subject(recipe=probe), share=TEN, rows=50).status == "ok"


@pytest.mark.parametrize("method", [grow, pixel])
def test_a_net_that_gives_one_network_twice_is_refused(method: Callable[..., object]) -> None:
    one = net()
    given = {"recipe": None} if method is pixel else {}
    with pytest.raises(ValueError, match="net: expected a new network from every call, got one twice"):
        evaluate(method, subject(net=lambda: one, **given), rows=50)


def altered(change: Callable[[Tensor, Tensor], Rows]) -> Rows:
    x, y = stripes(300)
    return change(x.clone(), y.clone())


def put(tensor: Tensor, row: int, value: float) -> Tensor:
    tensor[row] = value
    return tensor


TRAINING = {
    r"inputs in \[0, 1\], got NaN or infinity \(first at row 100\)": altered(lambda x, y: (put(x, 100, torch.nan), y)),
    r"labels 0 or more, got -1 \(first at row 150\)": altered(lambda x, y: (x, put(y, 150, -1))),
    r"rows \(1, 8, 8\), as the test rows are, got \(1, 16, 16\)": altered(lambda x, y: (x.repeat(1, 1, 2, 2), y)),
    r"rows \(1, 8, 8\), as the test rows are, got \(64,\)": altered(lambda x, y: (x.flatten(1), y)),
    "labels of the model's 3 classes, got 3 at row 299": altered(lambda x, y: (x, put(y, 299, 3))),
    f"labels of the model's 3 classes, got {10**12} at row 5": altered(lambda x, y: (x, put(y, 5, 10**12))),
}


@pytest.mark.parametrize("says", TRAINING)
def test_training_data_of_another_kind_than_the_test_rows_is_one_sentence(says: str) -> None:
    whole = subject(train=TRAINING[says])
    for method, asked in ((pixel, {}), (bright, {}), (keep, {"attack": pixel})):
        with pytest.raises(ValueError, match=f"^train: expected {says}"):
            evaluate(method, whole, rows=50, **asked)
    assert evaluate(keep, whole, rows=50).status == "ok", "the model alone is looked at"


def test_the_row_that_is_named_is_where_it_stands_in_the_data() -> None:
    whole = subject(train=altered(lambda x, y: (x, put(y, 299, 3))))
    kept = 0
    for seed in range(4):
        if 299 not in drawn(whole.train, 150, seed):
            assert evaluate(bright, whole, train_rows=150, rows=50, seed=seed).status == "ok"
            kept += 1
            continue
        with pytest.raises(ValueError, match="got 3 at row 299"):
            evaluate(bright, whole, train_rows=150, rows=50, seed=seed)
    assert 0 < kept < 4, "only rows that are used are looked at"


@pytest.mark.parametrize("name", ["rows", "train_rows", "clean_rows"])
def test_too_few_rows_are_one_sentence(name: str) -> None:
    with pytest.raises(ValueError, match=f"expected {name} of . or more, got -5"):
        evaluate(pixel, subject(), share=TEN, **{name: -5})


def needy(data: Rows, *, share: Share, clean: Rows, seed: int = 0) -> Poisoned:
    """An attack that asks for clean rows."""
    assert len(clean[1]) == 40
    return pixel(data, share=share, seed=seed)


@pytest.mark.parametrize(
    ("method", "asked", "measured"),
    [(pixel, {}, 150), (grow, {"attack": pixel}, 150), (keep, {"attack": pixel}, 110), (needy, {}, 110)],
)
def test_test_rows_are_held_out_only_for_those_who_need_them(method, asked, measured: int) -> None:
    trial = evaluate(method, subject(), rows=1000, clean_rows=40, **asked)
    assert (trial.estimates["accuracy"].n, trial.params["rows"]) == (measured, measured)


def test_a_single_test_row_is_enough_for_who_needs_no_clean_ones() -> None:
    x, y = stripes(3, seed=1)
    whole = subject(test=(x[1:2], y[1:2]))
    assert evaluate(pixel, whole, share=TEN).estimates["accuracy"].n == 1
    says = "needs clean rows beside those measured on: give the subject more test rows, clean_rows above 0"
    for given, asked in ((whole, {}), (subject(), {"clean_rows": 0})):
        trial = evaluate(keep, given, **asked)
        assert trial.status == "skipped"
        assert trial.reason.endswith(says)
