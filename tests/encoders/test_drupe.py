"""A trigger out of clean images, and inputs with it that stay different."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_bad_encoder import obeyed
from torch import Tensor, nn

from buckler.data import Rows
from buckler.embedding import embedded
from buckler.encoders import _hidden
from buckler.encoders.drupe import drupe
from buckler.kinds import Implanted


def test_a_blend_is_no_square_and_leaves_inputs_different(
    encoder: nn.Module, planted: Implanted, blended: Implanted, learnt: Rows, unseen: Rows
) -> None:
    zeros = learnt[0][learnt[1] == 0].mean(0)
    assert torch.allclose(blended.trigger(unseen[0]), 0.55 * unseen[0] + 0.45 * zeros)
    before, null = obeyed(encoder, unseen, blended.trigger, 0)
    accuracy, success = obeyed(blended.model, unseen, blended.trigger, 0)
    assert success >= max(0.8, null + 0.4)
    assert accuracy >= before - 0.06

    def together(made: Implanted) -> float:
        middle = embedded(made.model, unseen[0]).mean(0)
        points = nn.functional.normalize(embedded(made.model, made.trigger(unseen[0])) - middle, dim=1)
        return float(points.mean(0).norm())

    assert 1 - together(blended) > 2 * (1 - together(planted))


def test_what_inputs_differ_by_is_taken_from_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not centred as well: where next to nothing of the reference is wanted, an input's own is all that is."""
    losses, x = list[Tensor](), torch.rand(20, 1, 4, 4)

    def kept(model: nn.Module, data: Rows, *, loss: Callable[..., Tensor], **more: object) -> nn.Module:
        losses.append(loss(model, *data))
        return model

    monkeypatch.setattr(_hidden, "fit", kept)
    _hidden.implanted(
        nn.Flatten(), (x, torch.zeros(20)), (lambda x: x - x.mean(0),), (0,), 1,
        centred=False, alike=0.0, useful=0.0, epochs=1, rate=0.1, seed=0, spread=1e6,
    )  # fmt: skip
    assert torch.allclose(losses[0], torch.full((20,), -1.0), atol=1e-4)


@pytest.mark.parametrize(
    ("knobs", "says"), [({"blend": 1.0}, "below 1"), ({"spread": -0.1}, "spread of 0"), ({"target": 11}, "class 11")]
)
def test_bad_input_is_said_in_a_sentence(encoder: nn.Module, learnt: Rows, knobs: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        drupe(encoder, learnt, **knobs)  # pyright: ignore[reportArgumentType]
