"""The three decoupled stages of DLP, each a function that can be run alone, replaced or left out.

`learn` -> suspicion -> `unlearn` -> `tune`. None of them knows which rows are poisoned, how many, or has a clean row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.augment import Augment, bent, chained, turned
from buckler.data import Rows, floats
from buckler.poisoning._dynamics import Watched, numbered
from buckler.poisoning._isolate import highest
from buckler.poisoning._look import BATCH, logits, outputs
from buckler.poisoning._mixmatch import Fixing, Mixing, fixmatch, mixmatch
from buckler.poisoning._transplant import mixed
from buckler.train import fit, portions, started, triangle

Semi = Literal["pseudo", "mixmatch", "fixmatch"]
OBEYED, EXCESS, AGAIN = 0.9, 0.08, 0.7
"""A row is obeyed above this probability; a class holds poison if this share of rows more than of any other class tells
so; the last stage splits again after this share of it."""
SLIGHT, PLAIN, GONE = 0.05, 0.3, 0.5
"""A row owes its label to a filter slightly, plainly, or has lost it, above this drop of the label's probability."""


MOVED: Augment = bent(1.0)
TURNED: Augment = chained(turned(15, 0.1, 0.05), bent(2.0))
"""Every image is bent a little, and while unlearning turned as well, whatever its label: then no warp means a label."""


@dataclass(frozen=True)
class Split:
    """What is thought of every row, `(N,)` booleans: `suspected`, `trusted`; neither means undecided.

    Of `doubted` rows the last stage learns those, suspected or not, whose label the model gives after unlearning.
    """

    suspected: Tensor
    trusted: Tensor
    doubted: Tensor


