"""What a query costs: multiplications, of which hardware may skip those by zero, and an encoder that may stop early.

The encoder here leaves when two exits in a row foresee much the same features (after Zhou, Xu, Ge, McAuley, Xu and Wei,
"BERT loses patience", NeurIPS 2020, https://arxiv.org/abs/2006.04152).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import floats
from buckler.embedding import embedded
from buckler.nets import where
from buckler.target import frozen
from buckler.train import started

WITHIN = 0.05
"""By how much less than the threshold two exits are to agree."""


class Work(NamedTuple):
    """What a layer did for a batch: `products` for each of the rows that it was given, which may be several for an
    input, and the share `(rows,)` of what was in them that was not zero."""

    products: float
    busy: Tensor


@contextmanager
def worked(model: nn.Module) -> Generator[list[Work], None, None]:
    """What each convolution and linear layer of `model` does inside the block, call by call."""
    seen = list[Work]()

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        weight = cast(Tensor, layer.weight)
        places = out[0].numel() / weight.shape[0]
        seen.append(Work(places * weight.numel(), (inputs[0] != 0).flatten(1).float().mean(1)))

    layers = [part for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def products(model: nn.Module, x: Tensor) -> float:
    """How many multiplications one row of `x` `(B, ...)` takes, whatever is in it."""
    with torch.no_grad(), frozen(model), worked(model) as seen:
        model(x[:1])
    return sum(work.products * len(work.busy) for work in seen)


def busy(model: nn.Module, x: Tensor) -> Tensor:
    """The share of its multiplications that is by something else than zero, for each row of `x`: `(B,)`."""
    shares = list[Tensor]()
    with torch.no_grad(), frozen(model):
        for part in x.split(512):
            with worked(model) as seen:
                model(part)
            each = [(w.products * len(w.busy), w.busy.view(len(part), -1).mean(1)) for w in seen]
            total = sum(many for many, _ in each)
            shares.append(torch.stack([many / total * share for many, share in each]).sum(0))
    return torch.cat(shares)


class EarlyExit(nn.Module):
    """An encoder in blocks that foresees its features behind each, and leaves once two in a row agree by `threshold`.

    `most` blocks are gone through at most: a cap on what a query can cost. `costs` `(blocks,)` is what each exit has
    cost by then, heads included, where the encoder alone costs 1.
    """

    def __init__(self, blocks: nn.ModuleList, heads: nn.ModuleList, centre: Tensor, costs: Tensor) -> None:
        super().__init__()
        self.blocks, self.heads = blocks, heads
        self.centre, self.costs = nn.Buffer(centre), nn.Buffer(costs)
        self.threshold = nn.Buffer(torch.tensor(1.0))
        self.most = len(blocks)

    def foreseen(self, x: Tensor) -> Tensor:
        """The features, less their mean, that each exit foresees: `(exits, B, D)`, the last what the encoder says."""
        said = list[Tensor]()
        for block, head in zip(self.blocks, (*self.heads, None), strict=True):
            x = block(x)
            said.append(x - self.centre if head is None else head(x))
        return torch.stack(said)

    def agreement(self, x: Tensor) -> Tensor:
        """How far each exit, from the second on, agrees with the one before, as a cosine: `(exits - 2, B)`."""
        return _agreement(self.foreseen(x))

    def left(self, x: Tensor) -> Tensor:
        """Behind which block each row leaves, counted from 0: `(B,)`."""
        return self._left(self.foreseen(x))

    def _left(self, said: Tensor) -> Tensor:
        agree = _agreement(said) >= self.threshold
        last = torch.full((said.shape[1],), len(said) - 1, device=said.device)
        for index in reversed(range(len(agree))):
            last = torch.where(agree[index], index + 1, last)
        return last.clamp_max(self.most - 1)

    def spent(self, x: Tensor) -> Tensor:
        """What each row costs, where the encoder alone costs 1: `(B,)`."""
        return self.costs[self.left(x)]

    def pressure(self, x: Tensor) -> Tensor:
        """What grows with the cost, and has a slope: how far exits are from agreeing, `(B,)`."""
        return -F.relu(self.agreement(x) - (self.threshold - WITHIN)).sum(0)

    @contextmanager
    def capped(self, x: Tensor) -> Generator[None, None, None]:
        """Inside the block no query goes further than one of `x` `(N, C, H, W)` can pay for in the mean, nor stops
        before the second block."""
        before = self.most
        with torch.no_grad(), frozen(self):
            usual = float(torch.cat([self.spent(part) for part in x.split(512)]).mean())
        self.most = max(2, int((self.costs <= usual).sum()))
        try:
            yield
        finally:
            self.most = before

    def forward(self, x: Tensor) -> Tensor:
        said = self.foreseen(x)
        return said[self._left(said), torch.arange(len(x), device=x.device)] + self.centre


def _agreement(said: Tensor) -> Tensor:
    return F.cosine_similarity(said[1:-1], said[:-2], dim=2)


def in_blocks(encoder: nn.Module) -> list[nn.Module]:
    """The encoder as blocks that follow each other, the last with whatever has no weights behind it; fewer than three
    where it is no `nn.Sequential` of such."""
    if not isinstance(encoder, nn.Sequential):
        return [encoder]
    parts = list[nn.Module]()
    for child in encoder:
        within = list(child.children())
        nested = isinstance(child, nn.Sequential) and any(list(part.children()) for part in within)
        parts += within if nested else [child]
    while len(parts) > 1 and not list(parts[-1].parameters()):
        parts[-2:] = [nn.Sequential(parts[-2], parts[-1])]
    return parts


def early_exit(encoder: nn.Module, x: Tensor, *, leave: float = 0.5, ridge: float = 0.01) -> EarlyExit:
    """`encoder` with exits that foresee its features, as `x` `(N, C, H, W)` alone teaches them by ridge regression; the
    share `leave` of these rows leaves by the first exit that may. A `ValueError` for an encoder of fewer than four
    blocks."""
    blocks = in_blocks(encoder)
    if len(blocks) < 4:
        raise ValueError(
            f"expected an encoder that is an nn.Sequential of four blocks or more, got {len(blocks)}: exits stand "
            "between blocks"
        )
    x = floats(x).to(where(encoder))
    heads, costs, before, held = nn.ModuleList(), list[float](), 0.0, x
    with torch.no_grad(), frozen(encoder):
        final = embedded(encoder, x).to(x)
        centre = final.mean(0)
        for block in blocks:
            before += products(block, held)
            held = torch.cat([block(part) for part in held.split(512)])
            if len(costs) < len(blocks) - 1:
                pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()) if held.ndim == 4 else nn.Flatten()
                heads.append(nn.Sequential(pool, _regressed(pool(held), final - centre, ridge)))
                before += products(heads[-1], held)
            costs.append(before)
        made = EarlyExit(nn.ModuleList(blocks), heads, centre, x.new_tensor(costs) / products(encoder, x)).eval()
        made.threshold.fill_(float(made.agreement(x)[0].quantile(1 - leave)))
    return made


def _regressed(a: Tensor, b: Tensor, ridge: float) -> nn.Linear:
    """The linear layer that foretells `b` `(N, D)` from `a` `(N, F)`, whose columns it takes as equally wide."""
    mean, wide = a.mean(0), a.std(0).clamp_min(1e-6)
    scaled = ((a - mean) / wide).double()
    inner = scaled.T @ scaled + ridge * len(a) * torch.eye(a.shape[1], dtype=torch.double, device=a.device)
    weight = torch.linalg.solve(inner, scaled.T @ b.double()).float().T / wide
    layer = cast(nn.Linear, started(lambda: nn.Linear(a.shape[1], b.shape[1]), 0)).to(a.device)
    layer.weight.copy_(weight)
    layer.bias.copy_(-weight @ mean)
    return layer
