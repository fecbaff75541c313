from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from buckler.threat import NORMS, Ball, Share, Threat, catalogue, pinned, tag_name


@pytest.mark.parametrize(
    ("text", "norm", "radius"),
    [("linf:8/255", "linf", 8 / 255), ("l2:0.5", "l2", 0.5), ("l0:10", "l0", 10.0), ("l1:inf", "l1", math.inf)],
)
def test_a_limit_reads_itself(text: str, norm: str, radius: float) -> None:
    ball = Ball.parse(text)
    assert (ball.norm, ball.radius) == (norm, radius)
    assert Ball.parse(str(ball)).radius == pytest.approx(radius, rel=1e-5)


@pytest.mark.parametrize("text", ["linf", "linf:", "linf:8/0", "l3:1", "l2:-1", "l2:nan", "", "linf:1e"])
def test_a_malformed_limit_is_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Ball.parse(text)


def test_a_radius_per_row_is_checked() -> None:
    with pytest.raises(ValueError, match="per row"):
        Ball("l2", torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="per row"):
        Ball("l2", torch.ones(2, 2))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), norm=st.sampled_from(NORMS), scale=st.floats(0.01, 3.0))
def test_projection_is_inside_idempotent_and_closest(seed: int, norm: str, scale: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    delta = torch.randn(5, 3, 4, generator=draw, dtype=torch.float64) * scale
    radius = (
        torch.rand(5, generator=draw, dtype=torch.float64) * 2 if norm != "l0" else torch.tensor([0.0, 1, 3, 6, 12])
    )
    ball = Ball(norm, radius)  # pyright: ignore[reportArgumentType]
    moved = ball.project(delta)
    assert (ball.size(moved) <= radius + 1e-9).all()
    assert torch.allclose(ball.project(moved), moved, atol=1e-9)
    # no random point of the ball is closer
    for _ in range(20):
        other = torch.randn(delta.shape, generator=draw, dtype=torch.float64)
        if norm == "l0":
            keep = torch.rand(delta.shape, generator=draw).flatten(1).argsort(1).argsort(1).view_as(delta)
            other = torch.where(keep < radius.view(-1, 1, 1), delta, 0.0)
        else:
            share = torch.rand(5, generator=draw, dtype=torch.float64)
            other = other * (radius * share / ball.size(other)).view(-1, 1, 1)
        assert ((moved - delta).flatten(1).norm(dim=1) <= (other - delta).flatten(1).norm(dim=1) + 1e-9).all()


@pytest.mark.parametrize("norm", NORMS)
def test_clip_is_legal_and_rows_do_not_meet(norm: str) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(6, 2, 5, generator=draw)
    moved = x + torch.randn(x.shape, generator=draw)
    ball = Ball(norm, torch.tensor([0.0, 0.05, 0.3, 1.0, 3.0, 50.0]))  # pyright: ignore[reportArgumentType]
    clipped = ball.clip(x, moved)
    assert ball.contains(x, clipped).all()
    picked = torch.tensor([4, 2])
    assert torch.equal(ball.rows(picked).clip(x[picked], moved[picked]), clipped[picked])
    assert torch.equal(clipped[0], x[0])


def test_contains_refuses_what_is_no_input() -> None:
    x = torch.full((4, 3), 0.5)
    moved = x.clone()
    moved[0, 0], moved[1, 0], moved[2, 0] = float("nan"), 1.01, 0.7
    assert Ball("linf", 0.1).contains(x, moved).tolist() == [False, False, False, True]


def test_tags_are_pinned_and_must_exist() -> None:
    tags = pinned("A title.\n\nTags: atlas:AML.T0043.000, owasp-ml:ML01.")
    assert tags == (f"atlas:AML.T0043.000@{catalogue('atlas')['@']}", f"owasp-ml:ML01@{catalogue('owasp-ml')['@']}")
    assert tag_name(tags[0]).endswith("White-Box Optimization")
    with pytest.raises(ValueError, match="not in the atlas catalogue"):
        pinned("Tags: atlas:AML.T9999")
    with pytest.raises(ValueError, match="unknown catalogue"):
        Threat("weights", "input", "linf:1", "any", ("nowhere:1@2",))
    with pytest.raises(ValueError, match="is at"):
        tag_name("atlas:AML.T0043@1999")


def test_threats_compare_by_value() -> None:
    assert Threat("weights", "input", "linf:0.1", "any") == Threat("weights", "input", "linf:0.1", "any")
    assert Threat("weights", "input", "linf:0.1", "any") != Threat("labels", "input", "linf:0.1", "any")


@pytest.mark.parametrize(("text", "rate"), [("5%", 0.05), ("0.05", 0.05), ("1/20", 0.05), ("100 %", 1.0)])
def test_a_share_reads_itself(text: str, rate: float) -> None:
    assert Share.parse(text).rate == pytest.approx(rate)
    assert Share.parse(str(Share.parse(text))) == Share.parse(text)


@pytest.mark.parametrize("text", ["", "0", "0%", "101%", "-1%", "five", "1/0", "1e999", "nan"])
def test_no_share_is_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="expected a share"):
        Share.parse(text)


def test_a_share_of_few_rows_is_at_least_one() -> None:
    assert [Share(0.05).of(many) for many in (1, 10, 100, 1000)] == [1, 1, 5, 50]
