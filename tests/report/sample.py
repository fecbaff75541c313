"""A report like the one an audit writes: several findings in every state, with figures. The numbers are made up."""

from __future__ import annotations

from functools import cache

import torch

from buckler.findings import Finding, NotMeasured, Report, Severity, because, rules, severity
from buckler.report.figures import bars, histogram, security_curve
from buckler.report.tiles import examples
from buckler.stats import Estimate, difference, median, share
from buckler.threat import Threat
from buckler.trial import Check, Cost

ROWS = 360
TAGS = (
    "atlas:AML.T0043.000@5.6.0",
    "atlas:AML.T0015@5.6.0",
    "nist-ai-100-2:NISTAML.022@e2025",
    "owasp-ml:ML01@2023",
    "cwe:1039@4.17",
)


def rate(hits: int, of: str = "robust", n: int = ROWS) -> Estimate:
    return share(torch.arange(n) < hits, of)


def images(rows: int = 6, side: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Blurred strokes that look a little like digits, and the same with a checkered change."""
    generator = torch.Generator().manual_seed(1)
    clean = torch.zeros(rows, 1, side, side)
    for row in range(rows):
        x = side // 2
        for y in range(1, side - 1):
            x = min(side - 2, max(1, x + int(torch.randint(-1, 2, (), generator=generator))))
            clean[row, 0, y, x] = 1
            clean[row, 0, y, x - 1 :: 2] += 0.2 * torch.rand((), generator=generator)
    noise = torch.rand(clean.shape, generator=generator).round() * 2 - 1
    return clean.clamp(0, 1), (clean + 0.1 * noise).clamp(0, 1)


@cache
def findings() -> tuple[Finding, ...]:
    strongest = rate(47)
    radii = [0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12]
    clean, moved = images()
    generator = torch.Generator().manual_seed(2)
    white = Finding(
        id="evasion/white-box/linf",
        title="Small changes to an input turn most answers",
        state="found",
        severity=severity("evasion.robust_accuracy", strongest),
        because=because("evasion.robust_accuracy", strongest),
        claim="An adversary who knows the weights and may change a pixel by at most 0.1 leaves 13% of answers correct.",
        cell=("queries", "integrity"),
        estimates={
            "robust accuracy at linf:0.1": strongest,
            "accuracy without an attack": rate(349, "clean"),
            "smallest change that turns a row": median(torch.rand(ROWS, generator=generator) * 0.12, "distance"),
        },
        threat=Threat("weights", "input", "linf:0.1", "any wrong label", TAGS),
        checks=(
            Check("Gradients are alive.", True, "None of 360 rows has a zero gradient.", 0.0),
            Check("A wider limit wins.", True, "With no limit every row is turned.", 1.0),
            Check("The loss rises.", True, "It rose on 358 of 360 rows."),
            Check("Transfer does not win.", False, "Attacks made on a copy turned 2 rows that this one did not.", 2.0),
        ),
        figures=(
            security_curve(
                {
                    "autoattack": (radii, [rate(h) for h in (349, 310, 251, 170, 96, 47, 21)]),
                    "after trades": (radii, [rate(h) for h in (340, 331, 318, 299, 274, 246, 201)]),
                },
                certified=(radii, [rate(h, "certified") for h in (349, 120, 22, 0, 0, 0, 0)]),
                mark=0.1,
                axis="radius (linf)",
            ),
            bars({"pgd": rate(61), "apgd": rate(52), "fab": rate(58), "square": rate(118), "all, per row": strongest}),
            examples(clean, moved, [3, 8, 1, 7, 0, 4], [8, 2, 1, 2, 6, 9]),
        ),
        remedy="Train against the attack; trades keeps most of the accuracy.",
        remedy_methods=("evasion/trades", "evasion/madry"),
        remedied={
            "robust accuracy at linf:0.1": rate(246),
            "gain on the same rows": difference(
                (torch.arange(ROWS) < 201).int() - (torch.arange(ROWS) > 357).int(), "gain"
            ),
        },
        tags=TAGS,
        cost=Cost(184_220, 171_904, 0, 38.2, 611_000_000),
        trials=("3f9a0c1d22e8b7a4",),
        reproduce="buckler run evasion/autoattack --subject buckler.toml --ball linf:0.1 --seed 0",
    )
    asked = rate(118)
    black = Finding(
        id="evasion/black-box/linf",
        title="Questions alone are enough to turn answers",
        state="found",
        severity=severity("evasion.black_box_accuracy", asked),
        because=because("evasion.black_box_accuracy", asked),
        claim="An adversary who only sees scores turns two answers in three within 5,000 questions for each input.",
        cell=("queries", "integrity"),
        estimates={"robust accuracy at linf:0.1": asked},
        threat=Threat("scores", "input", "linf:0.1, 5000 queries", "any wrong label", TAGS[1:]),
        checks=(Check("The budget was kept.", True, "No row asked more than 5,000 questions."),),
        remedy="Answer with labels only, and limit how often one client may ask.",
        tags=TAGS[1:],
        cost=Cost(queries=1_204_011, seconds=61),
        trials=("77aa31c0d9e04b12",),
        reproduce="buckler run evasion/square --subject buckler.toml --ball linf:0.1 --queries 5000 --seed 0",
    )
    copied = share(torch.arange(ROWS) < 262, "agreement")
    theft = Finding(
        id="theft/extraction",
        title="A usable copy can be made from answers",
        state="found",
        severity=severity("theft.agreement", copied),
        because=because("theft.agreement", copied),
        claim="A network trained on 2,000 answers agrees with the model on 73% of test rows.",
        cell=("weights", "confidentiality"),
        estimates={"agreement with the model": copied},
        tags=("atlas:AML.T0024.002@5.6.0", "nist-ai-100-2:NISTAML.031@e2025", "owasp-ml:ML05@2023"),
        cost=Cost(queries=2000, seconds=9.4),
    )
    overview = Finding(
        id="theft/overview",
        title="All copies in one table",
        state="found",
        claim="Two copies were made.",
        cell=("queries", "availability"),
        grid=(("copy", "agreement"), ("by knockoff", "73%"), ("by chance", "")),
    )
    why = Finding(
        id="evasion/mechanism",
        title="Why: the boundary runs close to most rows",
        state="clear",
        claim="Half of all rows lie within 0.06 of a wrong answer, and the model is close to linear out to there.",
        cell=("training", "integrity"),
        estimates={"median margin": median(torch.rand(ROWS, generator=generator) * 0.12, "margin")},
        figures=(
            histogram(
                {
                    "margin": torch.rand(ROWS, generator=generator) * 0.12,
                    "local linearity": torch.rand(ROWS, generator=generator) ** 0.2,
                    "gradient norm": torch.exp(torch.randn(ROWS, generator=generator) * 2 - 3),
                    "curvature": torch.exp(torch.randn(ROWS, generator=generator)),
                }
            ),
        ),
        cost=Cost(3_600, 3_600, 0, 1.2),
    )
    sponge = Finding(
        id="evasion/energy",
        title="Inputs that cost more to answer",
        state="clear",
        claim="No input takes measurably longer than another.",
        cell=("queries", "availability"),
        estimates={"rows slower than twice the median": rate(0, "slow")},
    )
    files = Finding(
        id="supply/files",
        title="What is in the weight file",
        state="not measured",
        claim="The model came from a Python function, so there was no file to scan.",
        cell=("weights", "integrity"),
    )
    return white, black, theft, overview, why, sponge, files


def sample(**changes: object) -> Report:
    content: dict[str, object] = {
        "name": "shop-classifier",
        "created": "2026-11-21T10:12:41+00:00",
        "subject": {
            "name": "shop-classifier",
            "file": "models/shop.safetensors",
            "access": "weights",
            "model": "9c2f11aa03de7716",
            "data": "0bb1d7e2a4c85f39",
            "rows": "360 of 360",
        },
        "plan": {"name": "quick", "budget": "5 min", "seed": 0},
        "gate": Severity.high,
        "findings": findings(),
        "not_measured": (
            NotMeasured("membership", "no training data was named in buckler.toml", ("data", "confidentiality")),
            NotMeasured("poisoning", "no recipe was named, so nothing could be trained again", ("data", "integrity")),
            NotMeasured("transfer from a larger model", "the budget of 5 minutes was spent"),
        ),
        "trials": (
            {
                "method": "evasion/autoattack",
                "status": "ok",
                "seed": 0,
                "params": {"ball": "linf:0.1", "stop": True},
                "fingerprint": "3f9a0c1d22e8b7a4",
            },
            {
                "method": "evasion/square",
                "status": "inconclusive",
                "reason": "the budget ended before 11 rows were settled",
                "seed": 0,
                "params": {"ball": "linf:0.1", "queries": 5000, "share": 0.05},
                "fingerprint": "77aa31c0d9e04b12",
            },
        ),
        "severities": {path: rule.record() for path, rule in rules().items()},
        "versions": {"buckler": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "machine": "x86_64, 2 cores"},
        "seconds": 131.4,
    }
    return Report(**{**content, **changes})  # pyright: ignore[reportArgumentType]
