"""Attack speed and strength, side by side with the libraries that people use, in one process on the same rows.

    python benchmarks/evasion.py [--quick] [--only pgd,autoattack,square,minimum_norm,hop_skip_jump]

Two residual networks are trained on Fashion-MNIST, one as usual and one adversarially at radius 0.1, and kept in the
cache folder. Buckler and each peer then attack the same test rows in turn, for several rounds; every example is judged
by one judge, on the float32 model: right before, wrong after, in [0, 1] and in the ball. Times are medians over rounds,
ratios are against Buckler's. With a GPU the network is a ResNet-18 on 3 x 32 x 32 versions of the same images. Writes
benchmarks/results/evasion.json (evasion-cuda.json on a GPU); peers that are not installed are left out and named.
Install them with `pip install -e '.[bench]'`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from buckler.combine import quickened
from buckler.data import cache_folder, fashion_mnist
from buckler.method import Method
from buckler.nets import ResNet
from buckler.target import metered
from buckler.threat import Ball
from buckler.train import fit

RESULTS = Path(__file__).parent / "results"
SLOW = ("adversarial-robustness-toolbox",)
"""Run in the first round only: several times slower than the fastest peer, whose ratio is what is reported."""
PEERS = ("pyautoattack", "foolbox", "torchattacks", "adversarial-robustness-toolbox")

Runner = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""One attack of one library: model, rows, labels -> changed rows."""


@dataclass(frozen=True)
class Bench:
    """What is attacked, on which device, and whether a few minutes must do."""

    device: torch.device
    models: dict[str, nn.Module]
    x: Tensor
    y: Tensor
    quick: bool

    def rows(self, many: int) -> tuple[Tensor, Tensor]:
        return self.x[:many], self.y[:many]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rows, one round, one radius: a few minutes")
    parser.add_argument("--only", default=",".join(SECTIONS), help="which sections, separated by commas")
    parser.add_argument("--train-only", action="store_true", help="train and cache the two networks, then stop")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    wanted = options.only.split(",")
    if unknown := set(wanted) - set(SECTIONS):
        parser.error(f"unknown section {sorted(unknown)[0]!r}, expected some of {', '.join(SECTIONS)}")
    bench = prepare(options.quick)
    if options.train_only:
        return
    name = "evasion-cuda" if bench.device.type == "cuda" else "evasion"
    path = RESULTS / f"{name}{'-quick' if options.quick else ''}.json"
    record = json.loads(path.read_text("utf8")) if path.is_file() else {}
    record["machine"], record["versions"] = machine(bench), versions()
    record["accuracy"] = {kind: clean_accuracy(bench, model) for kind, model in bench.models.items()}
    for section in wanted:
        started = time.perf_counter()
        record[section] = SECTIONS[section](bench)
        print(f"{section}: {time.perf_counter() - started:.0f} s", flush=True)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n", "utf8")
    print(f"written to {path}")


# ---------------------------------------------------------------------------------------------- what is attacked


def prepare(quick: bool) -> Bench:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x, y = (part.to(device) for part in fashion_mnist(False))
    models = {kind: network(kind, device) for kind in ("standard", "adversarial")}
    return Bench(device, models, images(x, device), y, quick)


def images(x: Tensor, device: torch.device) -> Tensor:
    """Float images in [0, 1]; on a GPU padded and repeated to the shape of CIFAR-10."""
    x = x.float() / 255
    return x if device.type == "cpu" else nn.functional.pad(x, (2, 2, 2, 2)).repeat(1, 3, 1, 1)


def network(kind: str, device: torch.device) -> nn.Module:
    """The trained network, from the cache or made now."""
    from buckler.evasion.madry import madry

    big = device.type == "cuda"
    path = cache_folder() / f"benchmark-{kind}-{'resnet18' if big else 'resnet8'}.safetensors"
    if not path.is_file():
        print(f"training the {kind} network, once", flush=True)
        x, y = fashion_mnist(True)
        loss = {} if kind == "standard" else {"loss": partial(madry, ball=Ball("linf", 0.1), steps=2, step=0.75)}
        torch.manual_seed(0)
        model = untrained(big).to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        data = (images(x, device), y)
        tick = partial(progress, kind)
        fit(model, data, epochs=5, batch=256, rate=0.2, tick=tick, **loss)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, path)
    model = untrained(big)
    model.load_state_dict(load_file(path))
    return model.to(device).eval()


