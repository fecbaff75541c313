"""EncoderMI on encoders that remember by construction, and its parts against loops."""

from __future__ import annotations

from functools import partial
from typing import Literal

import pytest
import torch
from remembering_worlds import Remembering, auc, images, shadows, sides
from torch import Tensor
from torch.nn import functional as F

from buckler.encoders._contrast import views
from buckler.encoders._shadowed import TEMPERATURE, Known, Shadows, alike, beyond, readings
from buckler.encoders.encoder_mi import _threshold, encoder_mi
from buckler.target import Oracle


@pytest.mark.parametrize("classifier", ["vector", "set", "threshold"])
def test_members_are_told_and_those_of_another_encoder_are_not(
    classifier: Literal["vector", "set", "threshold"],
) -> None:
    x, member = sides()
    infer = partial(encoder_mi, shadows=lambda _: shadows(), classifier=classifier, asked=6)
    oracle = Oracle(Remembering(x[member]), "features")
    scores = infer(oracle, x)
    assert auc(scores, member).low > 0.65
    assert float(((scores > 0) == member).float().mean()) > 0.6
    assert oracle.asked == 6 * (len(x) + 60 + 60)
    control = auc(infer(Oracle(Remembering(images(100, 5)), "features"), x), member)
    assert control.low < 0.5 < control.high


def test_each_change_to_the_paper_is_worth_it() -> None:
    x, member = sides()
    weak = Remembering(x[member], strength=4.0)
    told = [
        auc(
            encoder_mi(
                Oracle(weak, "features"), x, shadows=lambda _: shadows(), contrasted=how, calibrated=how, asked=5
            ),
            member,
        ).value
        for how in (False, True)
    ]
    assert told[1] > told[0] + 0.05


def naive(encoder: Remembering, x: Tensor, others: Tensor | None) -> Tensor:
    torch.manual_seed(3)
    whole = x if others is None else torch.cat([x, others])
    seen = [encoder(views(0.5)(whole)) for _ in range(3)]
    found = torch.zeros(len(x), 3)
    for row in range(len(x)):
        for pair, (a, b) in enumerate([(0, 1), (0, 2), (1, 2)]):
            found[row, pair] = F.cosine_similarity(seen[a][row], seen[b][row], dim=0) / TEMPERATURE
            for view in (a, b) if others is not None else ():
                away = [
                    F.cosine_similarity(seen[view][row], one[place], dim=0) / TEMPERATURE
                    for one in seen
                    for place in range(len(x), len(whole))
                    if not torch.equal(whole[place], x[row])
                ]
                found[row, pair] -= (torch.stack(away).logsumexp(0) - torch.tensor(float(len(away))).log()) / 2
    return found


@pytest.mark.parametrize("others", [None, images(4, 9), images(6, 1)[:3]])
def test_cosines_are_those_of_a_loop(others: Tensor | None) -> None:
    """And no image is compared with itself as another."""
    encoder, x = Remembering(images(5)), images(6, 1)
    with torch.random.fork_rng(), torch.no_grad():
        expected = naive(encoder, x, others)
    assert torch.allclose(alike(encoder, x, asked=3, least=0.5, seed=3, others=others), expected, atol=1e-4)


def test_what_is_usual_is_taken_off_by_a_line() -> None:
    draw = torch.Generator().manual_seed(0)
    usual = torch.randn(2000, 1, generator=draw)
    noise = torch.randn(2000, 1, generator=draw)
    known = torch.arange(2000) < 1000
    left = beyond(3 * usual + 5 + 0.1 * noise + 0.2 * ~known[:, None], usual, known)
    assert float(left[known].mean()) == pytest.approx(0, abs=1e-4)
    assert float(left[known].std()) == pytest.approx(1, abs=1e-4)
    assert float(left[~known].mean()) == pytest.approx(2, abs=0.2)


def test_shadows_are_read_of_rows_of_which_it_is_known_who_learnt_from_them() -> None:
    """Read off an encoder is whether it learnt from a row: nobody else is a reference for it."""
    made = shadows(3, 4)

    def read(encoder: object, x: Tensor) -> Tensor:
        at = next((i for i, one in enumerate(made.encoders) if one is encoder), None)
        mine = images(5, 1) if at is None else made.rows[at]
        return torch.tensor([[float(any(torch.equal(row, one) for one in mine))] for row in x])

    target, lessons, member = readings(read, Oracle(made.encoders[0], "features"), images(5, 1), made, calibrated=False)
    assert target.flatten().tolist() == [1.0] * 5
    assert torch.equal(lessons.flatten() == 1, member)
    assert len(member) == 3 * (4 + 60)
    again = readings(read, Oracle(made.encoders[0], "features"), images(5, 1), made, calibrated=True)
    assert bool((again[1].flatten()[member] > 0).all())


def test_the_threshold_is_the_best_there_is() -> None:
    draw = torch.Generator().manual_seed(0)
    member = torch.rand(60, generator=draw) < 0.4
    score = torch.randn(60, generator=draw) + member.float()

    def right(cut: float) -> float:
        return float((score[member] > cut).float().mean() + (score[~member] <= cut).float().mean())

    assert right(_threshold(score, member)) == pytest.approx(max(right(float(s)) for s in score))


def test_what_is_known_is_asked_for() -> None:
    asked: list[Known] = []

    def made(known: Known) -> Shadows:
        asked.append(known)
        return shadows(2, 20)

    x, _ = sides(20)
    encoder_mi(Oracle(Remembering(x), "features"), x, shadows=made, net_known=False, asked=2)
    assert asked == [Known(True, False, True)]


def test_bad_input_is_said() -> None:
    oracle = Oracle(Remembering(images(4)), "features")
    with pytest.raises(ValueError, match="two views or more, got .* and 1"):
        encoder_mi(oracle, images(4), shadows=lambda _: shadows(), asked=1)
    with pytest.raises(ValueError, match=r"expected images \(B, C, H, W\)"):
        alike(oracle, torch.rand(4, 8), asked=2, least=0.5, seed=0)
    with pytest.raises(ValueError, match="two shadow encoders or more"):
        shadows(1)
