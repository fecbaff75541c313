"""Label smoothing: no row is to be answered with more confidence than its label is given.

Szegedy, Vanhoucke, Ioffe, Shlens and Wojna, "Rethinking the Inception architecture for computer vision", CVPR 2016,
https://arxiv.org/abs/1512.00567; compared as a defence of members by Chen, Yu and Fritz, "RelaxLoss", ICLR 2022.

Differs from the paper: none. No guarantee: it hides confidence, which a threshold on the loss looks at, and not what
differs between models with a row and without it, which shadows that are trained with it show. It can leak more than
plain training does.

Tags: atlas:AML.T0024.000, nist-ai-100-2:NISTAML.033, owasp-ml:ML04.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Rows
from buckler.kinds import Protected
from buckler.train import fit, started


def label_smoothing(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    smoothing: float = 0.1,
    epochs: float = 15,
    batch: int = 64,
    rate: float = 0.1,
    seed: int = 0,
) -> Protected:
    """Train a network on `data`, `x` `(N, ...)` and `y` `(N,)`, whose labels give `smoothing` of their weight to all
    classes alike.

    Returns it, and promises nothing. Raises `ValueError` for a smoothing outside [0, 1).
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"expected smoothing of 0 or more and below 1, got {smoothing}")

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y, reduction="none", label_smoothing=smoothing)

    model = started(net, seed)
    return Protected(fit(model, data, loss=loss, epochs=epochs, batch=batch, rate=rate, seed=seed))
