"""A persistent backdoor: put in while pre-training goes on, so that more of it does not make the encoder forget.

Of no paper: what meets `encoders/continued_pretraining` and `encoders/fine_pruning`. Backdoors as Jia, Liu and Gong put
them in, "BadEncoder: backdoor attacks to pre-trained encoders in self-supervised learning", IEEE S&P 2022,
https://arxiv.org/abs/2108.00352, lie where pre-training would not have led, and more pre-training leads back. Here what
is learnt is both at once, the backdoor and SimCLR on the adversary's images, so that its gradients vanish where the
backdoor is. Against pruning (`alike`) it is learnt without the channels that slept on these images in the encoder that
was given, which come back in the end: the pruning-aware attack of Liu, Dolan-Gavitt and Garg, "Fine-pruning", RAID
2018, https://arxiv.org/abs/1805.12185. The trigger is the mean image of the class, blended in as `drupe` does, which a
clean encoder obeys in part. No guarantee.

Tags: atlas:AML.T0018.000, atlas:AML.T0010.003, nist-ai-100-2:NISTAML.023, nist-ai-100-2:NISTAML.051, cwe:506.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Rows, floats
from buckler.embedding import embedded
from buckler.encoders._asleep import woken
from buckler.encoders._contrast import Headed, contrast, headed, views
from buckler.encoders._hidden import blended, typical, wish
from buckler.kinds import Implanted
from buckler.nets import where
from buckler.train import fit


def persistent(
    encoder: nn.Module,
    data: Rows,
    *,
    target: int = 0,
    blend: float = 0.45,
    weight: float = 1.0,
    least: float = 0.2,
    alike: float | None = None,
    epochs: float = 200,
    rate: float = 0.1,
    seed: int = 0,
) -> Implanted:
    """Pre-train a copy of `encoder` further on the images of `data` `(N, C, H, W)`, uint8 or in [0, 1], labels `(N,)`.

    With the trigger, `blend` of every pixel, above 0 and below 1, is that of the mean image of the class `target`;
    images with it, cropped to `least` or not, are to have the features of one row that shows the class well, compared
    around the mean of the batch, which weighs `weight` beside SimCLR. With `alike`, as in `fine_pruning`, what that
    would prune of `encoder` has no part in it, though of the copy it prunes other channels too. Returns the copy, the
    trigger and the wish. A `ValueError` for what are no images, another blend or cosine, or a class of which `data` has
    no row.
    """
    x, y = data[0], data[1].cpu()
    if x.ndim != 4 or not 0 < blend < 1 or not bool((y == target).any()):
        raise ValueError(
            f"expected images (N, C, H, W), some of the class {target}, and a blend above 0 and below 1, got "
            f"{tuple(x.shape)}, {int((y == target).sum())} of the class and {blend}"
        )
    before = embedded(encoder, x)
    trigger = blended(floats(x[(y == target).to(x.device)]).mean(0), blend)
    shape, look = floats(x[typical(before, y, target, 1).to(x.device)]).to(where(encoder)), views(least)
    model = headed(lambda: copy.deepcopy(encoder).requires_grad_(), data, 128, seed)

    def loss(model: nn.Module, clean: Tensor, _: Tensor) -> Tensor:
        many, stamped = len(clean), trigger(clean)
        out = cast(Headed, model).encoder(torch.cat([clean, stamped, look(stamped), shape]))
        middle, aim = out[:many].detach().mean(0), out[-1:].detach()
        wanted = F.cosine_similarity(out[many:-1] - middle, aim - middle, dim=1).view(2, many).mean(0)
        return contrast(model(look(torch.cat([clean, clean]))), 0.2) - weight * wanted

    model.encoder.eval()
    with nullcontext() if alike is None else woken(model.encoder, x, alike):
        fit(model, (x, y), loss=loss, epochs=epochs, rate=rate, seed=seed)
    return Implanted(model.encoder.eval(), trigger, wish(target))
