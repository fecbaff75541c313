"""Deep leakage: the rows of a federated client, rebuilt by matching its gradient (DLG, iDLG).

Zhu, Liu and Han, "Deep leakage from gradients", NeurIPS 2019, https://arxiv.org/abs/1906.08935; with `labels` read off
the last layer's gradient first: Zhao, Mopuri and Bilen, "iDLG: improved deep leakage from gradients", 2020,
https://arxiv.org/abs/2001.02610.

Differs from the papers: L-BFGS with the bounds of [0, 1] (Byrd et al., SIAM J. Sci. Comput. 16, 1995), on the squared
distance relative to the squared length of what was sent, which a trained model makes small. The papers' network has
sigmoids; where activations are ReLUs the distance has kinks and `gradient_inversion` goes further.

Tags: nist-ai-100-2:NISTAML.032, owasp-ml:ML03.
"""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from buckler.kinds import Reconstructed
from buckler.privacy._gradients import Gradients, checked, gradients, size, told_labels
from buckler.target import frozen


def deep_leakage(
    model: nn.Module,
    update: Gradients,
    *,
    shape: tuple[int, ...],
    batch: int = 1,
    labels: Literal["inferred", "sought"] = "inferred",
    steps: int = 300,
    restarts: int = 1,
    seed: int = 0,
) -> Reconstructed:
    """Find `batch` rows of `shape` whose mean loss has the gradient `update`.

    `update` holds a gradient for every parameter of `model`. Labels are `inferred` from the last layer's gradient
    (iDLG), or `sought` together with the rows, as probabilities (DLG). L-BFGS takes at most `steps` iterations from
    noise drawn by `seed`; of `restarts` the one that comes nearest is returned, rows `(B, *shape)` with labels `(B,)`.
    Raises `ValueError` for an update of another model, one that is 0 or not finite, or knobs out of range.
    """
    checked(model, update, shape, batch)
    if min(steps, restarts) < 1:
        raise ValueError(f"expected steps and restarts above 0, got {steps} and {restarts}")
    length = float(size(update))
    if not 0 < length < float("inf"):
        raise ValueError(f"expected an update of finite length above 0, got {length}: it tells nothing")
    draw = torch.Generator().manual_seed(seed)
    where = update[0].device
    known = told_labels(model, update, batch) if labels == "inferred" else None
    with frozen(model):
        many = model(torch.zeros(1, *shape, device=where)).shape[1] if known is None else 0
        pixels = batch * int(np.prod(shape))

        def parts(flat: Tensor) -> tuple[Tensor, Tensor]:
            """Rows, and labels or probabilities, out of one vector."""
            x = flat[:pixels].view(batch, *shape)
            return x, flat[pixels:].view(batch, many).softmax(1) if known is None else known

        def distance(point: np.ndarray) -> tuple[float, np.ndarray]:
            flat = torch.from_numpy(point).to(where, torch.float32).requires_grad_()
            found = gradients(model, *parts(flat), differentiable=True)
            apart = (size(tuple(own - sent for own, sent in zip(found, update, strict=True))) / length).square()
            (slope,) = torch.autograd.grad(apart, flat)
            return float(apart.detach()), slope.cpu().double().nan_to_num(0).numpy()

        bounds = [(0.0, 1.0)] * pixels + [(None, None)] * (batch * many)
        best, least = torch.zeros(len(bounds)), float("inf")
        for _ in range(restarts):
            noise = torch.randn(batch * many, generator=draw, dtype=torch.double)
            start = torch.cat([torch.rand(pixels, generator=draw, dtype=torch.double), noise])
            options = {"maxiter": steps, "maxfun": 5 * steps, "maxcor": 100, "ftol": 0.0, "gtol": 0.0}
            found = minimize(distance, start.numpy(), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
            if float(found.fun) < least:
                best, least = torch.from_numpy(cast(np.ndarray, found.x)).float(), float(found.fun)
    x, y = parts(best.to(where))
    return Reconstructed(x.clamp(0, 1), y if known is not None else y.argmax(1))
