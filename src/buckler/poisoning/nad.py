"""Neural attention distillation: a fine-tuned copy teaches the model where to look.

Li, Lyu, Koren, Lyu, Li and Ma, "Neural attention distillation: erasing backdoor triggers from deep neural networks",
ICLR 2021, https://arxiv.org/abs/2101.05930; details of the authors' repository, https://github.com/bboylyg/NAD.

Differs from the paper: attention is compared at the last module of every spatial resolution, found by watching one
pass, so that any network with feature maps will do; with other than three of them the last weight is repeated or left
out. The distance of two attention maps is the mean over positions, as in the authors' code, not the sum. The rate rises
and falls once. Images are moved only by the `augment` given; the authors crop, flip and cut out. No guarantee: a
teacher that still has the backdoor hands it on.

Tags: atlas:AML.T0018.000, nist-ai-100-2:NISTAML.023, owasp-ml:ML10, cwe:506.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.augment import Augment
from buckler.data import Rows, floats, raw
from buckler.kinds import Repaired
from buckler.poisoning._look import outputs, where
from buckler.poisoning._touch import classes
from buckler.target import frozen
from buckler.train import cross_entropy, fit


def nad(
    model: nn.Module,
    clean: Rows,
    *,
    betas: tuple[float, ...] = (500.0, 1000.0, 1000.0),
    power: float = 2.0,
    teacher: float = 10,
    epochs: float = 20,
    batch: int = 64,
    rate: float = 0.1,
    decay: float = 1e-4,
    augment: Augment | None = None,
    seed: int = 0,
) -> Repaired:
    """Fine-tune a copy of `model` on `clean` rows `x` `(N, C, H, W)`, `y` `(N,)` towards a teacher's attention.

    The teacher is another copy, fine-tuned for `teacher` epochs; the student adds to cross-entropy, at every spatial
    resolution, the squared distance between the normalised sums over channels of activations to the `power`, weighted
    by `betas` from the first resolution to the last. Both train with the peak `rate`. Returns the student. Raises
    `ValueError` for a model without feature maps, one class, or no weight.
    """
    if not betas:
        raise ValueError("expected at least one weight for the attention maps, got none")
    x, y = raw(clean)
    classes(y)
    outputs(model, (x, y))
    stages = _stages(model, x[:2])
    guide, student = copy.deepcopy(model), copy.deepcopy(model)
    fit(guide, (x, y), epochs=teacher, batch=batch, rate=rate, decay=decay, augment=augment, seed=seed)
    weights = [betas[min(stage, len(betas) - 1)] for stage in range(len(stages))]
    with frozen(guide), _outputs(guide, stages) as theirs, _outputs(student, stages) as mine:

        def distil(moving: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
            loss = cross_entropy(moving, inputs, labels)
            with torch.no_grad():
                guide(inputs)
            for stage, weight in zip(stages, weights, strict=True):
                apart = _attention(mine[stage], power) - _attention(theirs[stage], power)
                loss = loss + weight * apart.square().mean(1)
            return loss

        return fit(student, (x, y), loss=distil, epochs=epochs, batch=batch, rate=rate, decay=decay, augment=augment,
                   seed=seed + 1)  # fmt: skip


def _attention(maps: Tensor, power: float) -> Tensor:
    """Where `maps` `(B, C, H, W)` are active: sums over channels, each row of length 1, `(B, H * W)`."""
    return F.normalize(maps.abs().pow(power).sum(1).flatten(1), dim=1, eps=1e-6)


def _stages(model: nn.Module, x: Tensor) -> list[str]:
    """The names of the modules that are last to return feature maps of each spatial size, in the order of the sizes."""
    names = [name for name, _ in model.named_modules() if name]
    last: dict[tuple[int, ...], str] = {}
    x = x.to(where(model))
    with torch.no_grad(), frozen(model), _outputs(model, names) as seen:
        model(floats(x))
    for name, out in seen.items():
        if out.ndim == 4 and out.shape[2] * out.shape[3] > 1:
            last[tuple(out.shape[2:])] = name
    if not last:
        raise ValueError("expected a model with feature maps (B, C, H, W), got none: there is no attention to distil")
    return list(last.values())


@contextmanager
def _outputs(model: nn.Module, names: list[str]) -> Generator[dict[str, Tensor], None, None]:
    """What the modules of those names returned last, inside the block, in the order in which they returned."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, out: object) -> None:
        seen.pop(name, None)
        if isinstance(out, Tensor):
            seen[name] = out

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        return lambda _module, _inputs, out: keep(name, out)

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
