"""Images with captions: how captions are written for classes, and an image tower and a text tower that learn together.

A caption is a row of word numbers, 0 where it has ended. A class is called by its number, in words or as a numeral.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.augment import cropped
from buckler.data import Rows, floats
from buckler.encoders._contrast import Headed, headed
from buckler.nets import where
from buckler.train import fit, started

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a photo of {}",
    "an image of {}",
    "this is {}",
    "a small picture of {}",
    "here you see {}",
    "{} in an old photo",
    "one more picture with {}",
    "somebody wrote {}",
)
"""What captions are made of."""
PROMPTS = ("this is a photo of {}", "here you see a picture of {}", "a small image of {}")
"""What classes are asked for by: known words, put together as in no caption."""


def phrases(classes: int, templates: Sequence[str] = TEMPLATES) -> Tensor:
    """Every way to write of each class: `(classes, P, L)` word numbers, above 0, and 0 behind the last word."""
    texts = [[text.format(name) for text in templates for name in _names(label)] for label in range(classes)]
    known = " ".join(TEMPLATES).replace("{}", "class").split()
    known = sorted({*known, *NUMBERS, *map(str, range(classes))})
    number = {word: place for place, word in enumerate(known, 1)}
    long = 1 + max(len(text.split()) for text in (*TEMPLATES, *PROMPTS))
    rows = [[[number[word] for word in text.split()] for text in mine] for mine in texts]
    return torch.tensor([[row + [0] * (long - len(row)) for row in mine] for mine in rows])


def _names(label: int) -> tuple[str, str]:
    return (NUMBERS[label] if label < len(NUMBERS) else f"class {label}", str(label))


def captions(y: Tensor, classes: int, seed: int = 0) -> Tensor:
    """A caption for each label of `y` `(N,)`, drawn by `seed`: `(N, L)` word numbers."""
    known = phrases(classes).to(y.device)
    which = torch.randint(known.shape[1], (len(y),), generator=torch.Generator().manual_seed(seed))
    return known[y, which.to(y.device)]


class Pair(nn.Module):
    """An image encoder, `forward`, and a text tower: each with a head into a space of `out` numbers that they share."""

    def __init__(self, image: Headed, classes: int, out: int) -> None:
        super().__init__()
        self.image = image
        self.words = nn.EmbeddingBag(int(phrases(classes).max()) + 1, out, padding_idx=0)
        self.text = nn.Sequential(nn.Linear(out, out), nn.ReLU(), nn.Linear(out, out))
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.prompts = nn.Buffer(phrases(classes, PROMPTS))

    def forward(self, x: Tensor) -> Tensor:
        """Features `(B, D)` of images: what stands below the head."""
        return self.image.encoder(x)

    def seen(self, x: Tensor) -> Tensor:
        """Where images `(B, C, H, W)` lie in the space: `(B, out)`, of length 1."""
        return F.normalize(self.image(x), dim=1)

    def told(self, tokens: Tensor) -> Tensor:
        """Where captions `(B, L)` lie in the space: `(B, out)`, of length 1."""
        return F.normalize(self.text(self.words(tokens)), dim=1)

    def named(self, x: Tensor) -> Tensor:
        """How near images are to each class as it is asked for, without any label: `(B, K)`."""
        classes, many, long = self.prompts.shape
        asked = self.told(self.prompts.view(-1, long)).view(classes, many, -1).mean(1)
        return self.seen(x) @ F.normalize(asked, dim=1).T


def names(pair: Pair, x: Tensor) -> Tensor:
    """The class `(N,)` that each image is nearest to by name."""
    with torch.no_grad():
        return torch.cat([pair.named(floats(part).to(where(pair))).argmax(1).cpu() for part in x.split(512)])


def matched(model: Pair, x: Tensor, tokens: Tensor) -> Tensor:
    """The cross-entropy `(B,)` of finding each image's caption among those of the batch, and each caption's image: the
    mean of both."""
    scores = model.seen(x) @ model.told(tokens).T * model.scale.exp().clamp_max(100)
    own = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(scores, own, reduction="none") + F.cross_entropy(scores.T, own, reduction="none")) / 2


def paired(
    data: Rows,
    *,
    net: Callable[[], nn.Module],
    least: float,
    out: int,
    epochs: float,
    batch: int,
    rate: float,
    decay: float,
    seed: int,
) -> Pair:
    """Both towers, learnt from images and captions written for their labels; see `clip.clip`."""
    x, y = data
    classes = int(y.max()) + 1
    image = headed(net, data, out, seed)
    model = cast(Pair, started(lambda: Pair(image, classes, out), seed + 1)).to(where(image))
    look = cropped(least)
    fit(
        model,
        (x, captions(y, classes, seed)),
        loss=lambda model, x, tokens: matched(cast(Pair, model), look(x), tokens),
        epochs=epochs,
        batch=batch,
        rate=rate,
        decay=decay,
        optimizer="adam",
        seed=seed,
    )
    return model.eval()
