"""A trigger out of clean images, and inputs with it that stay different."""

from __future__ import annotations

import pytest
import torch
from test_bad_encoder import obeyed
from torch import nn

from buckler.data import Rows
from buckler.embedding import embedded
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

    assert together(blended) < together(planted) - 0.05


@pytest.mark.parametrize(
    ("knobs", "says"), [({"blend": 1.0}, "below 1"), ({"spread": -0.1}, "spread of 0"), ({"target": 11}, "class 11")]
)
def test_bad_input_is_said_in_a_sentence(encoder: nn.Module, learnt: Rows, knobs: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        drupe(encoder, learnt, **knobs)  # pyright: ignore[reportArgumentType]
