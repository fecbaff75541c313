"""DLP: learn everything, unlearn what can be carried over, then fine-tune on the labels that can be trusted.

Ying and Wu, "DLP: towards active defense against backdoor attacks with decoupled learning process", Cybersecurity 6:9,
2023, https://arxiv.org/abs/2406.13098.

Differs from the paper: of the paper only its abstract could be read. Its three decoupled stages (supervised learning,
active unlearning, active semi-supervised fine-tuning) are kept, and what happens inside them is a reconstruction whose
constants were chosen by measurement (docs/dlp.md). Rows are not suspected for a low loss, which finds few triggers but
patches, but for what they carry: the parts of a row that are not content are put on rows of other labels, and a row
whose label goes with them is suspected; and for being smooth or fine, where that alone makes a class, as the resampling
of a warp does. Unlearning teaches that what suspected rows carry means nothing, and climbs flagged ones to an
even guess and no further. No guarantee.

Tags: atlas:AML.T0020, nist-ai-100-2:NISTAML.023, owasp-ml:ML02, cwe:506.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from buckler.data import Rows, raw
from buckler.kinds import Cultivated, Suspicion
from buckler.poisoning._isolate import highest
from buckler.poisoning._stages import PLAIN, SLIGHT, Semi, divided, estimated, learn, owed, tune, unlearn, views
from buckler.poisoning._touch import classes
from buckler.poisoning._transplant import TELLING, filtered, obedience, ranked
from buckler.train import lasting

STEPS = 60
"""So many steps an epoch has at least, if batches of 16 allow it."""


def dlp(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    epochs: tuple[float, float, float] = (6, 5, 12),
    suspected: float = 0.15,
    semi: Semi = "pseudo",
    carried: float = 0.25,
    batch: int | None = None,
    rate: float = 0.2,
    seed: int = 0,
) -> Cultivated:
    """Train a model from `data`, images `x` `(N, C, H, W)` and labels `y` `(N,)`, that does not learn its backdoor.

    `epochs` are those of the three stages; the second or the third is left out with none. The share `suspected` of the
    rows is not trusted, whatever is in the data. In the last stage the share `carried` of the images carries what
    suspected rows carry, and `semi` says what becomes of rows whose label is not trusted. `rate` is the peak of the
    first stage for batches of 128, in proportion to others and twice that of the later stages; `batch` is 128 if not
    given, less for fewer rows. Returns the model, the suspicion, whose flags are as many rows as are estimated to be
    poisoned, and the first stage's dynamics. Raises `ValueError` for rows that are no images, one class, no rows to a
    batch, or a share of no rows.
    """
    x, y = raw(data)
    if x.ndim != 4:
        raise ValueError(f"expected images (N, C, H, W), got {tuple(x.shape)}: transplants put pixels on pixels")
    classes(y)
    lasting(*epochs)
    if not 1 <= suspected * len(y) <= len(y) / 2 or not 0 <= carried <= 1:
        got = f"{suspected * len(y):g} and {carried}"
        raise ValueError(f"expected to suspect 1 to {len(y) // 2} rows and a share of 0 to 1, got {got}")
    if batch is not None and batch < 1:
        raise ValueError(f"expected at least 1 row to a batch, got {batch}")
    size = batch if batch is not None else min(128, max(16, len(y) // STEPS))
    rate *= size / 128
    model, dynamics = learn((x, y), net, epochs=epochs[0], batch=size, rate=rate, seed=seed)
    obeyed, usual = obedience(model, (x, y), seed=seed)
    obeying, owing = ranked(obeyed), owed(*filtered(model, (x, y)), y)
    warped = owing > SLIGHT
    score = torch.where(warped, 1 + owing, obeying)
    doubted = torch.isin(y, y[warped]) & ~highest(obeying, max(1, round(suspected * len(y))))
    suspected = max(suspected, float(warped.float().mean()))
    telling = torch.tensor(TELLING)
    many = max(round(estimated(obeyed[telling], usual[telling], y) * len(y)), int((owing > PLAIN).sum()))
    flagged = highest(score, many) if many else torch.zeros(len(y), dtype=torch.bool)
    split = divided(score, F.one_hot(y).float(), y, torch.zeros_like(doubted), suspected=suspected)
    if epochs[1] > 0:
        unlearn(model, (x, y), split, flagged & ~warped, epochs=epochs[1], batch=size, rate=rate / 2, seed=seed + 1)
        split = divided(score, views(model, (x, y), seed=seed), y, doubted, suspected=suspected)
    if epochs[2] > 0:
        tune(model, (x, y), split, epochs=epochs[2], semi=semi, share=carried, batch=size, rate=rate / 2,
             seed=seed + 2)  # fmt: skip
    return Cultivated(model, Suspicion(score, flagged), dynamics)
