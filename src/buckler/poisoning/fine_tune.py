"""Fine-tuning: go on training on clean rows, and let the backdoor be forgotten.

Liu, Xie and Srivastava, "Neural trojans", ICCD 2017, https://arxiv.org/abs/1710.00942; the usual control of every
other repair.

Differs from the paper: one peak of the learning rate instead of a constant one. No guarantee: what clean rows do not
exercise is not changed.

Tags: atlas:AML.T0018.000, nist-ai-100-2:NISTAML.023, owasp-ml:ML10, cwe:506.
"""

from __future__ import annotations

import copy

from torch import nn

from buckler.data import Rows, raw
from buckler.kinds import Repaired
from buckler.poisoning._look import outputs
from buckler.poisoning._touch import classes
from buckler.train import fit


def fine_tune(
    model: nn.Module, clean: Rows, *, epochs: float = 20, batch: int = 128, rate: float = 0.01, seed: int = 0
) -> Repaired:
    """Train a copy of `model` on `clean` rows `x` `(N, ...)`, `y` `(N,)` with cross-entropy; return it, evaluating.

    Raises `ValueError` for rows of one class, or labels that the model does not have.
    """
    rows = raw(clean)
    classes(rows[1])
    outputs(model, rows)
    return fit(copy.deepcopy(model), rows, epochs=epochs, batch=batch, rate=rate, seed=seed)
