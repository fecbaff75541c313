"""Features summed up so that encoders can be compared whose features have other axes, or are not equally many."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from buckler.augment import cropped, jittered

SPECTRUM = 12
"""How many eigenvalues of the similarities are looked at."""
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
VIEWS = ("as they are", "mirrored", "cropped a little", "cropped much", "other light", "noise added")
"""How the images that are asked about are shown; there is noise alone besides."""


def alike(features: Tensor) -> Tensor:
    """The cosine of every two of Q features `(Q, D)`: `(Q (Q - 1) / 2,)`, whatever their axes are."""
    unit = F.normalize(features, dim=1)
    up = torch.triu_indices(len(unit), len(unit), 1, device=unit.device)
    return (unit @ unit.T)[up[0], up[1]]


def questions(x: Tensor, many: int, seed: int) -> Tensor:
    """So many of `x` `(N, C, H, W)` in each of `VIEWS`, and as many images of noise, drawn by `seed`:
    `((len(VIEWS) + 1) Q, C, H, W)`, Q = `many`. A `ValueError` where there are fewer rows."""
    if len(x) < many or many < 4:
        raise ValueError(f"expected at least 4 images to ask about, and as many rows, got {many} of {len(x)}")
    x, device = x[:many], [x.device] if x.is_cuda else []
    with torch.random.fork_rng(devices=device):
        torch.manual_seed(seed)
        shown = (x, x.flip(-1), cropped(0.6)(x), cropped(0.2)(x), jittered(0.4, 0.4)(x))
        noisy = (x + 0.1 * torch.randn_like(x)).clamp(0, 1)
        return torch.cat([*shown, noisy, torch.rand_like(x)])


def summary(features: Tensor) -> Tensor:
    """What is looked at of answers `((len(VIEWS) + 1) Q, D)` to `questions`: numbers that stay as they are when the
    axes are turned, or put in another order, and that there are equally many of whatever D is.

    How alike each view is to its image; how alike images are to each other; the spectrum of similarities; how long
    features are, of images, views and noise; how many are 0 or below; and how uneven the axes are.
    """
    parts = features.double().view(len(VIEWS) + 1, -1, features.shape[1])
    plain, middle = parts[0], parts[0].mean(0)
    levels = torch.tensor(LEVELS, dtype=torch.float64, device=features.device)
    found = list[Tensor]()
    for centre in (torch.zeros_like(middle), middle):
        unit = F.normalize(parts - centre, dim=2)
        found += [(unit[0] * view).sum(1).quantile(levels) for view in unit[1:]]
    found.append(alike(plain).quantile(levels))
    raw = F.normalize(plain, dim=1)
    values = [torch.linalg.eigvalsh(one @ one.T).flip(0).clamp_min(1e-12) for one in (raw, plain - middle)]
    for one in values:
        share = one / one.sum()
        kept = torch.zeros(SPECTRUM, dtype=torch.float64, device=features.device)
        kept[: len(share[:SPECTRUM])] = share[:SPECTRUM]
        found += [kept, kept.clamp_min(1e-6).log(), torch.exp(-(share * share.log()).sum())[None].log()]
    length = parts.norm(dim=2)
    found += [
        length[0].quantile(levels).clamp_min(1e-6).log(),
        (length / length[0].mean()).mean(1).clamp_min(1e-6).log(),
    ]
    found += [
        length[0].std()[None] / length[0].mean(),
        (parts == 0).double().mean((1, 2)),
        (parts < 0).double().mean((1, 2)),
    ]
    axes = plain.std(0) / plain.std(0).mean().clamp_min(1e-12)
    found += [axes.quantile(levels), (plain.mean(0) / plain.std().clamp_min(1e-12)).quantile(levels)]
    return torch.cat(found).nan_to_num(0).clamp(-1e3, 1e3).cpu()


@dataclass(frozen=True, eq=False)
class Worlds:
    """How `alike` S encoders find Q rows, `(S, Q (Q - 1) / 2)`, and which of the `shares` of class `label` was in the
    rows that each learnt from, `(S,)`."""

    seen: Tensor
    which: Tensor
    label: int
    shares: tuple[float, ...]

    def fit(self, x: Tensor, label: int, shares: tuple[float, ...]) -> None:
        """A `ValueError` unless these are of this question, and were asked about rows as many as `x` `(Q, ...)`."""
        if (self.label, self.shares) != (label, shares):
            raise ValueError(f"expected encoders of class {label} at {shares}, got {self.label} and {self.shares}")
        if self.seen.shape != (len(self.which), len(x) * (len(x) - 1) // 2):
            raise ValueError(f"expected answers to these {len(x)} rows, got {tuple(self.seen.shape)}")