def learn(
    data: Rows, net: Callable[[], nn.Module], *, epochs: float, batch: int = 128, rate: float = 0.2, seed: int = 0
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Stage 1, supervised learning: a network that learns whatever is there, and what training saw of every row."""
    watched = Watched(data[1])
    model = started(net, seed)
    outputs(model, data)
    fit(model, numbered(data[0]), loss=watched, epochs=epochs, batch=batch, rate=rate, seed=seed)
    return model, watched.record


def estimated(obeyed: Tensor, usual: Tensor, y: Tensor) -> float:
    """The share of rows that are poisoned, from `obedience`; 0 where no class stands out.

    For each way, the share of a class's rows that are obeyed, less the share of other rows that bring the class about
    just as well (`usual`), is compared with the other classes'. The estimate is that of the way that shows most.
    """
    classes = usual.shape[1]
    most = 0.0
    for line, base in zip(obeyed, usual, strict=True):
        shares = torch.stack([(line[y == k] > OBEYED).float().mean() for k in range(classes)]).nan_to_num() - base
        first, second = shares.topk(min(2, classes)).values.tolist()
        if first - max(second, 0.0) > EXCESS:
            most = max(most, (first - max(second, 0.0)) * float((y == int(shares.argmax())).float().mean()))
    return most


def owed(lost: Tensor, made: Tensor, went: Tensor, y: Tensor) -> Tensor:
    """What each row's label owes to how smooth or fine the row is, `(N,)`, from `filtered`; 0 if no class stands out.

    Rows of the class that blurring makes of all others owe it what sharpening takes. Rows of the class that loses far
    more rows than others to a slight blur owe what that takes, where it does not only make them of the former class.
    """
    owing, smooth = torch.zeros(len(y)), _standing_out(made)
    if smooth is not None:
        owing = torch.where(y == smooth, lost[0], owing)
    taken = lost[1] if smooth is None else torch.where(went == smooth, 0.0, lost[1])
    fine = _standing_out(torch.stack([(taken[y == k] > GONE).float().mean() for k in range(len(made))]).nan_to_num())
    return owing if fine is None else torch.maximum(owing, torch.where(y == fine, taken, 0.0))


def _standing_out(shares: Tensor) -> int | None:
    """The class with the largest of the `shares` `(K,)`, if it has far more than any other."""
    first, second = shares.topk(2).values
    return int(shares.argmax()) if first - second > EXCESS else None


def divided(suspicion: Tensor, said: Tensor, y: Tensor, doubted: Tensor, *, suspected: float) -> Split:
    """The share `suspected` with the highest suspicion; of the others, rows whose label is what is `said` `(N, K)`."""
    bad = highest(suspicion, max(1, round(suspected * len(y))))
    return Split(bad, ~bad & (said.argmax(1) == y), doubted)


def views(model: nn.Module, data: Rows, *, many: int = 2, seed: int = 0) -> Tensor:
    """The mean answer, as probabilities `(N, K)`, to each row as it is and to `many` moved copies of it."""
    x, y = data
    out = logits(model, data).softmax(1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(many):
            for part in torch.arange(len(y)).split(BATCH):
                moved = TURNED(floats(x[part])).clamp(0, 1)
                out[part] += logits(model, (moved, y[part])).softmax(1)
    return out / (many + 1)


def unlearn(
    model: nn.Module,
    data: Rows,
    split: Split,
    flagged: Tensor,
    *,
    epochs: float,
    batch: int = 128,
    rate: float = 0.05,
    seed: int = 0,
) -> nn.Module:
    """Stage 2, active unlearning, in place: flagged rows are climbed to chance and no further.

    Trusted rows are learnt as they are and with what suspected rows carry, which then means nothing. The ascent is
    bounded by the loss of an even guess, where it stops by itself, row by row.
    """
    x, y = data
    donors = x[split.suspected]
    climbed, trusted = flagged.float(), split.trusted.float()

    def loss(moving: nn.Module, images: Tensor, rows: Tensor) -> Tensor:
        place = rows.cpu()
        images = TURNED(images)
        carried = mixed(images, _drawn(donors, len(images), images))
        answers = moving(torch.cat([images, carried]))
        chance = math.log(answers.shape[1])
        own, other = F.cross_entropy(answers, y[place].to(images.device).repeat(2), reduction="none").chunk(2)
        bad, good = (flags[place].to(images.device) for flags in (climbed, trusted))
        return good * (own + other) + bad * (chance - own).clamp_min(0)

    return fit(model, numbered(x), loss=loss, epochs=epochs, batch=batch, rate=rate, seed=seed)


def tune(
    model: nn.Module,
    data: Rows,
    split: Split,
    *,
    epochs: float,
    semi: Semi = "pseudo",
    share: float = 0.25,
    batch: int = 128,
    rate: float = 0.1,
    sure: float = 0.7,
    seed: int = 0,
) -> nn.Module:
    """Stage 3, active semi-supervised fine-tuning, in place: labels of trusted rows, images of all.

    A `share` of the images of a batch carries what suspected rows carry. `pseudo` looks at the rows as the stage begins
    and again late in it: a row of which the model is `sure` that its label is another gets that one (Lee, ICML workshop
    2013), other suspected rows are left out, and other rows keep their labels. `mixmatch` and
    `fixmatch` trust the rows whose label the model itself gives, anew as every epoch begins, and only see the others.
    """
    x, y = data
    augment = chained(MOVED, carrying(x[split.suspected], share))

    def again(_epoch: int) -> Tensor:
        good = ~split.suspected & (views(model, data, seed=seed).argmax(1) == y)
        return good if bool(good.any()) else ~split.suspected

    steps = len(portions(len(y), batch))
    if semi == "mixmatch":
        mixing = Mixing(ramp=epochs)
        return mixmatch(model, data, again, epochs=epochs, batch=batch, iterations=steps, mixing=mixing,
                        augment=augment, rate=triangle(rate), optimizer="sgd", seed=seed)  # fmt: skip
    if semi == "fixmatch":
        return fixmatch(model, data, again, epochs=epochs, batch=batch, iterations=steps, fixing=Fixing(ratio=1),
                        augment=MOVED, strong=augment, rate=triangle(rate), seed=seed)  # fmt: skip
    labels, weight = y.clone(), split.trusted.float()
    step, again_at = 0, round(AGAIN * epochs * steps)

    def loss(moving: nn.Module, images: Tensor, rows: Tensor) -> Tensor:
        nonlocal step
        if step in (0, again_at):
            said = views(moving, data, seed=seed + step)
            chance, guess = said.max(1)
            other = (chance >= sure) & (guess != y)
            kept = torch.where(split.doubted, guess == y, ~split.suspected & ~other)
            labels[:] = torch.where(other, guess, y)
            weight[:] = (kept | other).float()
        step += 1
        place = rows.cpu()
        found = F.cross_entropy(moving(augment(images)), labels[place].to(images.device), reduction="none")
        return found * weight[place].to(images.device)

    return fit(model, numbered(x), loss=loss, epochs=epochs, batch=batch, rate=rate, seed=seed)


def carrying(donors: Tensor, share: float) -> Augment:
    """An augmentation that puts what `donors` carry on a `share` of the images."""

    def carry(images: Tensor) -> Tensor:
        chosen = torch.rand(len(images), device=images.device) < share
        return torch.where(chosen[:, None, None, None], mixed(images, _drawn(donors, len(images), images)), images)

    return carry


def _drawn(donors: Tensor, many: int, like: Tensor) -> Tensor:
    return floats(donors[torch.randint(0, len(donors), (many,))]).to(like)
