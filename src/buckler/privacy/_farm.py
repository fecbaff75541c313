"""The shadow farm: many models, each trained on half of the rows, of which nothing is kept but their answers.

Models come in pairs: the one learns from a random half, the other from the rest, so that every row is held by exactly
half of the models and every model holds exactly half of the rows. Three engines train them, and make the same models
up to rounding: one after the other; stacked, where one step of one loop trains up to `STACK` models at once
(`torch.func.stack_module_state` and `vmap`); and in processes with one thread each, through joblib: on this machine, or
wherever `joblib.parallel_config` says (Ray, Dask). Stacking saves the overhead of small operations and is several times
faster than a plain loop for small networks; where convolutions are all the work, processes are (`benchmarks/privacy.py`
has both). `auto` times a few steps of each and takes the fastest, but does not look further than a stack where that is
done within `PATIENCE`. It stacks no network whose training draws by chance, because a stack's draws are others; and
networks that cannot be stacked, and trainings of the user's own, are trained one by one.
"""

from __future__ import annotations

import copy
import inspect
import io
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import joblib
import numpy as np
import torch
from joblib.parallel import SequentialBackend, ThreadingBackend, get_active_backend
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from buckler import train
from buckler.data import Rows, batches, floats, write_whole
from buckler.privacy._shadows import Shadows, views
from buckler.target import frozen
from buckler.trial import fingerprint, fingerprint_model, fingerprint_tensors

Engine = Literal["auto", "sequential", "stacked", "processes"]
STACK = 16
"""How many models are trained in one stack: memory is theirs, however many there are in all."""
PATIENCE = 20.0
"""Seconds of training from which it pays to see whether something is faster than a stack."""
Tick = Callable[[float], None]


@dataclass(frozen=True)
class Lesson:
    """Training of a fresh network in the one loop: what shadows learn by where the user's own training is not known."""

    net: Callable[[], nn.Module]
    epochs: float = 15
    batch: int = 128
    rate: float = 0.1
    decay: float = 5e-4


Training = Lesson | Callable[[Rows], nn.Module]


