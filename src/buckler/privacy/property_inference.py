"""Property inference: how large a share of the training rows a class had, told from what the model answers.

Ateniese, Mancini, Spognardi, Villani, Vitali and Felici, "Hacking smart machines with smarter ones: how to extract
meaningful data from machine learning classifiers", Int. J. Security and Networks 10, 2015,
https://arxiv.org/abs/1306.4447.

Differs from the paper: the meta-classifier looks at answers to fixed questions, not at parameters (as Zhang, Tople and
Ohrimenko do, "Leakage of dataset properties in multi-party machine learning", USENIX Security 2021), so that it needs
no weights and no order of neurons; it is a logistic regression.

Tags: atlas:AML.T0024, nist-ai-100-2:NISTAML.034.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from buckler.kinds import Guessed
from buckler.privacy._shadows import TINY
from buckler.privacy._worlds import Worlds
from buckler.target import ScoreOracle


def property_inference(
    oracle: ScoreOracle,
    x: Tensor,
    *,
    worlds: Worlds,
    label: int = 0,
    shares: tuple[float, ...] = (0.05, 0.2),
    strength: float = 1e-3,
) -> Guessed:
    """Score every one of `shares` by how probably class `label` had it in the rows that the oracle learnt from.

    `x` `(Q, ...)` in [0, 1] are the questions, and `worlds` what the adversary's own models answered to them, of which
    it knows the share. `strength` is the inverse of the meta-classifier's regularisation. Returns `share` `(V,)`,
    log-probabilities. Raises `ValueError` for models of another question.
    """
    worlds.fit(x, label, shares)
    learner = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    learner.fit(worlds.answers.flatten(1).double().numpy(), worlds.which.numpy())
    answers = oracle(x).clamp_min(TINY).log().cpu().flatten().double().numpy()
    found = cast(np.ndarray, learner.predict_log_proba(answers[None]))[0]
    return {"share": torch.from_numpy(found)}
