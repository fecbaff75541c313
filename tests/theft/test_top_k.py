from __future__ import annotations

import pytest
import torch
from stolen_worlds import rows, victim

from buckler.theft.top_k import top_k


def test_the_leading_scores_are_true_and_the_rest_is_even() -> None:
    model, x = victim(steep=1.0, classes=6), rows(50)
    before = model(x).softmax(1)
    for k in range(1, 6):
        after = top_k(model, k=k)(x).softmax(1)
        for one, shown in zip(before, after, strict=True):
            lead = one.argsort(descending=True)
            torch.testing.assert_close(shown[lead[:k]], one[lead[:k]], atol=1e-5, rtol=0)
            torch.testing.assert_close(
                shown[lead[k:]], ((1 - one[lead[:k]].sum()) / (6 - k)).expand(6 - k), atol=1e-5, rtol=0
            )
        assert torch.equal(after.argmax(1), before.argmax(1))
    torch.testing.assert_close(top_k(model, k=9)(x).softmax(1), before)


def test_no_class_shown_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 class"):
        top_k(victim(), k=0)
