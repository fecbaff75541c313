"""Model inversion: what a model takes its classes to look like, drawn out of its weights.

Fredrikson, Jha and Ristenpart, "Model inversion attacks that exploit confidence information and basic
countermeasures", CCS 2015, https://doi.org/10.1145/2810103.2813677.

Differs from the paper (MI-Face): the cost is the negative logarithm of the class's probability, whose gradient does not
vanish where the class is improbable; Adam takes the steps; instead of a denoising autoencoder the model is asked about
noisy copies, so that what is drawn has to survive `noise`, and total variation may be added as a price. All classes are
drawn at once, each from mid-grey. A picture shows one person's rows only where a class is a person.

Tags: atlas:AML.T0024.001, nist-ai-100-2:NISTAML.032, owasp-ml:ML03.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from buckler.kinds import Reconstructed
from buckler.privacy._gradients import total_variation
from buckler.target import frozen


def model_inversion(
    model: nn.Module,
    classes: Tensor,
    *,
    shape: tuple[int, ...],
    steps: int = 500,
    rate: float = 0.02,
    noise: float = 0.3,
    smooth: float = 0.0,
    seed: int = 0,
) -> Reconstructed:
    """Draw an input of `shape` for each of `classes` `(V,)` that `model` takes to be of that class.

    `steps` of Adam at `rate`, inside [0, 1]; `noise` is the standard deviation of what is added to the inputs that the
    model is asked about, drawn by `seed`, and `smooth` the weight of total variation. Returns `(V, *shape)` with
    `classes`. Raises `ValueError` for knobs out of range.
    """
    if steps < 1 or rate <= 0 or min(noise, smooth) < 0:
        raise ValueError("expected steps and rate above 0, and noise and smooth of 0 or more")
    x = torch.full((len(classes), *shape), 0.5, device=classes.device)
    draw = torch.Generator().manual_seed(seed)
    slope, square = torch.zeros_like(x), torch.zeros_like(x)
    with frozen(model), torch.enable_grad():
        for count in range(1, steps + 1):
            x = x.detach().requires_grad_()
            blurred = x + noise * torch.randn(x.shape, generator=draw).to(x)
            unlikely = -model(blurred).log_softmax(1).gather(1, classes[:, None]).sum()
            (down,) = torch.autograd.grad(unlikely + smooth * len(x) * total_variation(x), x)
            slope, square = slope.lerp(down, 0.1), square.lerp(down.square(), 0.001)
            move = slope / (1 - 0.9**count) / ((square / (1 - 0.999**count)).sqrt() + 1e-8)
            x = (x.detach() - rate * move).clamp(0, 1)
    return Reconstructed(x, classes)
