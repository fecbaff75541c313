"""Dataset inference for encoders: features of images that were learnt from lie where those of their like lie.

Dziedzic, Duan, Kaleem, Dhawan, Guan, Cattan, Boenisch and Papernot, "Dataset inference for self-supervised models",
NeurIPS 2022, https://arxiv.org/abs/2209.09024.

A mixture of normal distributions is fitted to the suspect's features of half of the owner's images, and how likely it
makes the other half is compared with images that nobody has learnt from. With a `reference`, an encoder that learnt
from neither, what it makes of the same images in the same way is taken off first: some images are likely to any.

The p-value is the rank of the true division of those two among divisions drawn by chance: exact if it was chance which
images were learnt from, and the suspect does not depend on that.

Differs from the paper: that permutation test in the place of Student's, which takes features of images that were learnt
from to be independent; a reference in the place of the owner's encoder; and few parts, because of few images.

No guarantee that an encoder that learnt from the images is claimed: the paper's images are tens of thousands, and a few
hundred seldom show it.

Tags: atlas:AML.T0024.000, nist-ai-100-2:NISTAML.033, owasp-ml:ML04.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.claims import secret, shuffled
from buckler.data import Rows, as_tensors, count
from buckler.embedding import embedded
from buckler.encoders._shadowed import beyond
from buckler.kinds import Claim, Owned
from buckler.method import held
from buckler.target import Oracle


def density_inference(
    data: Rows,
    *,
    unseen: Rows,
    reference: nn.Module | None = None,
    components: int = 20,
    seed: int = 0,
) -> Owned:
    """What the owner of the published `data` and of images `unseen` by others, both `(N, C, H, W)`, claims encoders by.

    Both are uint8 or in [0, 1], and labels are not looked at; the suspect is asked about each once. The mixture has at
    most `components` parts, and one for fifty images at most. Raises `ValueError` for fewer than sixteen images that
    were published or eight that were not, and no components; the claim, for a suspect that gives no finite features.
    """
    many = count(data)
    if many < 16 or count(unseen) < 8 or components < 1:
        raise ValueError(
            f"expected sixteen images that were published, eight that were not and a component or more, got {many}, "
            f"{count(unseen)} and {components}"
        )
    x = torch.cat([as_tensors(data)[0], as_tensors(unseen)[0]])
    order = torch.randperm(many, generator=secret(seed, "halves"))
    fitted, asked = order[: many // 2], torch.cat([order[many // 2 :], torch.arange(many, len(x))])

    def score(encoder: nn.Module | Oracle) -> Tensor:
        features = F.normalize(embedded(encoder, x), dim=1).double()
        likely = _likely(features[fitted].numpy(), features[asked].numpy(), min(components, many // 100), seed)
        return torch.from_numpy(likely)[:, None]

    usual = None if reference is None else score(reference)

    def claim(suspect: nn.Module | Oracle) -> Claim:
        found = score(held("features", suspect) if isinstance(suspect, Oracle) else suspect)
        found = found if usual is None else beyond(found, usual, torch.ones(len(asked), dtype=torch.bool))
        return Claim(shuffled(found.squeeze(1), asked < many, secret(seed, "density_inference")), len(x))

    return Owned(claim)


def _likely(fitted: np.ndarray, asked: np.ndarray, components: int, seed: int) -> np.ndarray:
    """The logarithm of how likely each of `asked` `(M, D)` is by a mixture fitted to `fitted` `(N, D)`."""
    from sklearn.mixture import GaussianMixture  # only here: it takes half a second to import

    mixture = GaussianMixture(max(1, components), covariance_type="diag", reg_covar=1e-4, random_state=seed % 2**32)
    return mixture.fit(fitted).score_samples(asked)
