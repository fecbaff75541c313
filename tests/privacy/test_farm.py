"""The shadow farm: a balanced design, engines that make the same models, answers kept and resumed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from membership_worlds import by_heart, net, noise, normed
from torch import Tensor, nn

from buckler.data import Rows
from buckler.nets import SmallCNN
from buckler.privacy import _farm
from buckler.privacy._farm import Engine, Lesson, Stack, farm, halves, learnt, stackable
from buckler.train import fit, started

LESSON = Lesson(net, epochs=3, batch=16)


@pytest.mark.parametrize(("rows", "models"), [(2, 2), (10, 4), (64, 16)])
def test_every_row_is_in_half_of_the_models_and_every_model_has_half_of_the_rows(rows: int, models: int) -> None:
    held = halves(rows, models, seed=3)
    assert held.shape == (models, rows)
    assert (held.sum(0) == models // 2).all()
    assert (held.sum(1) == rows // 2).all()
    assert torch.equal(held, halves(rows, models, seed=3))


def test_halves_are_drawn_without_a_pattern() -> None:
    held = halves(2000, 8).double()
    assert not torch.equal(held, halves(2000, 8, seed=1).double())
    together = torch.corrcoef(held[::2])  # of different pairs
    assert (together - torch.eye(4, dtype=torch.double)).abs().max() < 0.1
    neighbours = torch.corrcoef(torch.stack([held[0, :-1], held[0, 1:]]))[0, 1]
    assert abs(float(neighbours)) < 0.1


@pytest.mark.parametrize(("rows", "models"), [(5, 4), (4, 3), (0, 2), (4, 0)])
def test_odd_numbers_cannot_be_halved(rows: int, models: int) -> None:
    with pytest.raises(ValueError, match=f"2 or more, got {models} and {rows}"):
        halves(rows, models)


@pytest.mark.parametrize("build", [net, normed])
def test_engines_make_the_same_models(build: Callable[[], nn.Module]) -> None:
    data, held = noise(60), halves(60, 4)
    lesson = Lesson(build, epochs=3, batch=16)
    alone, stacked = (farm(lesson, data, held, engine=engine) for engine in ("sequential", "stacked"))
    for model, (one, other) in enumerate(zip(alone.answers, stacked.answers, strict=True)):
        assert torch.allclose(one, other, atol=1e-3), model
    assert not torch.allclose(alone.answers[0], alone.answers[2], atol=0.1)


@pytest.mark.slow  # a process takes seconds to start
def test_processes_make_the_same_models_as_one() -> None:
    data, held = noise(40), halves(40, 2)
    alone, apart = (farm(by_heart, data, held, engine=engine) for engine in ("sequential", "processes"))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(alone.answers, apart.answers, strict=True))


def drops() -> nn.Module:
    return nn.Sequential(net(), nn.ReLU(), nn.Dropout(0.5))


def nested(engine: Engine) -> tuple[list[Tensor], int]:
    """A farm inside a worker, as an audit runs it with several."""
    farmed = farm(Lesson(drops, epochs=2, batch=16), noise(40), halves(40, 4), engine=engine, workers=2)
    return list(farmed.answers), torch.get_num_threads()


@pytest.mark.slow  # processes that start processes
def test_a_farm_in_a_worker_makes_the_models_that_its_seed_decides() -> None:
    alone, _ = nested("sequential")
    calls = [joblib.delayed(nested)(engine) for engine in ("sequential", "processes")]
    for answers, threads in joblib.Parallel(n_jobs=2, backend="loky")(calls):
        assert threads == 1
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(alone, answers, strict=True))


def test_what_draws_by_chance_is_known_whatever_was_drawn_before() -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        assert _farm.by_chance(drops, noise(40)[0])
        assert not _farm.by_chance(normed, noise(40)[0])


def test_a_network_that_draws_by_chance_is_not_stacked_and_timing_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_farm, "PATIENCE", 0.0)
    lesson, before, threads = Lesson(drops, epochs=2, batch=16), torch.get_rng_state(), torch.get_num_threads()
    found, alone = (farm(lesson, noise(40), halves(40, 4), engine=e, workers=1) for e in ("auto", "sequential"))
    assert all(torch.equal(one, other) for one, other in zip(found.answers, alone.answers, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


@pytest.mark.slow  # and Ray is no dependency
def test_ray_makes_the_same_models_as_one() -> None:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.util.joblib").register_ray()
    ray.init(num_cpus=2, include_dashboard=False)
    data, held = noise(40), halves(40, 4)
    lesson = Lesson(partial(SmallCNN, side=6, width=2, classes=4), epochs=3, batch=16)
    alone = farm(lesson, data, held, engine="sequential")
    try:
        with joblib.parallel_config(backend="ray"):
            apart = farm(lesson, data, held, engine="processes", workers=2)
    finally:
        ray.shutdown()
    assert all(torch.equal(one, other) for one, other in zip(alone.answers, apart.answers, strict=True))


@pytest.mark.parametrize("quickest", ["sequential", "stacked", "processes"])
def test_the_engine_that_takes_least_is_chosen(monkeypatch: pytest.MonkeyPatch, quickest: str) -> None:
    """By the seconds a step takes for each model: of a stack, of one alone, of one beside another."""
    seconds = {"sequential": 2.0, "stacked": 2.1, "processes": 5.0} | {quickest: 1.0}
    names = {(4, 0): "stacked", (1, 0): "sequential", (1, 1): "processes"}
    ran: list[str] = []

    def step(_job: object, models: list[int], threads: int = 0) -> float:
        return seconds[names[len(models), threads]] * (2 if threads else 1)  # two are at work

    def rounds(_job: object, todo: list[int], engine: str, *_: object) -> list[tuple[list[int], list[torch.Tensor]]]:
        ran.append(engine)
        return [([model], [torch.full((8, 1, 2), float(model))]) for model in todo]

    monkeypatch.setattr(_farm, "_step", step)
    monkeypatch.setattr(_farm, "_rounds", rounds)
    monkeypatch.setattr(_farm, "_apart", lambda _workers: lambda calls: [f(*asked) for f, asked, _ in calls])  # pyright: ignore
    farm(Lesson(net, epochs=30, batch=1), noise(8), halves(8, 4), workers=2)
    farm(Lesson(net, epochs=1, batch=8), noise(8), halves(8, 4), workers=2)  # 2 steps of 2.1 s at most: not looked into
    assert ran == [quickest, "stacked"]


@pytest.mark.parametrize("build", [net, normed])
def test_a_farm_that_takes_long_finds_an_engine_that_works(
    monkeypatch: pytest.MonkeyPatch, build: Callable[[], nn.Module]
) -> None:
    monkeypatch.setattr(_farm, "PATIENCE", 0.0)
    data, held = noise(40), halves(40, 4)
    lesson = Lesson(build, epochs=3, batch=16)
    found, alone = (farm(lesson, data, held, engine=engine, workers=1) for engine in ("auto", "sequential"))
    assert all(torch.allclose(one, other, atol=1e-3) for one, other in zip(found.answers, alone.answers, strict=True))


def test_a_model_of_the_farm_is_what_a_plain_loop_makes_of_its_rows() -> None:
    x, y = noise(40)
    held = halves(40, 2)
    shadows = farm(LESSON, (x, y), held, engine="stacked", seed=2)
    rows = held[1].nonzero().squeeze(1)
    rows = rows[torch.randperm(20, generator=torch.Generator().manual_seed(200_007))]
    model = fit(started(net, 200_007), (x[rows], y[rows]), epochs=3, batch=16, seed=2)
    assert torch.allclose(shadows.answers[1].squeeze(1), model(x).log_softmax(1), atol=1e-5)


def test_uint8_rows_are_scaled_in_every_engine() -> None:
    x, y = noise(40)
    data, held = ((x * 255).round().to(torch.uint8), y), halves(40, 2)
    alone, stacked = (farm(LESSON, data, held, engine=engine) for engine in ("sequential", "stacked"))
    plain = farm(LESSON, (data[0].float() / 255, y), held)
    for others in (stacked, plain):
        assert torch.allclose(alone.answers[0], others.answers[0], atol=1e-5)


def test_networks_that_cannot_be_stacked_are_known_and_trained_one_by_one() -> None:
    class Choosy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(36, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.flatten(1)) if float(x.sum()) > 0 else self.layer(x.flatten(1)) * 2

    x, y = noise(40)
    assert stackable(net, x)
    assert stackable(normed, x)
    assert not stackable(Choosy, x)
    shadows = farm(Lesson(Choosy, epochs=1), (x, y), halves(40, 2))
    assert len(shadows.answers) == 2


def test_a_stack_gives_its_networks_back() -> None:
    x, _ = noise(8)
    models = [started(normed, seed).eval() for seed in range(3)]
    stack = Stack(models).eval()
    assert torch.allclose(stack(x.expand(3, *x.shape)), torch.stack([m(x) for m in models]), atol=1e-6)
    again = stack.single(1)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in models[1].state_dict().items())


def test_a_farm_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    data, held, made = noise(40), halves(40, 6), list[int]()

    def counted(rows: Rows, stop: int) -> nn.Module:
        if len(made) == stop:
            raise KeyboardInterrupt
        made.append(len(rows[0]))
        return fit(started(net, 0), rows, epochs=2, batch=16)

    with pytest.raises(KeyboardInterrupt):
        farm(partial(counted, stop=4), data, held, keep=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    second, third = sorted(tmp_path.iterdir())[:2]
    second.write_bytes(b"not what it was")
    np.save(third, np.load(third) * np.float32(np.nan))
    shadows = farm(partial(counted, stop=99), data, held, keep=tmp_path)
    assert len(made) == 4 + 2 + 2
    whole = farm(partial(counted, stop=99), data, held)
    assert all(torch.equal(one, other) for one, other in zip(shadows.answers, whole.answers, strict=True))
    farm(partial(counted, stop=len(made)), data, held, keep=tmp_path)  # trains nothing


def test_other_rows_and_other_lessons_are_other_files(tmp_path: Path) -> None:
    data, held = noise(20), halves(20, 2)
    for lesson, rows, seed in (
        (LESSON, data, 0),
        (Lesson(net, epochs=4, batch=16), data, 0),
        (LESSON, noise(20, 5), 0),
        (LESSON, data, 1),
    ):
        farm(lesson, rows, held, keep=tmp_path, seed=seed)
    assert len(list(tmp_path.iterdir())) == 8


def test_what_is_kept_is_mapped_and_not_held(tmp_path: Path) -> None:
    shadows = farm(LESSON, noise(20), halves(20, 2), keep=tmp_path, asked=2)
    assert [answers.shape for answers in shadows.answers] == [(20, 2, 4)] * 2
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        assert mapped.read_text().count(str(tmp_path)) == 2
    plain = farm(LESSON, noise(20), halves(20, 2), asked=2)
    assert all(torch.equal(one, other) for one, other in zip(shadows.answers, plain.answers, strict=True))


def test_a_training_that_ignores_its_rows_is_found_out() -> None:
    with pytest.raises(ValueError, match="got one model from two halves"):
        farm(lambda _: started(net, 0), noise(20), halves(20, 2))


def test_what_is_no_model_and_what_answers_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="got int"):
        farm(lambda _: 3, noise(20), halves(20, 2))  # pyright: ignore

    def broken(data: Rows) -> nn.Module:
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
        nn.init.constant_(model[1].weight, float("nan"))  # pyright: ignore
        return model

    with pytest.raises(ValueError, match="finite answers of shadow 0"):
        farm(broken, noise(20), halves(20, 2))
    with pytest.raises(ValueError, match="only it knows its steps"):
        farm(by_heart, noise(20), halves(20, 2), engine="stacked")


def test_a_training_of_the_user_draws_by_the_seed_alone() -> None:
    def drawing(data: Rows) -> nn.Module:
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
        return fit(model, data, epochs=1)

    torch.manual_seed(1)
    one = learnt(drawing, noise(20), start=3)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    other = learnt(drawing, noise(20), start=3)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(one.state_dict()[key], value) for key, value in other.state_dict().items())


def test_progress_is_told() -> None:
    told: list[float] = []
    farm(LESSON, noise(20), halves(20, 4), engine="sequential", tick=told.append)
    assert told == [0.25, 0.5, 0.75, 1.0]
    assert _farm.STACK >= 2
