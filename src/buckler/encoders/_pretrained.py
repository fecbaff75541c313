"""Pre-training, judged by what is learnt above the features: beside the same network untrained, and with labels.

An untrained network's features can be as good as any where labels abound, so the judgement rests on few of them: `FEW`
of each class, drawn `DRAWS` times.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from buckler import stats
from buckler.data import Rows, floats
from buckler.embedding import embedded, nearest, probe
from buckler.encoders._pairs import Pair, names
from buckler.encoders._scene import Scene, Task, body, refusal, scene, tasks
from buckler.encoders._setting import Setting
from buckler.evaluation import skipped
from buckler.target import frozen
from buckler.threat import Threat
from buckler.train import fit, started
from buckler.trial import Check, Trial

FEW, DRAWS = 10, 5
LEARNT = "something was learnt without labels"


def pretraining(setting: Setting) -> Trial:
    """An encoder that the method makes of half of the training rows, and what a linear probe above it is worth."""
    subject, described = setting.subject, setting.described
    blank = setting.blank(
        Threat("data", "nothing", "nothing", "features for other tasks", described.tags),
        setting.asked("rows", "train_rows", "encoder_steps", "training_epochs"),
    )
    if setting.left_open("epochs"):  # `encoder_steps` says how long
        blank = replace(blank, params={name: value for name, value in blank.params.items() if name != "epochs"})
    setting = replace(setting, subject=replace(subject, encoder=None), pretraining=setting.method)
    if reason := refusal(setting):
        return skipped(blank, reason)
    began = time.perf_counter()
    seen = scene(setting)
    setting.meter.method_seconds += time.perf_counter() - began
    setting.told(0.6)
    evidence = _worth(seen, tasks(setting, seen), setting.seed)
    untrained = settled(setting, cast(Rows, seen.learnt)[0])
    control = _worth(replace(seen, encoder=untrained), tasks(setting, seen)[:1], setting.seed)
    setting.told(0.8)
    evidence |= {f"untrained_{name}": right for name, right in control.items()}
    if subject.net is not None:
        fresh = started(subject.net, setting.seed).to(setting.device)
        taught = fit(fresh, seen.spare, epochs=setting.training_epochs, seed=setting.seed)
        evidence["taught_correct"] = _labels(taught, seen.test[0]) == seen.test[1]
    evidence["gain"] = evidence["few_correct"] - evidence["untrained_few_correct"]
    found = {
        name: stats.mean(value, name) if value.is_floating_point() else stats.share(value, name)
        for name, value in evidence.items()
    }
    few, without = found["few_correct"].value, found["untrained_few_correct"].value
    says = f"Probes that learnt {FEW} labels of each class are right on {few:.1%} of the rows, above the same network "
    check = Check(LEARNT, found["gain"].low > 0, f"{says}untrained on {without:.1%}.", found["gain"].value)
    return replace(
        blank,
        status="ok" if check.passed else "inconclusive",
        reason="" if check.passed else "the features are not surely better than those of an untrained network",
        checks=(check,),
        estimates=found,
        evidence=evidence,
    )


def settled(setting: Setting, x: Tensor) -> nn.Module:
    """An untrained encoder whose batch norms have seen the rows: a fair control."""
    build = body(setting.subject)
    if build is None:
        raise ValueError("expected a subject with a net or a body, got neither")
    encoder = started(build, setting.seed).to(setting.device).train()
    with torch.no_grad():
        for part in x.split(256):
            encoder(floats(part).to(setting.device))
    return encoder.eval()


def _worth(seen: Scene, used: tuple[Task, ...], seed: int) -> dict[str, Tensor]:
    """Whether each test row is right: by a linear probe, for each task, and, for the first, by its nearest rows and by
    probes learnt from few labels; of towers of images and text also by the names of the classes alone."""
    found = dict[str, Tensor]()
    for task in used:
        known, asked = embedded(seen.encoder, task.train[0]), embedded(seen.encoder, task.test[0])
        linear = probe(known, task.train[1], classes=task.classes, seed=seed)(asked).argmax(1)
        found["correct" if task is used[0] else f"{task.name}_correct"] = linear == task.test[1]
        if task is used[0]:
            found["nearest_correct"] = nearest(known, task.train[1], asked, classes=task.classes) == task.test[1]
            found["few_correct"] = by_few(known, asked, task, seed)
    if isinstance(seen.encoder, Pair):
        found["named_correct"] = names(seen.encoder, seen.test[0]) == seen.test[1]
    return found


def by_few(known: Tensor, asked: Tensor, task: Task, seed: int) -> Tensor:
    """How often each test row is right by probes that learn from a few labels of each class, `(N,)` in [0, 1]."""
    return (said_by_few(known, asked, task, seed) == task.test[1]).float().mean(0)


def said_by_few(known: Tensor, asked: Tensor, task: Task, seed: int) -> Tensor:
    """What each of `DRAWS` probes that learn from a few labels of each class says of each row, `(DRAWS, N)`."""
    draw, said = torch.Generator().manual_seed(seed), list[Tensor]()
    for turn in range(DRAWS):
        order = torch.randperm(len(known), generator=draw)
        rows = torch.cat([order[task.train[1][order] == one][:FEW] for one in range(task.classes)])
        made = probe(known[rows], task.train[1][rows], classes=task.classes, seed=seed + turn)
        said.append(made(asked).argmax(1))
    return torch.stack(said)


def _labels(model: nn.Module, x: Tensor) -> Tensor:
    device = next(model.parameters()).device
    with torch.no_grad(), frozen(model):
        return torch.cat([model(floats(part).to(device)).argmax(1).cpu() for part in x.split(512)])
