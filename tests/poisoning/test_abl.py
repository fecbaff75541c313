"""Anti-backdoor learning: its stages alone, and on digits with a patch."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from cultivate_problems import auroc, check_a_cultivator, few, net, same_weights, shapes

from buckler.nets import ResNet
from buckler.poisoning._unlearn import ascend
from buckler.poisoning.abl import abl
from buckler.train import cosine, fit

QUICK = {"epochs": (2, 2, 2), "batch": 32, "rate": 0.02, "isolate": 0.05}


def test_the_stages_are_isolation_training_on_the_rest_and_ascent() -> None:
    x, y = few(100)
    ways = {**QUICK, "net": net, "seed": 4}
    isolation = abl((x, y), **{**ways, "epochs": (2, 0, 0)})
    whole = abl((x, y), **ways)
    flagged = isolation.suspicion.flagged
    assert torch.equal(flagged, whole.suspicion.flagged)
    assert int(flagged.sum()) == 5
    by_hand = copy.deepcopy(isolation.model)
    fit(by_hand, (x[~flagged], y[~flagged]), epochs=2, batch=32, rate=cosine(0.02), seed=5)
    ascend(by_hand, (x[flagged], y[flagged]), epochs=2, rate=5e-4, batch=32, seed=6)
    assert same_weights(by_hand, whole.model)


def test_the_two_traps_differ() -> None:
    ways = {**QUICK, "net": net, "gamma": 2.2, "epochs": (2, 0, 0)}
    done = [abl(few(100), trap=trap, **ways).model for trap in ("ascent", "flooding")]
    assert not same_weights(*done)


def test_what_every_cultivator_keeps_to() -> None:
    done = check_a_cultivator(partial(abl, **QUICK), images=False)
    assert done.dynamics["loss"].shape == (2, 120)


@pytest.mark.parametrize("share", [0.0, 0.001, 1.0])
def test_a_share_of_no_rows_or_all_is_refused(share) -> None:
    with pytest.raises(ValueError, match="expected a share to isolate that is 1 to 99 rows"):
        abl(few(100), net=net, isolate=share)


def test_a_patch_is_isolated() -> None:
    poisoned = shapes(0.3)
    done = abl(
        poisoned.seen, net=partial(ResNet, width=8, blocks=(1, 1)), isolate=0.05, epochs=(6, 0, 0), batch=32, rate=0.05
    )
    found = poisoned.rows[done.suspicion.flagged].float().mean()
    assert found > 0.8, f"of what is isolated {found:.2f} is poison"
    assert auroc(done.suspicion.score, poisoned.rows) > 0.9
