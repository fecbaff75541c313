"""Hyperparameters: what kind of network a model is, and how it was trained, told from its answers.

Oh, Augustin, Fritz and Schiele, "Towards reverse-engineering black-box neural networks", ICLR 2018,
https://arxiv.org/abs/1711.01768 (kennen-o).

A thief trains networks made in many ways on rows of their own, asks all of them the same questions, and learns from the
answers which way a network was made in.

Differs from the paper: the metamodel is a logistic regression of the logarithms of scores, or of labels, for every
trait, as suits hundreds of models instead of thousands; half of the questions are noise, where networks differ most in
their labels; width, length of training and rate vary too and are not guessed; and no model is left out for learning
little. Inputs are not crafted (kennen-i and kennen-io).

Tags: atlas:AML.T0024.002, atlas:AML.T0040, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor

from buckler.kinds import Guessed
from buckler.target import ScoreOracle
from buckler.theft._making import WAYS, Metamodel


def hyperparameters(
    oracle: ScoreOracle, x: Tensor, *, metamodel: Metamodel, traits: tuple[str, ...] = tuple(WAYS)
) -> Guessed:
    """Score every value of each of `traits` by how probably the oracle's model was made with it.

    `x` `(Q, ...)` in [0, 1] are the questions that the `metamodel` learnt the answers to, scores or labels; logits are
    taken as the scores that they make. Returns log-probabilities by trait, each `(V,)`, in the order of the trait's
    values. Raises `ValueError` for traits that it did not learn, and for answers of another shape.
    """
    if missing := [name for name in traits if name not in metamodel.learners]:
        raise ValueError(f"expected traits out of {', '.join(metamodel.learners)}, got {missing[0]!r}")
    answers = oracle(x)
    seen = metamodel.told((answers.softmax(1) if oracle.reveals == "logits" else answers)[None])
    return {
        name: torch.from_numpy(cast(np.ndarray, metamodel.learners[name].predict_log_proba(seen))[0]) for name in traits
    }
