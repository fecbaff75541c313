"""DECREE: the smallest patch that brings all images to one point of the features; where it is small, it was put there.

Feng, Tao, Cheng, Shen, Xu, Liu, Zhang, Ma and Zhang, "Detecting backdoors in pre-trained encoders", CVPR 2023,
https://arxiv.org/abs/2303.15180.

Differs from the paper: features are compared around their mean over the clean images, because features that all point
one way are alike without a patch (`centred=False` is the paper's); the mask starts half open; the weight of its size is
controlled step by step. The statistic and its threshold are the paper's, the mask's l1 norm over that of a mask that is
open everywhere; features need a cosine of 0.9, not 0.99, which a weak backdoor reaches with large masks only. That was
chosen on small encoders of digits, so that figures of such encoders flatter it. The search can miss a backdoor by its
start: try other seeds. No guarantee: a trigger that is large, blended in, or depends on the input, is not found, and
masks of encoders that see little of their input can be small though nobody put a trigger there, so compare with a clean
encoder that was pre-trained alike.

Tags: atlas:AML.T0018.000, nist-ai-100-2:NISTAML.023, nist-ai-100-2:NISTAML.051, cwe:506.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.embedding import embedded
from buckler.kinds import Anomaly
from buckler.nets import where
from buckler.target import frozen
from buckler.train import constant, fit, portions


def decree(
    encoder: nn.Module,
    x: Tensor,
    *,
    steps: int = 250,
    batch: int = 64,
    rate: float = 0.1,
    cost: float = 1e-3,
    alike: float = 0.9,
    patience: int = 5,
    multiplier: float = 1.5,
    centred: bool = True,
    threshold: float = 0.1,
    seed: int = 0,
) -> Anomaly:
    """Search a mask and a pattern that bring clean images `x` `(N, C, H, W)`, uint8 or in [0, 1], to one point.

    In `steps` steps of Adam on `batch` images the mean cosine between their features is raised to `alike` and the
    mask's l1 norm lowered; its weight is `cost`, times `multiplier` after `patience` steps in a row that are alike, and
    divided by its power 1.5 after as many that are not. Returns as `score` `(1,)` how much of the image the smallest
    mask left uncovered, in [0, 1]; whether it covered less than `threshold`; the `mask` `(1, 1, H, W)` and `pattern`
    `(1, C, H, W)`: the trigger is `(1 - mask) * x + mask * pattern`. Where nothing brought images together the mask is
    open everywhere. A `ValueError` for what is no image, fewer than two, or no steps.
    """
    if x.ndim != 4 or len(x) < 2 or min(steps, batch - 1, patience) < 1:
        raise ValueError(
            f"expected two images or more (N, C, H, W), steps, patience and batches of two, got {tuple(x.shape)}, "
            f"{steps}, {patience} and {batch}"
        )
    device = where(encoder)
    middle = embedded(encoder, x).mean(0).to(device) if centred else torch.zeros((), device=device)
    patch = _Patch(x, seed).to(device)
    best, smallest, weight, ups, downs = None, torch.inf, cost, 0, 0

    def loss(_: nn.Module, clean: Tensor, _y: Tensor) -> Tensor:
        nonlocal best, smallest, weight, ups, downs
        points = F.normalize(encoder(patch(clean)) - middle, dim=1)
        together = ((points.sum(0) - points) * points).sum(1) / (len(points) - 1)
        mask, pattern = patch.parts()
        good, size = float(together.detach().mean()) >= alike, float(mask.detach().sum())
        if good and size < smallest:
            best, smallest = (mask.detach(), pattern.detach()), size
        ups, downs = (ups + 1) * good, (downs + 1) * (not good)
        if ups >= patience:
            weight, ups = weight * multiplier, 0
        elif downs >= patience:
            weight, downs = weight / multiplier**1.5, 0
        return weight * mask.sum() - together

    with frozen(encoder):
        epochs = steps / len(portions(len(x), batch))
        fit(patch, (x, torch.zeros(len(x))), loss=loss, epochs=epochs, batch=batch, rate=constant(rate), decay=0.0,
            optimizer="adam", seed=seed)  # fmt: skip
    mask, pattern = (torch.ones_like(part) for part in patch.parts()) if best is None else best
    covered = mask.mean().cpu()[None]
    return Anomaly(1 - covered, covered < threshold, mask[None].cpu(), pattern[None].cpu())


class _Patch(nn.Module):
    """A mask `(1, H, W)`, half open, and a pattern `(C, H, W)`, drawn, both behind tanh."""

    def __init__(self, x: Tensor, seed: int) -> None:
        super().__init__()
        draw = torch.rand(1 + x.shape[1], *x.shape[2:], generator=torch.Generator().manual_seed(seed))
        draw[0] = 0.5
        self.theta = nn.Parameter(torch.atanh(1.98 * (draw - 0.5)))

    def parts(self) -> tuple[Tensor, Tensor]:
        opened = self.theta.tanh() / 2 + 0.5
        return opened[:1], opened[1:]

    def forward(self, x: Tensor) -> Tensor:
        mask, pattern = self.parts()
        return x + mask * (pattern - x)
