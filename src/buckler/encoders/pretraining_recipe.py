"""Pre-training recipe: how an encoder was pre-trained, and what kind of network it is, told from its features.

Oh, Augustin, Fritz and Schiele, "Towards reverse-engineering black-box neural networks", ICLR 2018,
https://arxiv.org/abs/1711.01768, of encoders, whose pre-training is named as worth stealing by Jia, Liu and Gong, 2021,
https://arxiv.org/abs/2110.15444.

A thief pre-trains small encoders in many ways on rows of their own, asks all of them about the same images, mirrored,
cropped, in other light and with noise, and learns from the answers which way an encoder was made in. How many features
there are needs no learning: every answer shows it.

Differs from the paper: features have axes in any order, and more or fewer of them, so what is learnt from are summaries
that do not change with either (see `_summaries`); the metamodel is a logistic regression for every trait.

Tags: atlas:AML.T0024.002, atlas:AML.T0040, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

from torch import Tensor

from buckler.embedding import embedded
from buckler.encoders._making import WAYS, Metamodel
from buckler.encoders._summaries import summary
from buckler.kinds import Guessed
from buckler.target import FeatureOracle


def pretraining_recipe(
    oracle: FeatureOracle, x: Tensor, *, metamodel: Metamodel, traits: tuple[str, ...] = tuple(WAYS)
) -> Guessed:
    """Score every value of each of `traits` by how probably the oracle's encoder was made with it.

    `x` `(Q, C, H, W)` in [0, 1] are the questions that the `metamodel` learnt the answers to, in their order. Returns
    log-probabilities by trait, each `(V,)`, in the order of the trait's values. Raises `ValueError` for traits that it
    did not learn, and for other questions than it knows.
    """
    if missing := [name for name in traits if name not in metamodel.learners]:
        raise ValueError(f"expected traits out of {', '.join(metamodel.learners)}, got {missing[0]!r}")
    if len(x) != metamodel.questions:
        raise ValueError(f"expected the {metamodel.questions} questions that the metamodel learnt from, got {len(x)}")
    seen = summary(embedded(oracle, x))[None]
    return {name: metamodel.told(seen, name)[0] for name in traits}
