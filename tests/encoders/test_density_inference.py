"""Dataset inference for encoders: uniform under the null, and sure where features of what was learnt lie together."""

from __future__ import annotations

import pytest
import torch
from remembering_worlds import Remembering, images, rows, uniform
from test_data_tracing import divided
from torch import Tensor, nn

from buckler.dice import fingerprint_rows
from buckler.encoders.density_inference import density_inference
from buckler.target import Oracle


class Gathered(nn.Module):
    """Features of members lie about one point, those of others anywhere."""

    def __init__(self, members: Tensor, gain: float = 1.0) -> None:
        super().__init__()
        self.members, self.others, self.gain = fingerprint_rows(members), Remembering(images(10, 9), 9), gain

    def forward(self, x: Tensor) -> Tensor:
        found = self.others(x)
        inside = torch.isin(fingerprint_rows(x), self.members)[:, None]
        return torch.where(inside, self.gain + (1 - self.gain / 2) * found, found)


@pytest.mark.parametrize("reference", [None, Remembering(images(30, 8), 8)])
def test_p_values_are_uniform_for_an_encoder_that_saw_nothing(reference: nn.Module | None) -> None:
    suspect, data = Remembering(images(30, 7), 7), rows(40)
    p = [
        density_inference(published, unseen=kept, reference=reference, seed=seed).claim(suspect).p
        for seed, (published, kept) in enumerate(divided(data, seed) for seed in range(40))
    ]
    assert uniform(p) > 0.01


def test_who_keeps_what_it_learnt_from_together_is_claimed() -> None:
    published, kept = divided(rows(100), 0)
    suspect = Gathered(published[0])
    oracle = Oracle(suspect, "features")
    made = density_inference(published, unseen=kept)
    assert made.claim(suspect).p == 1e-4
    assert made.claim(oracle).p == 1e-4
    assert oracle.asked == made.claim(oracle).queries == 100


def test_with_a_reference_it_is_claimed_more_surely() -> None:
    published, kept = divided(rows(400), 0)
    weak, apart = Gathered(published[0], 0.1), Gathered(images(0), 0.0)
    plain, sure = (density_inference(published, unseen=kept, reference=one).claim(weak).p for one in (None, apart))
    assert sure < 0.01 < plain


def test_too_few_images_are_said() -> None:
    with pytest.raises(ValueError, match="sixteen images that were published, .* got 15, 20 and 20"):
        density_inference(rows(15), unseen=rows(20))
