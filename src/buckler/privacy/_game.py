"""The game that membership is measured by: who was learnt from, who was not, what is attacked, and the control.

There are two. Of the subject's own model: rows of its training data are members, its test rows are not. What tells
them apart may be another difference between the two sets, so the same attack is run on a control, a model that saw
neither. Of the training: a target is trained on a random half of the training rows, so that members differ from the
rest by nothing but chance; shadow models are trained on other halves of the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from buckler.data import Data, Rows, as_tensors, batches, count, drawn, raw
from buckler.dice import fingerprint_rows
from buckler.privacy._farm import Lesson, Training, farm, halves, learnt
from buckler.privacy._setting import Setting
from buckler.privacy._shadows import Shadows
from buckler.subject import Subject
from buckler.target import Oracle

LEAST = 20
"""The fewest rows on a side that are worth asking about, or training a control on."""


@dataclass(frozen=True, eq=False)
class Game:
    """Rows `(x, y)` of which `member` `(N,)` says who the target learnt from, and `places` where members stand in the
    training data (-1 for test rows). `control` learnt from rows of its own, `shadows` are those of the adversary, and
    `public` are rows that nobody learnt from and the adversary knows.
    """

    target: nn.Module | Oracle
    x: Tensor
    y: Tensor
    member: Tensor
    places: Tensor
    control: nn.Module | None
    shadows: Shadows | None = None
    public: Rows | None = None
    overlap: int = 0
    """Test rows that were left out because they are training rows as well."""
    learnt: Rows | None = None
    """The rows that a target that was trained here learnt from, and `spared` those of the control, if there is one."""
    spared: Rows | None = None


def training_of(subject: Subject, epochs: float) -> Training | None:
    """The subject's own recipe, else its network in the one loop for so many epochs; None where it has neither."""
    if subject.recipe is not None:
        return subject.recipe
    return None if subject.net is None else Lesson(subject.net, epochs)


def of_the_model(setting: Setting, *, public: bool) -> Game:
    """Training rows against test rows, of the subject's own model; with `public`, half of the test rows are that.

    A `ValueError` where too few rows are left on either side.
    """
    subject, train = setting.subject, _train(setting.subject)
    test = not_in(subject, train)
    overlap = count(subject.test) - len(test)
    known = test[len(test) // 2 :] if public else test[:0]
    outside = test[: len(test) - len(known)][: setting.rows // 2]
    left = 0 if training_of(subject, setting.training_epochs) is None else count(train) // 2  # for the control
    inside = drawn(train, min(setting.rows // 2, count(train) - left), setting.seed)
    if min(len(outside), len(inside)) < LEAST:
        raise ValueError(
            f"expected {LEAST} training rows and test rows or more to compare, got {len(inside)} and {len(outside)}"
            + (f", with {left} training rows left to a control" if left else "")
            + (f": {overlap} test rows are training rows as well and were left out" if overlap else "")
        )
    (a, b), (c, d) = as_tensors(train, inside), as_tensors(subject.test, outside)
    member = torch.arange(len(b) + len(d)) < len(b)
    places = torch.cat([inside, torch.full_like(outside, -1)])
    others = torch.ones(count(train), dtype=torch.bool)
    others[inside] = False
    control, spared = _control(setting, others.nonzero().squeeze(1))
    return Game(
        target=subject.model,
        x=torch.cat([a, c]),
        y=torch.cat([b, d]),
        member=member,
        places=places,
        control=control,
        public=as_tensors(subject.test, known) if len(known) else None,
        overlap=overlap,
        spared=spared,
    )


def of_the_training(setting: Setting, training: Training | None = None, *, control: bool = True) -> Game:
    """A target trained on half of the training rows, and shadows on other halves of the same: by `training`, or as the
    subject is trained. Without a `control` none is trained.

    A `ValueError` for too few rows, or where nothing can be trained.
    """
    training, train = training or training_of(setting.subject, setting.training_epochs), _train(setting.subject)
    if training is None:
        raise TypeError("expected a recipe or a net")
    pool = drawn(train, setting.train_rows, setting.seed)
    pool = pool[: len(pool) // 2 * 2]
    if len(pool) < 2 * LEAST:
        raise ValueError(f"expected {2 * LEAST} training rows or more for shadows on halves of them, got {len(pool)}")
    data = raw(train, pool)
    step = 1 / (setting.models + 2)

    def alone(offset: int) -> tuple[nn.Module, Tensor, Rows]:
        inside = halves(len(pool), 2, setting.seed + offset)[0]
        rows = inside.nonzero().squeeze(1)
        own = data[0][rows], data[1][rows]
        made = learnt(training, own, seed=setting.seed, start=setting.seed + offset, device=setting.device)
        setting.meter.watch(made)
        return made, inside, own

    target, member, own = alone(1)
    setting.told(step)
    other, _, spared = alone(2) if control else (None, None, None)
    setting.told(2 * step)
    shadows = farm(
        training,
        data,
        halves(len(pool), setting.models, setting.seed + 3),
        asked=setting.views,
        keep=setting.keep,
        device=setting.device,
        seed=setting.seed + 3,
        tick=lambda done: setting.told(2 * step + done * (1 - 3 * step)),
    )
    shown = drawn((pool, pool), setting.rows, setting.seed)
    x, y = as_tensors(data, shown)
    return Game(target, x, y, member[shown], pool[shown], other, shadows.rows(shown), learnt=own, spared=spared)


def _train(subject: Subject) -> Data:
    if subject.train is None:
        raise TypeError("expected training data")
    return subject.train


def _control(setting: Setting, rows: Tensor) -> tuple[nn.Module, Rows] | tuple[None, None]:
    """A model that learnt from other training rows than the members, with its own: it knows neither side."""
    training = training_of(setting.subject, setting.training_epochs)
    if training is None or len(rows) < LEAST:
        return None, None
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(setting.seed))[: setting.train_rows]
    own = raw(_train(setting.subject), rows[order].sort().values)
    made = learnt(training, own, seed=setting.seed, start=setting.seed, device=setting.device)
    setting.meter.watch(made)
    return made, own


def not_in(subject: Subject, train: Data) -> Tensor:
    """The test rows that are no training rows, by their content."""
    known = torch.cat([fingerprint_rows(x) for x, _ in batches(train, 1024)])
    tested = torch.cat([fingerprint_rows(x) for x, _ in batches(subject.test, 1024)])
    return (~torch.isin(tested, known)).nonzero().squeeze(1)
