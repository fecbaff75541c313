"""Gradients of which no row decides much: clipped row by row, summed, and hidden in noise.

The rows' norms are Opacus' (Yousefpour et al., 2021, https://arxiv.org/abs/2109.12298), by ghost clipping (Li, Tramer,
Liang and Hashimoto, ICLR 2022, https://arxiv.org/abs/2110.05679): a first pass backwards gives every row's norm, and a
second one the gradient of losses that are weighted by what clipping leaves of each.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from buckler.accountant import needed
from buckler.train import Filled, LossPerRow, cross_entropy

NORMED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
CHANCE = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
Measured = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Private:
    """Gradients for `fit`: each row's at most `clip` long, summed, with normal noise of `noise` times `clip`, divided
    by how many rows a batch is expected to have, whatever it has. A gradient that is not finite counts as 0; where
    none is finite training has diverged, and the loss is NaN.
    """

    clip: float
    noise: float
    loss: LossPerRow = cross_entropy
    ghost: bool = True
    """Whether a layer's norms may be had without its gradients, where Opacus knows how; see `measurable`."""

    @contextmanager
    def filling(self, model: nn.Module, batch: int) -> Generator[Filled, None, None]:
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        with hooked(model, self.loss, ghost=self.ghost) as measured:

            def fill(x: Tensor, y: Tensor) -> Tensor:
                mean = self._summed(measured, x, y)
                for weight in weights:
                    noise = self.noise * self.clip * torch.randn_like(weight)
                    weight.grad = (noise if weight.grad is None else noise + weight.grad) / batch
                return mean

            yield fill

    def _summed(self, measured: Measured, x: Tensor, y: Tensor) -> Tensor:
        """Leaves the sum of the rows' clipped gradients in the weights; their mean loss, 0 for no rows."""
        if not len(x):
            return torch.zeros(())
        losses, norms = measured(x, y)
        sound = norms.isfinite()
        if not bool(sound.any()):
            return torch.full((), torch.nan)
        if not bool(sound.all()):
            return self._summed(measured, x[sound], y[sound])
        (losses * (self.clip / norms.clamp_min(self.clip))).sum().backward()
        return losses.detach().mean()


def apart(seed: int) -> int:
    """The seed of who is drawn and of noise, another than that of the weights to begin with: the same would draw the
    same numbers, and the weights would say who was in the first batch, and what noise hid them."""
    return int.from_bytes(hashlib.sha256(f"noise {seed}".encode()).digest()[:7], "big")


@contextmanager
def hooked(model: nn.Module, loss: LossPerRow, *, ghost: bool) -> Generator[Measured, None, None]:
    """Lends `model` Opacus' hooks, for a function of `x` and `y`: losses and their gradients' norms, each `(B,)`."""
    needed("opacus", "opacus")
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleHooksFastGradientClipping

    owners = [vars(owner) for owner in (*model.modules(), *model.parameters())]
    kept = [set(own) for own in owners]
    hooks = GradSampleHooksFastGradientClipping(model, loss_reduction="sum", use_ghost_clipping=ghost)

    def measured(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        hooks.enable_hooks()
        losses = loss(model, x, y)
        losses.sum().backward(retain_graph=True)
        hooks.disable_hooks()
        model.zero_grad(set_to_none=True)
        norms = [vars(weight).pop("_norm_sample", None) for weight in model.parameters()]
        return losses, torch.stack([norm for norm in norms if norm is not None]).norm(dim=0)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        try:
            yield measured
        finally:
            hooks.remove_hooks()
            for own, names in zip(owners, kept, strict=True):
                for name in set(own) - names:
                    del own[name]


def rowwise(model: nn.Module) -> nn.Module:
    """`model`, whose answer to a row is to depend on no other: batch norm becomes group norm, of four channels each
    where they divide, and operations in place are done out of place, as Opacus needs it."""
    for parent in list(model.modules()):
        for name, part in parent.named_children():
            if isinstance(part, NORMED):
                many = part.num_features
                groups = 1 if isinstance(part, nn.BatchNorm1d) or many % 4 else many // 4
                made = nn.GroupNorm(groups, many, affine=part.affine)
                setattr(parent, name, made.to(part.weight) if part.affine else made)
        if "inplace" in vars(parent):
            vars(parent)["inplace"] = False
    return model.train()


def measurable(model: nn.Module, x: Tensor, loss: LossPerRow = cross_entropy) -> bool:
    """Whether ghost clipping, else plain Opacus, knows the gradients of `model`: tried on two rows of noise like `x`,
    without dropout.

    A `ValueError` where neither gives the norms that each of two rows has by itself, and where answers change by
    chance, or buffers by what is asked: they would be released without noise.
    """
    where, draw = next(model.parameters()).device, torch.Generator().manual_seed(0)
    x, y = torch.rand(2, *x.shape[1:], generator=draw).to(where), torch.zeros(2, dtype=torch.long, device=where)
    wrong = "another norm than it has alone"
    before = [kept.clone() for kept in model.buffers()]
    for part in model.modules():
        if isinstance(part, CHANCE):
            part.eval()
    with torch.random.fork_rng():
        alone = torch.cat([_norm(model, loss(model, x[row, None], y[:1]).sum()) for row in range(2)])
        says = "" if torch.allclose(loss(model, x, y), loss(model, x, y)) else "answers that change by chance"
        if not all(map(torch.equal, before, model.buffers())):
            says = "buffers that change with the rows"
        for ghost in () if says else (True, False):
            try:
                with hooked(model, loss, ghost=ghost) as measured:
                    _, norms = measured(x, y)
            except (RuntimeError, NotImplementedError, ValueError, IndexError) as error:
                wrong = str(error).partition("\n")[0]
                continue
            if norms.shape == alone.shape and bool(torch.allclose(norms, alone, rtol=1e-3)):
                model.train()
                return ghost
    raise ValueError(
        f"expected a network whose answer to a row depends on no other row and whose layers Opacus knows, got "
        f"{says or wrong}: give the layers and dropout as modules, without batch statistics and operations in place"
    )


def _norm(model: nn.Module, value: Tensor) -> Tensor:
    """Of the gradient of one number, `(1,)`, by plain means."""
    value.backward()
    grads = [weight.grad for weight in model.parameters() if weight.grad is not None]
    model.zero_grad(set_to_none=True)
    return torch.stack([grad.norm() for grad in grads]).norm()[None]
