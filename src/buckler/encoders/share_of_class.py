"""Share of class: how many of the pre-training images showed a class, told from the features of a few others.

Ateniese, Mancini, Spognardi, Villani, Vitali and Felici, "Hacking smart machines with smarter ones: how to extract
meaningful data from machine learning classifiers", Int. J. Security and Networks 10, 2015,
https://arxiv.org/abs/1306.4447, of encoders.

An encoder that has seen few images of a class keeps them less together than one that has seen many.

Differs from the paper: the meta-classifier looks at how alike the features of fixed images are to each other, not at
parameters, because the axes of features are in any order; it is a logistic regression.

Tags: atlas:AML.T0024, nist-ai-100-2:NISTAML.034.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from buckler.embedding import embedded
from buckler.encoders._summaries import Worlds, alike
from buckler.kinds import Guessed
from buckler.target import FeatureOracle


def share_of_class(
    oracle: FeatureOracle,
    x: Tensor,
    *,
    worlds: Worlds,
    label: int = 0,
    shares: tuple[float, ...] = (0.02, 0.25),
    strength: float = 1e-2,
) -> Guessed:
    """Score every one of `shares` by how probably class `label` had it in the rows that the oracle learnt from.

    `x` `(Q, C, H, W)` in [0, 1] are the questions, and `worlds` what the adversary's own encoders answered to them, of
    which it knows the share. `strength` is the inverse of the meta-classifier's regularisation. Returns `share` `(V,)`,
    log-probabilities. Raises `ValueError` for encoders of another question.
    """
    worlds.fit(x, label, shares)
    learner = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    learner.fit(worlds.seen.double().numpy(), worlds.which.numpy())
    seen = alike(embedded(oracle, x)).double().numpy()
    return {"share": torch.from_numpy(np.asarray(learner.predict_log_proba(seen[None]))[0])}
