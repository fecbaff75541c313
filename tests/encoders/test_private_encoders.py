"""Private pre-training, evaluated and judged: beside what remembers, and one that breaks its promise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from remembering_worlds import Remembering, remembering, rows, subject
from torch import Tensor, nn

import buckler.encoders.dp_rotation as module
from buckler import nets
from buckler.data import Rows
from buckler.encoders import _pretrained, _promised
from buckler.encoders._inferred import _scored
from buckler.encoders._promised import PROMISE, promised, told_at_most
from buckler.encoders._scene import pretrained
from buckler.encoders._setting import Setting
from buckler.encoders.dp_rotation import dp_rotation
from buckler.encoders.encoder_mi import encoder_mi
from buckler.encoders.evaluate import evaluate
from buckler.encoders.judge import judge
from buckler.findings import Finding, rules
from buckler.kinds import Encoder
from buckler.method import describe
from buckler.target import Meter
from buckler.train import fit
from buckler.trial import Trial, load, save


@pytest.fixture(scope="module", autouse=True)
def quickly() -> Iterator[None]:
    """One probe of few labels; the price of noise, which takes seconds to find, is guessed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_pretrained, "DRAWS", 1)
        patch.setattr(module, "calibrated", lambda epsilon, *_: (4 / epsilon, epsilon))
        yield


@pytest.fixture(scope="module")
def trial(quickly: None) -> Trial:
    del quickly
    return evaluate(partial(dp_rotation, epochs=2.0), subject(), rows=300, encoder_steps=2, pretraining=remembering)


def judged(*trials: Trial) -> dict[str, Finding]:
    return {found.id: found for found in judge(trials, {}, rules(), "buckler run {method}").findings}


def test_what_was_remembered_is_not_under_noise(trial: Trial, tmp_path: Path) -> None:
    e = trial.estimates
    assert trial.status == "ok"
    assert e["plain_auc"].low > 0.55
    assert e["auc"].low < 0.5 < e["auc"].high
    assert e["auc"].n == 300
    gained = e["few_correct"].value - e["untrained_few_correct"].value
    assert e["few_correct_untrained_change"].value == pytest.approx(gained)
    save(trial, tmp_path / "trial")
    assert load(tmp_path / "trial").estimates == e, "every estimate is computed again"


def test_it_is_the_defence_in_the_row_of_membership(trial: Trial) -> None:
    attack = evaluate(partial(encoder_mi, asked=4), subject(), rows=300, encoder_steps=2, pretraining=remembering)
    for trials in ((trial,), (attack, trial)):
        found = judged(*trials)
        assert "promises epsilon 8.0 at a delta of 0.004 for one row" in found["encoders/membership/private"].claim
        assert "points beside remembering_worlds:remembering on" in found["encoders/membership/private"].claim
        assert "tells nothing either" not in found["encoders/membership/private"].claim
        assert "so nothing was surely learnt" in found["encoders/membership/private"].claim
        (line,) = (line for line in found["encoders/ten"].grid if line[0] == "2. Membership")
        if len(trials) > 1:
            assert line[4].startswith("stopping after"), "what taught nothing is not the best defence"
        else:
            assert line[4] == "dp_rotation at epsilon 8.0, no better than untrained"
            assert line[6] == f"{100 * trial.estimates['few_correct_plain_change'].value:+.1f} points"
    gained = replace(trial.estimates["few_correct_untrained_change"], value=0.3, low=0.2, high=0.4)
    better = replace(trial, estimates=trial.estimates | {"few_correct_untrained_change": gained})
    (line,) = (line for line in judged(attack, better)["encoders/ten"].grid if line[0] == "2. Membership")
    assert line[4] == "dp_rotation at epsilon 8.0"
    assert ("encoders/membership" in judged(trial)) is False


def test_an_attack_without_power_shows_no_protection(trial: Trial) -> None:
    weak = replace(trial, estimates=trial.estimates | {"plain_auc": trial.estimates["auc"]})
    assert "does not show what noise does" in judged(weak)["encoders/membership/private"].claim


