"""What is done for each kind of method, or for one method by its path; see `evaluate.evaluate`, which calls these.

Each takes the setting and returns the trial with evidence, estimates and checks, or a skipped one with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from buckler.encoders._pretrained import pretraining
from buckler.encoders._setting import Setting
from buckler.trial import Trial

RUNS: Mapping[str, Callable[[Setting], Trial]] = {
    "pretrain": pretraining,
}
