"""Command-line words become values by annotation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import pytest
from torch import Tensor

from buckler.catalog import cards, find
from buckler.flags import BadFlag, convert, hints, read
from buckler.flags import fits as flags_fits
from buckler.threat import Ball


def method(
    model: object,
    *,
    ball: Ball,
    steps: int = 4,
    step: float | None = None,
    mode: Literal["ce", "dlr"] = "ce",
    goal: Tensor | int | None = None,
    stop: bool = True,
    rates: Sequence[float] = (),
    own: tuple[int, ...] = (),
    step_size: float = 0.1,
    pair: tuple[int, float] = (1, 0.5),
    net: Callable[..., Any] | None = None,
    clean: tuple[Tensor, Tensor] | None = None,
) -> None:
    """A method with every sort of knob."""


KINDS = hints(method)


def test_values_follow_their_annotations() -> None:
    words = (
        "--ball linf:8/255 --steps 1_000 --step none --mode dlr --goal 3 --no-stop --rates 0.1,1/4 --own=1, "
        "--step-size 1e-3 --pair 3,0.25 --net none --clean none"
    )
    values = read(words.split(" "), KINDS)
    assert str(values.pop("ball")) == "linf:0.0313725"
    assert values == {
        "steps": 1000,
        "step": None,
        "mode": "dlr",
        "goal": 3,
        "stop": False,
        "rates": (0.1, 0.25),
        "own": (1,),
        "step_size": 0.001,
        "pair": (3, 0.25),
        "net": None,
        "clean": None,
    }
    assert read(["--stop"], KINDS) == {"stop": True}
    assert read(["--stop=false"], KINDS) == {"stop": False}
    assert read([], KINDS) == {}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--stpes 3", "unknown flag --stpes: expected --steps"),
        ("--no-steps", "unknown flag --no-steps: expected --steps"),
        ("--zzz 3", "unknown flag --zzz: expected --ball, --steps"),
        ("--steps", "expected a value after --steps, a whole number, got none"),
        ("--steps 3.5", "--steps: expected a whole number, got '3.5'"),
        ("--step x", "--step: expected a number or none, got 'x'"),
        ("--mode cw", "--mode: expected ce or dlr, got 'cw'"),
        ("--ball linf", "--ball: expected a limit such as linf:8/255"),
        ("--goal three", "--goal: expected a whole number or none"),
        ("--stop=maybe", "--stop: expected true or false"),
        ("--pair 3", "--pair: expected 2 numbers with commas between them, got '3'"),
        ("--pair 3,1,2", "--pair: expected 2 numbers with commas between them, got '3,1,2'"),
        ("--pair 3.5,1", "--pair: expected a whole number, got '3.5'"),
        ("--pair 3,x", "--pair: expected a number, got 'x'"),
        ("--net theft/jbda", "--net: expected a value from Python or none, got"),
        ("--clean 1", "--clean: expected none, got '1'"),
        ("--share 5%", "unknown flag --share: expected --ball, --steps"),
        ("--rates 0.1,x", "--rates: expected a number, got 'x'"),
        ("steps 3", "expected a flag such as --ball, got 'steps'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(words: str, says: str) -> None:
    with pytest.raises(BadFlag, match=says):
        read(words.split(), KINDS)


@pytest.mark.parametrize("path", [found.path for found in cards()])
def test_every_knob_with_a_default_takes_that_default_as_text(path: str) -> None:
    """Of every method: what `buckler show` prints as a default can be typed."""
    function = find(path)
    kinds = hints(function)
    for knob in (found for found in cards() if found.path == path):
        for given in knob.knobs:
            if given.default is not None and given.default.startswith(("'", '"')):
                assert convert(given.default.strip("'\""), kinds[given.name]) == given.default.strip("'\"")
            elif given.default is not None and given.default[0].isdigit():
                assert float(str(convert(given.default, kinds[given.name]))) == eval(given.default)
            elif given.default is not None and given.default.startswith("("):
                several = convert(given.default.strip("()"), kinds[given.name])
                assert several == eval(given.default)
                assert flags_fits(several, kinds[given.name])


def test_words_of_its_own_name_what_a_flag_takes() -> None:
    kinds = {"share": Annotated[str, "a share such as 5%"]}
    with pytest.raises(BadFlag, match="expected a value after --share, a share such as 5%, got none"):
        read(["--share"], kinds)
    assert read(["--share", "5%"], kinds) == {"share": "5%"}


@pytest.mark.parametrize(
    ("value", "annotation", "fits"),
    [(3, int, True), (True, int, False), (2.5, int, False), (3, float, True), (float("nan"), float, False)]
    + [
        ("no", bool, False),
        (None, int | None, True),
        ([0.1, 0.2], tuple[float, ...], True),
        ("x", tuple[int, ...], False),
        ([], tuple[int, ...], True),
        ([1, 0.5], tuple[int, float], True),
        ([0.5, 1], tuple[int, float], False),
        ([1], tuple[int, float], False),
        ([1, 0.5, 2], tuple[int, float], False),
        ("mine:net", Callable[..., Any], False),
        (max, Callable[..., Any], True),
    ],
)
def test_values_of_a_file_fit_the_annotation_or_not(value: object, annotation: Any, fits: bool) -> None:
    assert flags_fits(value, annotation) is fits


def test_a_switch_takes_a_word_too() -> None:
    assert read(["--doubt", "false", "--rows", "3"], {"doubt": bool, "rows": int}) == {"doubt": False, "rows": 3}