def lying(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    epsilon: float = 0.01,
    delta: float | None = None,
    epochs: float = 1,
    batch: int = 64,
    seed: int = 0,
) -> Encoder:
    """It remembers everything, and promises much."""
    del net, batch, epochs, epsilon, delta
    return Remembering(data[0], seed, strength=40.0).eval()


def setting(method: Callable[..., Encoder], keep: Path | None = None) -> Setting:
    return Setting(
        method=method, described=describe(method), subject=subject(), rows=300, train_rows=300, encoder_steps=1,
        pretraining=remembering, queries=(), ball=None, share=None, attack=None, models=1, training_epochs=1, seed=0,
        keep=keep, device=torch.device("cpu"), meter=Meter(), told=lambda _: None,
    )  # fmt: skip


def played(method: Callable[..., Encoder]) -> Trial:
    return promised(setting(method))


def test_a_kept_encoder_of_other_parts_than_its_network_is_read_and_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its norms are not the network's, and its epochs are its own."""
    calls = list[object]()

    def counted(*given: Any, **more: Any) -> nn.Module:
        calls.append(more["seed"])
        return fit(*given, **more)

    monkeypatch.setattr(module, "fit", counted)
    asked = setting(dp_rotation, tmp_path)
    asked = replace(asked, subject=replace(asked.subject, body=partial(nets.encoder, width=4, stride=1)))
    one, again = (pretrained(asked, rows(60), method=partial(dp_rotation, epochs=1.0)).state_dict() for _ in range(2))
    assert len(calls) == 1
    assert all(torch.equal(weight, again[name]) for name, weight in one.items())


def test_a_promise_that_the_attack_contradicts_is_said() -> None:
    made = played(lying)
    assert made.status == "inconclusive"
    assert [check.passed for check in made.checks if check.name == PROMISE] == [False]
    assert "(0.01, 0.004)-differential privacy for one of 150 rows" in made.reason


@pytest.mark.parametrize(("epsilon", "delta"), [(0.01, 0.0), (0.5, 1e-3), (1.0, 0.1), (0.2, 0.6)])
def test_no_test_tells_more_than_the_promise_allows_and_one_tells_as_much(epsilon: float, delta: float) -> None:
    """Over all pairs of rates that two promises in a row, of a row taken out and another put in, leave possible."""
    found, missed = (torch.linspace(0, 1, 401, dtype=torch.double).view(shape) for shape in ((-1, 1), (1, -1)))

    def twice(rate: Tensor) -> Tensor:
        return math.exp(epsilon) * (math.exp(epsilon) * rate + delta) + delta

    possible = (found <= twice(1 - missed)) & (missed <= twice(1 - found))
    best = float(((found + missed) / 2)[possible].max())
    assert told_at_most(epsilon, delta) == pytest.approx(best, abs=0.003)


def test_a_promise_of_nothing_is_not_contradicted() -> None:
    made = played(partial(lying, epsilon=400.0))
    assert made.status == "ok", "e to the power of 800 is no float"
    assert "above 1.0000" in next(check.says for check in made.checks if check.name == PROMISE)


def test_the_encoders_of_each_attack_are_made_as_its_target_was_and_one_learnt_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, attacked = list[object](), list[str]()

    def makes(*given: Any, method: Callable[..., Encoder], **more: Any) -> nn.Module:
        made.append(describe(method).params["epochs"])
        return pretrained(*given, method=method, **more)

    def scores(setting: Setting, *given: Any) -> Any:
        attacked.append(describe(setting.pretraining).path.rpartition(":")[2])
        return _scored(setting, *given)

    monkeypatch.setattr(_promised, "pretrained", makes)
    monkeypatch.setattr(_promised, "_scored", scores)
    played(partial(lying, epsilon=400.0, epochs=3))
    assert made == [3, 0]
    assert attacked == ["lying", "remembering"]


def test_what_cannot_be_played_is_skipped() -> None:
    few = evaluate(dp_rotation, subject(), rows=30, encoder_steps=2, pretraining=remembering)
    assert few.status == "skipped"
    assert "ask for more rows" in few.reason
    lacking = replace(subject(), train=None)
    assert "give the subject" in evaluate(dp_rotation, lacking).reason
