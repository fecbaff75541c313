"""What is done for each kind of method; see `evaluate.evaluate`, which calls these.

Each takes the setting and returns the trial with evidence, estimates and checks, or a skipped one with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from buckler.theft._guarded import guarded
from buckler.theft._guessed import guessed
from buckler.theft._owned import owned
from buckler.theft._setting import Setting
from buckler.theft._stolen import stolen
from buckler.theft._watched import watched
from buckler.trial import Trial

RUNS: Mapping[str, Callable[[Setting], Trial]] = {
    "extract": stolen,
    "guard": guarded,
    "own": owned,
    "guess": guessed,
    "watch": watched,
}
