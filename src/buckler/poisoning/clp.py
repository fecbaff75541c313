"""Channel Lipschitz pruning: switch off the channels that answer most sharply to their input, without any data.

Zheng, Tang, Li and Liu, "Data-free backdoor removal based on channel Lipschitzness", ECCV 2022,
https://arxiv.org/abs/2208.03111; details of the authors' repository,
https://github.com/rkteddy/channel-Lipschitzness-based-pruning.

Differs from the paper: which convolution a batch norm follows is read from the graph; the authors' code, and
BackdoorBench's, take the convolution written down last, which is another one where batch norm comes first. The variance
has the batch norm's epsilon added, as in inference. Among ten channels or fewer none can lie three deviations above the
mean, so that narrow layers are left alone at the default. No guarantee: a backdoor spread over many channels, or over
layers without batch norm, stays.

Tags: atlas:AML.T0018.000, nist-ai-100-2:NISTAML.023, owasp-ml:ML10, cwe:506.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from buckler.data import Rows
from buckler.graph import convolved, traced
from buckler.kinds import Repaired


def clp(model: nn.Module, clean: Rows, *, deviations: float = 3.0) -> Repaired:
    """Silence, in a copy of `model`, every channel whose Lipschitz bound is an outlier of its layer; return the copy.

    A channel is a filter with the batch norm that follows it; its bound is the largest singular value of the filter as
    a matrix (input channels by positions) times the batch norm's factor. Those more than `deviations` standard
    deviations above their layer's mean get a weight and a bias of zero in the batch norm. `clean` is not looked at.
    Raises `ValueError` for a model without a convolution followed by batch norm, or that cannot be traced.
    """
    repaired = copy.deepcopy(model).eval()
    pairs = [(convolution, norm) for convolution, norm in convolved(traced(repaired)) if norm.affine]
    if not pairs:
        raise ValueError(
            "expected a model with a convolution followed by batch norm, got none: use a repair by training instead"
        )
    with torch.no_grad():
        bounds = [_bounds(convolution, norm) for convolution, norm in pairs]
        for (_, norm), bound in zip(pairs, bounds, strict=True):
            sharp = bound > bound.mean() + deviations * bound.std()
            norm.weight[sharp] = 0
            norm.bias[sharp] = 0
    return repaired


def _bounds(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """How much more than its input every channel can move: `(C,)`."""
    variance = norm.running_var
    if variance is None:
        raise ValueError("expected batch norm with running statistics, got one without: they set a channel's scale")
    spectral = torch.linalg.matrix_norm(convolution.weight.flatten(2), 2)
    return spectral * (norm.weight.abs() / (variance + norm.eps).sqrt())