def untrained(big: bool) -> ResNet:
    return ResNet(channels=3, width=64, blocks=(2, 2, 2, 2)) if big else ResNet()


def progress(kind: str, done: float, loss: float) -> None:
    if int(100 * done) != int(100 * (done - 32 * 256 / 300_000)) and int(100 * done) % 10 == 0:
        print(f"  {kind} {done:.0%} loss {loss:.3f}", flush=True)


def clean_accuracy(bench: Bench, model: nn.Module) -> float:
    with torch.no_grad():
        answers = torch.cat([model(part).argmax(1) for part in bench.x.split(500)])
    return float((answers == bench.y).float().mean())


# ---------------------------------------------------------------------------------------------- measuring


def race(
    bench: Bench,
    runners: dict[str, Runner],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    rounds: int,
    warm: bool = True,
) -> dict[str, Any]:
    """Every runner in turn, `rounds` times: median seconds, ratio to Buckler's, robust accuracy, median size."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    found: dict[str, Tensor] = {}
    for run in runners.values() if warm else ():
        run(model, x[:2], y[:2])  # imports and first kernels are nobody's speed
    for index in range(rounds):
        for name, run in runners.items():
            if index > 0 and name in SLOW:
                continue
            synchronise(bench)
            started = time.perf_counter()
            found[name] = run(model, x, y).detach().to(x)
            synchronise(bench)
            seconds[name].append(time.perf_counter() - started)
            print(f"    {name}: {seconds[name][-1]:.2f} s", flush=True)
    own = statistics.median(seconds["buckler"])
    results = {name: judged(model, x, y, found[name], ball) for name in runners}
    for name, times in seconds.items():
        results[name] |= {
            "seconds": round(statistics.median(times), 4),
            "all_seconds": [round(value, 4) for value in times],
            "times_buckler": round(statistics.median(times) / own, 2),
        }
    ratios = [value["times_buckler"] for name, value in results.items() if not name.startswith("buckler")]
    return {
        "rows": len(x),
        "rounds": rounds,
        "limit": str(ball),
        "results": results,
        "ratio_to_fastest_peer": min(ratios, default=None),
    }


def judged(model: nn.Module, x: Tensor, y: Tensor, found: Tensor, ball: Ball) -> dict[str, Any]:
    with torch.no_grad():
        right = torch.cat([model(part).argmax(1) for part in x.split(256)]) == y
        wrong = torch.cat([model(part).argmax(1) for part in found.split(256)]) != y
    fooled = right & wrong & ball.contains(x, found)
    size = torch.where(fooled, ball.size(found - x), torch.inf)[right]
    return {
        "robust_accuracy": round(float((right & ~fooled).float().mean()), 4),
        "median_size": round(float(size.median()), 5) if bool(size.median().isfinite()) else None,
    }


def synchronise(bench: Bench) -> None:
    if bench.device.type == "cuda":
        torch.cuda.synchronize()


def machine(bench: Bench) -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if bench.device.type == "cuda" else "cpu",
        "date": time.strftime("%Y-%m-%d"),
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("buckler", *PEERS):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def own(method: Method, ball: Ball, precision: str = "auto") -> Runner:
    """A method of Buckler, on a fast form of the model, every claim judged on the model."""
    quick = quickened(method, precision)  # pyright: ignore[reportArgumentType]
    return lambda model, x, y: quick(model, x, y, ball=ball)


def have(*modules: str) -> bool:
    """Whether a peer can be imported; what it prints or warns about is its own affair."""
    try:
        for module in modules:
            importlib.import_module(module)
    except ImportError:
        return False
    return True


# ---------------------------------------------------------------------------------------------- peers


def foolbox_runner(name: str, bound: float | None = None, **knobs: Any) -> Iterable[tuple[str, Runner]]:
    if not have("foolbox"):
        return

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import foolbox

        attack = getattr(foolbox.attacks, name)(**knobs)
        return attack(foolbox.PyTorchModel(model, (0, 1), device=x.device), x, y, epsilons=bound)[1]

    yield "foolbox", run


def torchattacks_runner(name: str, **knobs: Any) -> Iterable[tuple[str, Runner]]:
    if not have("torchattacks"):
        return

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import torchattacks

        return getattr(torchattacks, name)(model, **knobs)(x, y)

    yield "torchattacks", run


def art_runner(name: str, **knobs: Any) -> Iterable[tuple[str, Runner]]:
    if not have("art.attacks.evasion", "art.estimators.classification"):
        return

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        where = "gpu" if x.is_cuda else "cpu"
        classifier = PyTorchClassifier(
            model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0.0, 1.0), device_type=where
        )
        attack = getattr(evasion, name)(classifier, batch_size=len(x), verbose=False, **knobs)
        return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(x)

    yield "adversarial-robustness-toolbox", run


def pyautoattack_runner(radius: float) -> Iterable[tuple[str, Runner]]:
    # older builds import a function that PyTorch no longer has
    checks = importlib.import_module("torch.autograd.gradcheck")
    if "zero_gradients" not in vars(checks):
        vars(checks)["zero_gradients"] = _zero_gradients
    module = next((name for name in ("pyautoattack", "autoattack") if have(name)), None)
    if module is None:
        return

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        attack = importlib.import_module(module).AutoAttack(
            model, norm="Linf", eps=radius, version="standard", seed=0, device=x.device
        )
        return attack.run_standard_evaluation(x, y, batch_size=250)[0]

    yield "pyautoattack", run


def _zero_gradients(x: Tensor) -> None:
    if x.grad is not None:
        x.grad.detach_()
        x.grad.zero_()


# ---------------------------------------------------------------------------------------------- sections


def pgd(bench: Bench) -> dict[str, Any]:
    """PGD, 100 steps of a fortieth of the radius, one random start."""
    from buckler.evasion.pgd import pgd as attack

    x, y = bench.rows(50 if bench.quick else 200)
    out: dict[str, Any] = {}
    for kind, model in bench.models.items():
        for radius in (0.1,) if bench.quick else (0.1, 0.05, 0.03):
            print(f"  pgd {kind} {radius}", flush=True)
            ball, step = Ball("linf", radius), radius / 40
            art = {"eps": radius, "eps_step": step, "max_iter": 100, "num_random_init": 1}
            runners: dict[str, Runner] = {
                "buckler": own(partial(attack, steps=100), ball),
                **dict(foolbox_runner("LinfPGD", radius, steps=100, rel_stepsize=1 / 40)),
                **dict(torchattacks_runner("PGD", eps=radius, alpha=step, steps=100)),
                **dict(art_runner("ProjectedGradientDescentPyTorch", **art)),
            }
            rounds = 1 if bench.quick or radius < 0.1 else 3
            out[f"{kind} {radius}"] = race(bench, runners, model, x, y, ball, rounds)
    return out


def autoattack(bench: Bench) -> dict[str, Any]:
    """AutoAttack, standard version."""
    from buckler.evasion.autoattack import autoattack as attack

    out: dict[str, Any] = {}
    full = [("standard", 0.1, 200, 3), ("standard", 0.05, 200, 3), ("adversarial", 0.1, 50, 3)]
    full += [("standard", 0.03, 100, 1), ("adversarial", 0.05, 25, 1)]
    quick = [("standard", 0.1, 20, 1), ("adversarial", 0.1, 10, 1)]
    for kind, radius, rows, rounds in quick if bench.quick else full:
        x, y = bench.rows(rows)
        print(f"  autoattack {kind} {radius}", flush=True)
        ball = Ball("linf", radius)
        runners: dict[str, Runner] = {
            "buckler": lambda model, x, y, ball=ball: attack(model, x, y, ball=ball),
            **dict(pyautoattack_runner(radius)),
        }
        out[f"{kind} {radius}"] = race(bench, runners, bench.models[kind], x, y, ball, rounds, warm=False)
    return out


def square(bench: Bench) -> dict[str, Any]:
    """Square Attack at equal queries per row."""
    from buckler.evasion.square import square as attack

    queries = 100 if bench.quick else 1000
    x, y = bench.rows(20 if bench.quick else 100)
    out: dict[str, Any] = {}
    for kind, radius in (("standard", 0.03), ("adversarial", 0.1)):
        print(f"  square {kind} {radius}, {queries} queries", flush=True)
        ball = Ball("linf", radius)
        runners: dict[str, Runner] = {
            "buckler": own(partial(attack, queries=queries), ball),
            **dict(torchattacks_runner("Square", eps=radius, n_queries=queries)),
            **dict(art_runner("SquareAttack", eps=radius, max_iter=queries)),
        }
        out[f"{kind} {radius}"] = race(bench, runners, bench.models[kind], x, y, ball, 1 if bench.quick else 2)
        out[f"{kind} {radius}"]["queries"] = queries
    return out


def minimum_norm(bench: Bench) -> dict[str, Any]:
    """The smallest change that fools, 100 steps each."""
    from buckler.evasion.ddn import ddn
    from buckler.evasion.fmn import fmn

    x, y = bench.rows(20 if bench.quick else 100)
    out: dict[str, Any] = {}
    cases: list[tuple[str, Method, str, str]] = [
        ("fmn linf", fmn, "linf", "LInfFMNAttack"),
        ("fmn l2", fmn, "l2", "L2FMNAttack"),
        ("ddn l2", ddn, "l2", "DDNAttack"),
    ]
    for kind, model in bench.models.items():
        for name, method, norm, peer in cases:
            print(f"  {name} {kind}", flush=True)
            ball = Ball(norm, torch.inf)  # pyright: ignore[reportArgumentType]
            runners: dict[str, Runner] = {
                "buckler": own(partial(method, steps=100), ball, "float32"),
                **dict(foolbox_runner(peer, steps=100)),
            }
            out[f"{name} {kind}"] = race(bench, runners, model, x, y, ball, 1 if bench.quick else 3)
    return out


def hop_skip_jump(bench: Bench) -> dict[str, Any]:
    """HopSkipJump in l2: the peer runs first, its queries per row are Buckler's budget; then with a fifth of them.

    On the standard network only: foolbox raises where its starting noise fools the model on no draw for some row, as it
    does on the adversarial one.
    """
    from buckler.evasion.hop_skip_jump import hop_skip_jump as attack

    x, y = bench.rows(8 if bench.quick else 30)
    steps = 4 if bench.quick else 10
    out: dict[str, Any] = {}
    ball = Ball("l2", torch.inf)
    for kind, model in (("standard", bench.models["standard"]),):
        print(f"  hop_skip_jump {kind}", flush=True)
        peers = dict(foolbox_runner("HopSkipJumpAttack", steps=steps))
        budget = 2000
        for run in peers.values():
            with metered(model) as meter:
                run(model, x, y)
            with torch.no_grad():
                attacked = int((model(x).argmax(1) == y).sum())
            budget = max(1, meter.forwards // max(1, attacked))

        runners: dict[str, Runner] = {
            "buckler": own(partial(attack, queries=budget), ball, "float32"),
            "buckler, a fifth of the queries": own(partial(attack, queries=budget // 5), ball, "float32"),
            **peers,
        }
        out[kind] = race(bench, runners, model, x, y, ball, 1 if bench.quick else 2)
        out[kind]["queries"] = budget
    return out


SECTIONS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    section.__name__: section for section in (pgd, autoattack, square, minimum_norm, hop_skip_jump)
}

if __name__ == "__main__":
    sys.exit(main())