def halves(rows: int, models: int, seed: int = 0) -> Tensor:
    """Who learns from what, `(models, rows)`: in pairs, a random half and the rest. A `ValueError` for odd numbers."""
    if models % 2 or rows % 2 or models < 2 or rows < 2:
        raise ValueError(f"expected even numbers of models and rows, 2 or more, got {models} and {rows}")
    draw = torch.Generator().manual_seed(seed)
    held = torch.zeros(models, rows, dtype=torch.bool)
    for pair in range(0, models, 2):
        held[pair, torch.randperm(rows, generator=draw)[: rows // 2]] = True
    held[1::2] = ~held[::2]
    return held


def farm(
    training: Training,
    data: Rows,
    held: Tensor,
    *,
    asked: int = 1,
    engine: Engine = "auto",
    workers: int | None = None,
    keep: Path | None = None,
    device: torch.device | None = None,
    seed: int = 0,
    tick: Tick | None = None,
) -> Shadows:
    """Train a model on each row of `held` `(S, N)` of `data` and return what they answer to all of it.

    `data` is `x` `(N, ...)`, float in [0, 1] or uint8, and `y` `(N,)`; each row is shown in `asked` views. With `keep`,
    a folder that belongs to one training and its data, answers are files in it, read from there when needed, and a
    farm that was stopped goes on where it was: model by model, or stack by stack. `workers` are the most processes, as
    many as torch has threads if it is not said. Raises `ValueError` for a training
    that does not return a model, whose model answers with what is not finite, or that ignores its rows.
    """
    if engine == "stacked" and not isinstance(training, Lesson):
        raise ValueError("expected a network to stack, got a training of the user's own: only it knows its steps")
    job = _Job(training, data, held, asked, device or torch.device("cpu"), seed)
    workers = workers or torch.get_num_threads()
    names = [_name(job, model) for model in range(len(held))] if keep is not None else []
    made: dict[int, Tensor] = {}
    for model, name in enumerate(names):
        answers = _read(cast(Path, keep) / name, (len(data[1]), asked))
        if answers is not None:
            made[model] = answers
    todo = [model for model in range(len(held)) if model not in made]
    chosen = _quickest(job, todo, workers) if engine == "auto" else engine
    for models, answers in _rounds(job, todo, chosen, workers, tick):
        for model, answer in zip(models, answers, strict=True):
            if not bool(answer.isfinite().all()):
                raise ValueError(f"expected finite answers of shadow {model}, got NaN or infinity: lower the rate")
            made[model] = answer if keep is None else _kept(answer, keep / names[model])
        if tick is not None:
            tick(len(made) / len(held))
    shadows = Shadows(held, [made[model] for model in range(len(held))], data[1])
    if len(held) > 1 and not torch.equal(held[0], held[1]) and torch.equal(*shadows.answers[:2]):
        raise ValueError("expected a training that learns from the rows it is given, got one model from two halves")
    return shadows


def stackable(net: Callable[[], nn.Module], x: Tensor) -> bool:
    """Whether two networks of this kind can be trained as one: tried on two rows of `x`, gradients included."""
    try:
        stack = Stack([train.started(net, seed) for seed in range(2)]).train()
        with torch.random.fork_rng():
            stack(floats(x[:2]).expand(2, *x[:2].shape)).sum().backward()
    except Exception:  # vmap refuses what it cannot batch with many types of error
        return False
    return True


class Stack(nn.Module):
    """Networks of one architecture as one module: `(S, B, ...)` in, `(S, B, K)` out, weights and buffers stacked."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        weights, buffers = stack_module_state(list(models))
        self._names = list(weights), list(buffers)
        self.weights = nn.ParameterList([nn.Parameter(weight.detach()) for weight in weights.values()])
        for place, buffer in enumerate(buffers.values()):
            self.register_buffer(f"buffer{place}", buffer)
        self._form = (copy.deepcopy(models[0]),)  # in a tuple: its weights are not trained

    def train(self, mode: bool = True) -> Stack:
        self._form[0].train(mode)
        super().train(mode)
        return self

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        weights, buffers = self._names
        return dict(zip(weights, self.weights, strict=True)), dict(zip(buffers, self.buffers(), strict=True))

    def forward(self, x: Tensor) -> Tensor:
        def one(weights: dict[str, Tensor], buffers: dict[str, Tensor], rows: Tensor) -> Tensor:
            return functional_call(self._form[0], (weights, buffers), (rows,))

        return vmap(one, randomness="different")(*self._state(), x)

    def single(self, place: int) -> nn.Module:
        """One of the networks, evaluating."""
        model = copy.deepcopy(self._form[0])
        weights, buffers = self._state()
        model.load_state_dict(
            {name: value[place].detach() for name, value in (weights | buffers).items()}, strict=False
        )
        return model.eval()


@dataclass(frozen=True, eq=False)
class _Job:
    """All that decides the models of a farm."""

    training: Training
    data: Rows
    held: Tensor
    asked: int
    device: torch.device
    seed: int

    def rows(self, model: int) -> Tensor:
        """The rows that a model learns from, in an order of its own."""
        rows = self.held[model].nonzero().squeeze(1)
        draw = torch.Generator().manual_seed(self.start(model))
        return rows[torch.randperm(len(rows), generator=draw)] if isinstance(self.training, Lesson) else rows

    def start(self, model: int) -> int:
        """The seed of a model's first weights, and of its order of rows."""
        return self.seed * 100_003 + model


def _quickest(job: _Job, todo: list[int], workers: int) -> Engine:
    """The engine for these models: a stack if that is soon done, else whichever took the least time for a few steps."""
    lesson = job.training
    if not isinstance(lesson, Lesson) or not todo or not stackable(lesson.net, job.data[0]):
        return "sequential"
    steps = lesson.epochs * float(job.held[todo].sum()) / lesson.batch
    first: Engine = "sequential" if by_chance(lesson.net, job.data[0]) else "stacked"
    seconds = {first: steps * _step(job, todo[: STACK if first == "stacked" else 1])}
    if seconds[first] > PATIENCE:
        seconds.setdefault("sequential", steps * _step(job, todo[:1]))
        if workers > 1 and job.device.type == "cpu" and not _shared():
            try:
                at_once = _apart(workers)(joblib.delayed(_step)(job, todo[:1], 1) for _ in range(workers))
                seconds["processes"] = steps * max(cast("list[float]", list(at_once))) / workers
            except Exception:  # a network that another process cannot build, or a machine that has no processes to give
                pass
    return cast(Engine, min(seconds, key=seconds.__getitem__))


def _step(job: _Job, models: Sequence[int], threads: int = 0, tries: int = 3) -> float:
    """Seconds that a step of training takes for each of these models, stacked if there are several: the least found."""
    lesson = cast(Lesson, job.training)
    nets = [train.started(lesson.net, model) for model in models]
    several = len(nets) > 1
    net = (Stack(nets) if several else nets[0]).to(job.device).train()
    x = floats(job.data[0][: lesson.batch].to(job.device))
    took: list[float] = []
    with torch.random.fork_rng(), _threads(threads):
        for _ in range(tries):
            began = time.perf_counter()
            net(x.expand(len(nets), *x.shape) if several else x).square().mean().backward()
            next(net.parameters()).sum().item()  # waits for the device
            took.append(time.perf_counter() - began)
    return min(took) / len(nets)


def by_chance(net: Callable[[], nn.Module], x: Tensor) -> bool:
    """Whether the network answers the same rows otherwise when it is asked again in training, as dropout makes it."""
    model = train.started(net, 0).train()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        first, *others = (model(floats(x[:32])) for _ in range(4))
    return not all(torch.equal(first, other) for other in others)


@contextmanager
def _threads(many: int) -> Generator[None, None, None]:
    """So many threads inside, if it is any."""
    before = torch.get_num_threads()
    torch.set_num_threads(many or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _apart(workers: int) -> joblib.Parallel:
    """Calls in other processes: where `joblib.parallel_config` says, or on this machine."""
    if _shared():
        return joblib.Parallel(n_jobs=workers, backend="loky", return_as="generator")
    lazily = cast("joblib.parallel.ParallelBackendBase", get_active_backend()[0]).supports_return_generator
    return joblib.Parallel(n_jobs=workers, return_as="generator" if lazily else "list")


def _shared() -> bool:
    """Whether joblib would run calls in this process, where they share one source of chance: so it is in a worker."""
    return isinstance(get_active_backend()[0], ThreadingBackend | SequentialBackend)


def _rounds(
    job: _Job, todo: list[int], engine: str, workers: int, tick: Tick | None
) -> Iterator[tuple[Sequence[int], Sequence[Tensor]]]:
    """Which models are made together, and their answers, as they come."""
    if engine == "stacked":
        sizes = job.held.sum(1)
        same = [[m for m in todo if int(sizes[m]) == size] for size in sorted({int(sizes[m]) for m in todo})]
        for group in same:
            for start in range(0, len(group), STACK):
                models = group[start : start + STACK]
                yield models, _stacked(job, models, tick, len(job.held))
    elif engine == "processes":
        calls = (joblib.delayed(_alone)(job, model, 1) for model in todo)
        for model, answers in zip(todo, cast("Iterator[Tensor]", _apart(workers)(calls)), strict=True):
            yield [model], [answers]
    else:
        for model in todo:
            yield [model], [_alone(job, model, 0)]


def _alone(job: _Job, model: int, threads: int) -> Tensor:
    """The answers of one model, trained by itself; in a process of its own with so many `threads`."""
    rows = job.rows(model)
    own = job.data[0][rows], job.data[1][rows]
    with _threads(threads):
        return _answers(learnt(job.training, own, seed=job.seed, start=job.start(model), device=job.device), job)


def _stacked(job: _Job, models: Sequence[int], tick: Tick | None, total: int) -> list[Tensor]:
    """The answers of several models, trained as one: a step of the loop is a step of each, on a batch of its own."""
    rows = torch.stack([job.rows(model) for model in models]).to(job.device)
    x, y = (tensor.to(job.device) for tensor in job.data)
    lesson = cast(Lesson, job.training)
    stack = Stack([train.started(lesson.net, job.start(model)) for model in models]).to(job.device)

    def loss(model: nn.Module, _: Tensor, places: Tensor) -> Tensor:
        """Summed over the models, so that the gradient of each is that of its own mean."""
        here = rows[:, places]
        out = model(floats(x[here]))
        return F.cross_entropy(out.flatten(0, 1), y[here].flatten(), reduction="none").view(len(rows), -1).sum(0)

    def told(done: float, _: float) -> None:
        if tick is not None:
            tick((models[0] + done * len(models)) / total)

    places = torch.arange(rows.shape[1])
    _taught(lesson, stack, (places[:, None], places), job.seed, loss, told)
    return [_answers(stack.single(place), job) for place in range(len(models))]


def learnt(
    training: Training, data: Rows, *, seed: int = 0, start: int = 0, device: torch.device | None = None
) -> nn.Module:
    """One model trained on `data`: `start` draws its first weights, and what else a training of the user's own draws;
    `seed` draws the order of the steps. A `ValueError` for a training that returns no model.
    """
    device = device or torch.device("cpu")
    if isinstance(training, Lesson):
        model = train.started(training.net, start).to(device)
        return _taught(training, model, data, seed, train.cross_entropy, None)
    with torch.random.fork_rng():
        torch.manual_seed(start)
        made = cast(object, training(data))
    if not isinstance(made, nn.Module):
        raise ValueError(f"recipe: expected a function that returns a trained nn.Module, got {type(made).__name__}")
    return made.to(device).eval()


def _taught(
    lesson: Lesson,
    model: nn.Module,
    data: Rows,
    seed: int,
    loss: train.LossPerRow,
    tick: Callable[[float, float], None] | None,
) -> nn.Module:
    return train.fit(
        model,
        data,
        loss=loss,
        epochs=lesson.epochs,
        batch=lesson.batch,
        rate=lesson.rate,
        decay=lesson.decay,
        seed=seed,
        tick=tick,
    )


def _answers(model: nn.Module, job: _Job) -> Tensor:
    """What a model says of every row in every view: log-probabilities `(N, Q, K)`."""
    parts: list[Tensor] = []
    with torch.no_grad(), frozen(model):
        for x, _ in batches(job.data, 1024):
            seen = [model(view).float().log_softmax(1).cpu() for view in views(x.to(job.device), job.asked)]
            parts.append(torch.stack(seen, 1))
    return torch.cat(parts)


def _name(job: _Job, model: int) -> str:
    """The file of a model's answers, named by what decides them as far as it is known here."""
    lesson = job.training
    parts: dict[str, object] = {
        "data": fingerprint_tensors({"x": job.data[0], "y": job.data[1], "held": job.held[model]}),
        "asked": [job.asked, job.seed, model],
        "code": [inspect.getsource(train), inspect.getsource(inspect.getmodule(farm) or train), torch.__version__],
    }
    if isinstance(lesson, Lesson):
        parts["start"] = fingerprint_model(train.started(lesson.net, job.start(model)))
        parts["lesson"] = [lesson.epochs, lesson.batch, lesson.rate, lesson.decay]
    return f"shadow-{fingerprint(parts)}.npy"


def _kept(answers: Tensor, path: Path) -> Tensor:
    content = io.BytesIO()
    np.save(content, answers.numpy(), allow_pickle=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.getvalue())
    kept = _read(path, (answers.shape[0], answers.shape[1]))
    if kept is None:
        raise ValueError(f"expected to read what was written to {path}, got something else: is the disk full?")
    return kept


def _read(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """The answers in a file, mapped into memory; None if it is not there, damaged, or of other rows."""
    try:
        answers = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    sound = isinstance(answers, np.memmap) and answers.dtype == np.float32 and answers.ndim == 3
    whole = sound and answers.shape[:2] == shape and bool(np.isfinite(answers).all())
    return torch.from_numpy(answers) if whole else None
