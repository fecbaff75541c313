"""Views are the same for everyone, and confidences are exact where probabilities are nearly 1."""

from __future__ import annotations

import pytest
import torch
from membership_worlds import net, noise

from buckler.privacy._farm import Lesson, farm, halves
from buckler.privacy._shadows import LARGEST, Shadows, answers_of, confidence, views
from buckler.target import Oracle
from buckler.train import started


def test_the_first_view_is_the_row_and_the_second_its_mirror_image() -> None:
    x, _ = noise(5)
    first, second, third, fourth = views(x, 4)
    assert torch.equal(first, x)
    assert torch.equal(second, x.flip(-1))
    assert torch.equal(fourth, list(views(x.flip(-1), 3))[2])
    assert not torch.equal(third, x)


def test_all_views_differ_and_are_legal() -> None:
    x, _ = noise(3)
    seen = list(views(x, LARGEST))
    assert len(seen) == 18
    assert len({tuple(view.flatten().tolist()) for view in seen}) == 18
    assert all(view.shape == x.shape and float(view.min()) >= 0 and float(view.max()) <= 1 for view in seen)


def test_a_move_is_by_a_pixel_and_repeats_the_edge() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4) / 16
    moved = list(views(x, 18))[2::2]
    down_right = moved[-1]
    assert torch.equal(down_right[..., 1:, 1:], x[..., :-1, :-1])
    assert torch.equal(down_right[..., 0, 0], x[..., 0, 0])


@pytest.mark.parametrize(("shape", "many"), [((3, 7), 2), ((3, 1, 4, 4), 0), ((3, 1, 4, 4), 19)])
def test_views_that_there_are_not(shape: tuple[int, ...], many: int) -> None:
    with pytest.raises(ValueError, match="expected at least 1 view"):
        list(views(torch.zeros(shape), many))


def test_the_confidence_is_exact_where_a_probability_is_nearly_1() -> None:
    logits = torch.tensor([[40.0, 0.0, 1.0], [0.0, 3.0, -3.0]])
    y = torch.tensor([0, 1])
    got = confidence(logits.log_softmax(1)[:, None], y).squeeze(1)
    others = torch.stack([logits[0, 1:].double().logsumexp(0), logits[1, [0, 2]].double().logsumexp(0)])
    assert torch.allclose(got, logits[[0, 1], y].double() - others, atol=1e-5)


def test_a_target_s_scores_say_what_a_shadow_s_logits_say() -> None:
    data = noise(30)
    shadows = farm(Lesson(net, epochs=1), data, halves(30, 2), asked=3, engine="sequential")
    model = started(net, 1).eval()
    assert answers_of(Oracle(model), data[0], 3).shape == shadows.answers[0].shape == (30, 3, 4)
    for place, view in enumerate(views(data[0], 3)):
        expected = model(view).log_softmax(1)
        assert torch.allclose(answers_of(Oracle(model), data[0], 3)[:, place], expected, atol=1e-5)


def test_rows_are_taken_from_every_part() -> None:
    data = noise(20)
    shadows = farm(Lesson(net, epochs=1), data, halves(20, 2))
    index = torch.tensor([7, 3, 11])
    part = shadows.rows(index)
    assert torch.equal(part.confidences(), shadows.confidences()[:, index])
    assert torch.equal(part.held, shadows.held[:, index])
    part.fit(data[0][index])
    with pytest.raises(ValueError, match="expected shadows that were asked about these 20 rows"):
        part.fit(data[0])
    with pytest.raises(ValueError, match="expected shadows"):
        Shadows(shadows.held[:1], shadows.answers, data[1]).fit(data[0])
