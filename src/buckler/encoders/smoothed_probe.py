"""Randomized smoothing of what stands above an encoder: a certificate in l2 for a classifier learnt from features.

Cohen, Rosenfeld and Kolter, "Certified adversarial robustness via randomized smoothing", ICML 2019,
https://arxiv.org/abs/1902.02918; that a pre-trained network need not be trained anew for it: Salman, Sun, Yang, Kapoor
and Kolter, "Denoised smoothing", NeurIPS 2020, https://arxiv.org/abs/2003.01908.

Guaranteed: what `evasion/randomized_smoothing` guarantees, of the classifier that votes under noise. Nothing is said of
the encoder, nor of another classifier above it.

Differs from the papers: instead of a denoiser before the encoder, or training it on noise, only a linear probe learns
from the features of noisy inputs; 1,000 draws by default.

Tags: atlas:AML.M0003, nist-ai-100-2:NISTAML.022, owasp-ml:ML01, cwe:1039.
"""

from __future__ import annotations

from torch import Tensor, nn

from buckler.catalog import find
from buckler.data import Rows
from buckler.encoders._smooth import noisy_probe
from buckler.kinds import Certificate


def smoothed_probe(
    encoder: nn.Module,
    x: Tensor,
    *,
    data: Rows,
    sigma: float = 0.25,
    copies: int = 4,
    selection: int = 100,
    samples: int = 1000,
    alpha: float = 0.001,
    seed: int = 0,
) -> Certificate:
    """Certify every row of `x` `(B, ...)`, in [0, 1], for the vote of a probe that learnt from the labels of `data`.

    The probe sees `copies` of each row under Gaussian noise of `sigma`, as the vote does; `selection`, `samples` and
    `alpha` are those of the certificate. Returns labels `(B,)`, `ABSTAIN` where nothing is proven, and l2 radii
    `(B,)`. A `ValueError` for knobs out of range.
    """
    if copies < 1:
        raise ValueError(f"expected at least one noisy copy of each row to learn from, got {copies}")
    model = noisy_probe(encoder, data, classes=int(data[1].max()) + 1, sigma=sigma, copies=copies, seed=seed)
    certify = find("evasion/randomized_smoothing")
    return certify(model, x, sigma=sigma, selection=selection, samples=samples, alpha=alpha, seed=seed)
