"""Entangled watermarks: rows with a secret pattern that share the features of another class.

Jia, Choquette-Choo, Chandrasekaran and Papernot, "Entangled watermarks as a defense against model extraction", USENIX
Security 2021, https://arxiv.org/abs/2002.12200.

Rows of a source class that carry a pattern are learnt as rows of a target class, while the soft nearest neighbour loss
(Frosst, Papernot and Hinton, ICML 2019, https://arxiv.org/abs/1902.01889) is raised between them and rows of the target
class. What tells the two apart then cannot be learnt without the pattern, so that a copy made from answers to ordinary
inputs takes it over.

The owner claims a suspect by how much more the pattern moves its answers to the target than patterns drawn in the same
way do. Pattern and target were drawn uniformly, so for any model that does not depend on the draw, each pair of one of
the patterns and one of the classes could as well have been the secret: the rank of the secret pair among all pairs is
an exact p-value, never below one in as many pairs as there are.

Differs from the paper: the pattern is a share of the pixels at places drawn by chance, not a square placed by
gradients, and target and pattern are secret, without which no p-value would be exact (the paper's test takes a rate of
false positives as known); rows with other patterns keep their label, so that the pattern is learnt and not that there
is one; entanglement is of the last layer's inputs, at a temperature that is their mean distance.

No guarantee that the mark survives: a copy made with few or narrow questions takes over less of it.

Tags: atlas:AML.T0048.004, atlas:AML.T0024.002, nist-ai-100-2:NISTAML.031, owasp-ml:ML05.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.claims import rank, secret
from buckler.data import Rows, floats
from buckler.kinds import Claim, Owned
from buckler.nets import inputs_of, last_linear
from buckler.target import Oracle
from buckler.theft._claims import answers, classes_of
from buckler.train import fit, started

SHOWN = 16
"""How many rows of the source class a claim shows with every pattern."""


def entangled(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    source: int = 0,
    pixels: float = 0.2,
    patterns: int = 500,
    per_batch: int = 16,
    factor: float = 0.1,
    epochs: float = 15,
    batch: int = 64,
    rate: float = 0.1,
    seed: int = 0,
) -> Owned:
    """Train a network on `data` and on rows of class `source` with a secret pattern, entangled with a secret class.

    `data` is `x` `(N, ...)`, float in [0, 1] or uint8, and `y` `(N,)`. A pattern sets a share `pixels` of the numbers
    of a row to 0 or 1. Every batch carries `per_batch` rows with the pattern, as many with other patterns, and as many
    of the target class; `factor` weighs their entanglement. `net` builds an untrained network. The claim compares the
    secret pattern with others, `patterns` in all, and asks for scores where they can be had, else for labels. Raises
    `ValueError` for fewer than three classes, a source that is none of them, or numbers out of range.
    """
    x, y = data
    classes = classes_of(data, "theft/entangled")
    if classes < 3 or not 0 <= source < classes or not bool((y == source).any()):
        raise ValueError(f"expected rows of three classes or more and of the source class, got {classes} and {source}")
    if not 0 < pixels <= 1 or patterns < 2 or per_batch < 2 or factor < 0:
        raise ValueError(
            "expected pixels above 0 and at most 1, patterns and per_batch of 2 or more and a factor of 0 or more, got "
            f"{pixels}, {patterns}, {per_batch} and {factor}"
        )
    targets = torch.tensor([label for label in range(classes) if label != source])
    draw = secret(seed, "entangled")
    drawn = _patterns(patterns, x.shape[1:], pixels, draw)
    place = int(torch.randint(len(targets), (), generator=draw))
    target = int(targets[place])
    hosts, theirs = ((y == label).nonzero().squeeze(1) for label in (source, target))
    if len(theirs) == 0:
        raise ValueError(f"expected rows of every class, got none of class {target}")
    labels = torch.tensor([target, source, target]).repeat_interleave(per_batch)

    def beside(model: nn.Module, some: Tensor, own: Tensor) -> Tensor:
        rows = torch.cat([_picked(hosts, 2 * per_batch), _picked(theirs, per_batch)]).to(x.device)
        extra = floats(x[rows]).to(some)
        pattern = torch.cat([drawn[:1].expand(per_batch, *x.shape[1:]), _patterns(per_batch, x.shape[1:], pixels)])
        extra[: 2 * per_batch] = _carrying(extra[: 2 * per_batch], pattern.to(some))
        with inputs_of(last_linear(model)) as seen:
            logits = model(torch.cat([some, extra]))
        features = seen[0].flatten(1)[len(some) :]
        mixture = _soft_nearest_neighbours(features[:per_batch], features[2 * per_batch :])
        return F.cross_entropy(logits, torch.cat([own, labels.to(own)]), reduction="none") - factor * mixture

    shown = floats(x[hosts[:SHOWN]]).cpu()

    def claim(suspect: nn.Module | Oracle) -> Claim:
        asked = torch.cat([_carrying(shown, pattern) for pattern in drawn])
        hears = "labels" if isinstance(suspect, Oracle) and suspect.reveals == "labels" else "scores"
        said, queries = answers(suspect, asked, hears)
        said = F.one_hot(said, classes) if hears == "labels" else said
        pull = said.double().view(patterns, len(shown), -1).mean(1)[:, targets]
        pull = pull - pull.mean(0)
        others = torch.ones_like(pull, dtype=torch.bool)
        others[0, place] = False
        return Claim(rank(float(pull[0, place]), pull[others]), queries)

    model = started(net, seed).to(x.device)
    fit(model, data, loss=beside, epochs=epochs, batch=batch, rate=rate, seed=seed)
    return Owned(claim, model=model)


def _picked(rows: Tensor, many: int) -> Tensor:
    return rows[torch.randint(len(rows), (many,))]


def _patterns(many: int, shape: torch.Size, pixels: float, draw: torch.Generator | None = None) -> Tensor:
    """`(many, *shape)`: 0 or 1 at a share of `pixels` places drawn by chance, NaN where a row stays as it is."""
    size = shape.numel()
    places = torch.rand(many, size, generator=draw).topk(max(1, round(pixels * size)), dim=1).indices
    values = torch.randint(2, places.shape, generator=draw).float()
    return torch.full((many, size), torch.nan).scatter(1, places, values).view(many, *shape)


def _carrying(x: Tensor, pattern: Tensor) -> Tensor:
    """Rows `(B, ...)` with a pattern, one for all or one for each."""
    return torch.where(pattern.isnan(), x, pattern)


def _soft_nearest_neighbours(one: Tensor, other: Tensor) -> Tensor:
    """How mixed two groups `(M, D)` and `(N, D)` are: minus the mean log chance that a row's neighbour is of its own.

    A neighbour is drawn by exp(-squared distance / temperature), the temperature being the mean squared distance.
    """
    rows = torch.cat([one, other])
    group = torch.arange(len(rows), device=rows.device) < len(one)
    far = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
    near = torch.exp(-far / far.detach().mean().clamp_min(1e-12)) * (1 - torch.eye(len(rows), device=rows.device))
    own = (near * (group[:, None] == group)).sum(1)
    return -(own / near.sum(1).clamp_min(1e-12)).clamp_min(0.5).log().mean()
