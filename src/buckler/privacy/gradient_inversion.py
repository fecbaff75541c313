"""Inverting Gradients: the rows of a federated client, rebuilt from the direction of its gradient.

Geiping, Bauermeister, Droege and Moeller, "Inverting gradients: how easy is it to break privacy in federated
learning?", NeurIPS 2020, https://arxiv.org/abs/2003.14053.

Differs from the paper: labels are not known but read off the last layer's gradient (see `_gradients`); fewer steps and
a smaller weight of smoothness by default, which is what small images need; inputs are in [0, 1] and the rate is in
their units. The model is taken as it answers when evaluating: a client that trains with batch norm sends statistics as
well, which are not used. What the client does to its gradients before it sends them may be given as `through`, and the
candidates' gradients then go through it too: a defence is not one because the attacker was not told of it. Rows of
which a trained model is all but certain (a loss of 1e-5) send a gradient that 32 bits have rounded, and come out
blurred.

Tags: nist-ai-100-2:NISTAML.032, owasp-ml:ML03.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from buckler.kinds import Reconstructed
from buckler.privacy._gradients import Gradients, Through, checked, gradients, size, told_labels, total_variation
from buckler.target import frozen

COOLED = (3 / 8, 5 / 8, 7 / 8)
"""After which shares of the steps the rate falls to a tenth."""


def gradient_inversion(
    model: nn.Module,
    update: Gradients,
    *,
    shape: tuple[int, ...],
    batch: int = 1,
    steps: int = 300,
    rate: float = 0.1,
    smooth: float = 1e-3,
    restarts: int = 1,
    through: Through | None = None,
    seed: int = 0,
) -> Reconstructed:
    """Find `batch` rows of `shape` whose mean loss has a gradient that points as `update` does, and that are smooth.

    `update` holds a gradient for every parameter of `model`. Adam takes `steps` on the sign of the gradient of (1 -
    cosine + `smooth` times the total variation), inside [0, 1], from noise drawn by `seed`; of `restarts` the one whose
    direction fits best is returned, rows `(B, *shape)` with labels `(B,)`. Raises `ValueError` for an update of another
    model, one that is 0 or not finite, or knobs out of range.
    """
    checked(model, update, shape, batch)
    if min(steps, restarts) < 1 or rate <= 0 or smooth < 0:
        raise ValueError("expected steps, restarts and rate above 0, and smooth of 0 or more")
    length = float(size(update))
    if not 0 < length < float("inf"):
        raise ValueError(f"expected an update of finite length above 0, got {length}: it tells nothing")
    y = told_labels(model, update, batch)
    draw = torch.Generator().manual_seed(seed)

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        """How far the direction is from the one sent, and that with the price of what is not smooth."""
        found = gradients(model, x, y, differentiable=True)
        found = found if through is None else through(found)
        along = torch.stack([(sent * own).sum() for sent, own in zip(update, found, strict=True)]).sum()
        apart = 1 - along / (length * size(found)).clamp_min(1e-30)
        return apart, apart + smooth * total_variation(x)

    best, least = torch.zeros(batch, *shape), float("inf")
    with frozen(model):
        for _ in range(restarts):
            x = torch.rand(batch, *shape, generator=draw).to(y.device)
            slope, square = torch.zeros_like(x), torch.zeros_like(x)
            for count in range(1, steps + 1):
                x = x.detach().requires_grad_()
                (down,) = torch.autograd.grad(objective(x)[1], x)
                slope, square = slope.lerp(down.sign(), 0.1), square.lerp(down.sign().square(), 0.001)
                pace = rate * 0.1 ** sum(count > steps * share for share in COOLED)
                move = slope / (1 - 0.9**count) / ((square / (1 - 0.999**count)).sqrt() + 1e-8)
                x = (x.detach() - pace * move).clamp(0, 1)
            apart = float(objective(x)[0].detach())
            if apart < least:
                best, least = x, apart
    return Reconstructed(best, y)
