"""What is done for each kind of method; see `evaluate.evaluate`, which calls these.

Each takes the setting and returns the trial with evidence, estimates and checks, or a skipped one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from buckler.privacy._audit import audited
from buckler.privacy._guarded import guarded
from buckler.privacy._guessing import guessed
from buckler.privacy._membership import inferred
from buckler.privacy._protection import protected
from buckler.privacy._reconstruction import rebuilt
from buckler.privacy._setting import Setting
from buckler.privacy._unlearning import unlearned
from buckler.trial import Trial

RUNS: Mapping[str, Callable[[Setting], Trial]] = {
    "audit": audited,
    "infer": inferred,
    "protect": protected,
    "reconstruct": rebuilt,
    "guess": guessed,
    "guard": guarded,
    "unlearn": unlearned,
}
