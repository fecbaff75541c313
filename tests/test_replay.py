"""Answers that were paid for are not asked for again, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from buckler import replay
from buckler.replay import replayed
from buckler.target import Oracle, QueryBudgetExceeded


class Service:
    """Says a different thing at every call, and cannot be reached at those of `down`."""

    def __init__(self, *down: int) -> None:
        self.calls, self.down = 0, down

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls in self.down:
            raise ConnectionError("the service hung up")
        return torch.stack([x[:, 0], torch.full((len(x),), float(self.calls))], 1).softmax(1)


QUESTIONS = [torch.full((3, 2), float(n)) for n in range(4)]


@pytest.mark.parametrize("reveals", ["scores", "labels"])
def test_what_was_asked_before_a_stop_is_not_asked_again(tmp_path: Path, reveals: str) -> None:
    service = Service()
    first = replayed(Oracle(service, reveals), tmp_path / "answers")  # pyright: ignore[reportArgumentType]
    heard = [first(x) for x in QUESTIONS[:3]]
    assert service.calls == 3
    again = replayed(Oracle(service, reveals), tmp_path / "answers")  # pyright: ignore[reportArgumentType]
    said = [again(x) for x in QUESTIONS]
    assert service.calls == 4
    assert again.asked == 12
    assert all(one.dtype == other.dtype and torch.equal(one, other) for one, other in zip(heard, said, strict=False))
    last = replayed(Oracle(service, reveals), tmp_path / "answers")  # pyright: ignore[reportArgumentType]
    assert torch.equal(last(QUESTIONS[0]), heard[0])


def test_another_question_gives_the_rest_up(tmp_path: Path) -> None:
    service = Service()
    first = replayed(Oracle(service), tmp_path / "answers")
    for x in QUESTIONS[:3]:
        first(x)
    other = replayed(Oracle(service), tmp_path / "answers")
    for x in (QUESTIONS[0], QUESTIONS[3], QUESTIONS[2]):
        other(x)
    assert service.calls == 5  # the third question stood in the file behind another one
    after = replayed(Oracle(service), tmp_path / "answers")
    for x in (QUESTIONS[0], QUESTIONS[3], QUESTIONS[2]):
        after(x)
    assert service.calls == 5


@pytest.mark.parametrize("cut", [1, 10, 100, 200])
def test_an_answer_that_was_half_written_is_asked_again(tmp_path: Path, cut: int) -> None:
    service = Service()
    first = replayed(Oracle(service), tmp_path / "answers")
    heard = [first(x) for x in QUESTIONS[:2]]
    whole = (tmp_path / "answers").read_bytes()
    (tmp_path / "answers").write_bytes(whole[:-cut] if cut < 200 else b"not an answer")
    again = replayed(Oracle(service), tmp_path / "answers")
    assert torch.equal(again(QUESTIONS[0]), heard[0]) == (cut < 200)
    again(QUESTIONS[1])
    assert service.calls == (3 if cut < 200 else 4)
    third = replayed(Oracle(service), tmp_path / "answers")
    for x in QUESTIONS[:2]:
        third(x)
    assert service.calls == (3 if cut < 200 else 4)


def test_one_damaged_bit_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    service = Service()
    heard = replayed(Oracle(service), path)(QUESTIONS[0])
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        before = service.calls
        again = replayed(Oracle(service), path)
        assert not torch.equal(again(QUESTIONS[0]), heard)  # the service says something else at every call
        assert service.calls == before + 1
    path.write_bytes(whole[:16] + (1 << 60).to_bytes(8, "big") + whole[24:])  # says that it is longer than any file
    replayed(Oracle(service), path)(QUESTIONS[0])
    assert service.calls == len(whole) + 2


def test_what_was_paid_for_counts_against_the_budget_of_the_oracle(tmp_path: Path) -> None:
    first = replayed(Oracle(Service(), budget=7), tmp_path / "answers")
    for x in QUESTIONS[:2]:
        first(x)
    again = replayed(Oracle(Service(), budget=7), tmp_path / "answers")
    for x in QUESTIONS[:2]:
        again(x)
    with pytest.raises(QueryBudgetExceeded, match="at most 7"):
        again(QUESTIONS[2])


def test_what_cannot_be_reached_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "PAUSES", (0.0, 0.0))
    service = Service(2, 3)
    oracle = replayed(Oracle(service), tmp_path / "answers")
    for x in QUESTIONS[:2]:
        oracle(x)
    assert service.calls == 4
    gone = replayed(Oracle(Service(1, 2, 3)), tmp_path / "others")
    with pytest.raises(ConnectionError, match="hung up"):
        gone(QUESTIONS[0])
