"""CLIP: an image and its caption are alike, and unlike the other captions and images of the batch.

Radford, Kim, Hallacy et al., "Learning transferable visual models from natural language supervision", ICML 2021,
https://arxiv.org/abs/2103.00020.

Differs from the paper: captions are written for labels, out of a few templates and two names for each class, so that
many images of a batch have captions that mean the same; the text tower is a bag of words and two layers; batches are
small. No guarantee.

Tags: nist-ai-100-2:NISTAML.03.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from buckler.data import Rows
from buckler.encoders._pairs import paired
from buckler.kinds import Encoder


def clip(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    least: float = 0.5,
    out: int = 64,
    epochs: float = 20,
    batch: int = 128,
    rate: float = 2e-3,
    decay: float = 1e-4,
    seed: int = 0,
) -> Encoder:
    """Train the encoder `net()` and a text tower on images `(N, C, H, W)`, uint8 or in [0, 1], and captions that are
    written for their labels `(N,)`.

    Images are crops of at least the share `least`; both towers end in `out` numbers. Returns the pair, evaluating: it
    maps images to features `(B, D)`, those below its head, and its `named` tells classes by their names. A `ValueError`
    for what is no image, and for an encoder that gives no matrix.
    """
    return paired(data, net=net, least=least, out=out, epochs=epochs, batch=batch, rate=rate, decay=decay, seed=seed)
