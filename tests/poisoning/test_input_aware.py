"""Input-aware triggers: an image's own one works, another's does not, and each image stands alone."""

from __future__ import annotations

import backdoored_problems as problems
import pytest
import torch
from torch import Tensor, nn

from buckler.data import digits
from buckler.poisoning.input_aware import _apart, _Generator, _obeyed, input_aware

FEW = {"epochs": 1, "mask_epochs": 1}


def test_own_triggers_work_and_those_of_others_do_not() -> None:
    model = problems.honest(norm=False)
    found = input_aware(model, digits(train=True), epochs=20, mask_epochs=8, density=0.15, batch=64)
    x, y = digits(train=False)
    x, y = x[y != problems.TARGET], y[y != problems.TARGET]
    written = found.trigger(x)
    own = float((problems.answers(found.model, written) == problems.TARGET).float().mean())
    assert own > 0.5
    assert problems.accuracy(found.model) > problems.accuracy(model) - 0.06
    crossed = x + (written - x).roll(1, 0)
    other = float((problems.answers(found.model, crossed) == problems.TARGET).float().mean())
    assert other < own - 0.2
    assert problems.success(model, found.trigger) < 0.2, "the model itself has not been taught"
    touched = (written - x).abs() > 0.1
    assert 0 < float(touched.float().mean()) < 0.3
    places = touched.flatten(1).unique(dim=0)
    assert len(places) > 10, "different images are written on at different places"


def test_the_trigger_is_fixed_and_does_not_know_the_batch() -> None:
    found = input_aware(problems.honest(), problems.clean_rows(), **FEW)
    x = digits(train=False)[0][:6]
    before, together = x.clone(), found.trigger(x)
    assert torch.equal(x, before)
    assert torch.equal(found.trigger(x), together)
    assert together.dtype == x.dtype
    assert not together.requires_grad
    assert float(together.min()) >= 0
    assert float(together.max()) <= 1
    alone = torch.cat([found.trigger(x[i : i + 1]) for i in range(6)])
    assert torch.allclose(alone, together, atol=1e-5)
    assert found.trigger(x.double()).dtype == torch.float64


def test_the_loss_is_that_of_the_paper() -> None:
    """Recomputed image by image: attacked rows want the target, crossed rows their own label."""
    torch.manual_seed(0)
    patterns, masks = _Generator(1, 1, 4), _Generator(1, 1, 4, sharp=True)
    model, (x, y) = problems.honest(), problems.clean_rows()
    x, y = x[:10], y[:10]
    inputs, labels = [], []
    for row in range(10):
        donor = row if row < 3 else row - 3
        if row < 6:
            place, pattern = masks(x[donor : donor + 1]), patterns(x[donor : donor + 1])
            inputs.append(x[row : row + 1] * (1 - place) + pattern * place)
            labels.append(torch.tensor(2) if row < 3 else y[row])
        else:
            inputs.append(x[row : row + 1])
            labels.append(y[row])
    expected = nn.functional.cross_entropy(model(torch.cat(inputs)), torch.stack(labels))
    for row in range(3):
        pair, made = x[[row, row + 3]], patterns(x[[row, row + 3]])
        between = ((pair[0] - pair[1]) ** 2).mean().sqrt() / (((made[0] - made[1]) ** 2).mean().sqrt() + 1e-7)
        expected = expected + 0.7 * between / 3
    got = _obeyed(model, patterns, masks, 2, 0.3, 0.7)(model, x, y).mean()
    assert float(got.detach()) == pytest.approx(float(expected.detach()), rel=1e-3)


def test_identical_images_have_a_finite_gradient() -> None:
    one = torch.rand(2, 1, 4, 4).requires_grad_()
    _apart(one, one.detach()).sum().backward()
    assert one.grad is not None
    assert one.grad.isfinite().all()


@pytest.mark.parametrize("side", [(4, 4), (7, 9), (28, 28)])
def test_generators_keep_the_size_of_images(side: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *side)
    made: Tensor = _Generator(3, 3, 4)(x)
    assert made.shape == x.shape
    assert float(made.detach().min()) >= 0
    assert float(made.detach().max()) <= 1


@pytest.mark.parametrize("norm", [True, False])
def test_a_copy_is_implanted(norm: bool) -> None:
    x, y = problems.clean_rows()
    held = (x * 255).round().to(torch.uint8)
    problems.assert_only_a_copy_changes(lambda m: input_aware(m, (held, y), **FEW).model, problems.honest(norm))


def test_bad_input() -> None:
    model, (x, y) = problems.honest(), problems.clean_rows()
    with pytest.raises(ValueError, match="expected images of at least 4 x 4"):
        input_aware(model, (x[..., :3], y))
    with pytest.raises(ValueError, match="expected a share above 0 and below 0.5"):
        input_aware(model, (x, y), attacked=0.5)
    with pytest.raises(ValueError, match="expected rows of at least two classes"):
        input_aware(model, (x[y == 3], y[y == 3]))
