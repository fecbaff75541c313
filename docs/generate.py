"""Write docs/methods.md from the cards of all methods, and the README's numbers from the benchmark's results.

`python docs/generate.py`, or `make docs`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from buckler.catalog import Card, cards
from buckler.stats import mean

KINDS = {
    "evade": "Attacks",
    "certify": "Certificates",
    "loss": "Defences by training",
    "guard": "Guards",
    "probe": "Probes",
    "extract": "Extraction",
    "poison": "Attacks on training data",
    "implant": "Implants",
    "sift": "Sifting of training rows",
    "inspect": "Inspection of models",
    "repair": "Repairs",
    "cultivate": "Training that withstands poison",
    "infer": "Membership inference",
    "guess": "Inference of attributes and properties",
    "reconstruct": "Reconstruction",
    "protect": "Training that gives little away",
    "audit": "Audits of privacy",
    "unlearn": "Unlearning",
    "own": "Ownership",
    "watch": "Detection of queries",
    "pretrain": "Pre-training",
    "bag": "Pre-training in parts that vote",
}
PAGE = Path(__file__).parent / "methods.md"
README = Path(__file__).parents[1] / "README.md"
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "evasion.json"
SECTIONS = {
    "pgd": "PGD-100",
    "autoattack": "AutoAttack, standard",
    "square": "Square, {queries} queries",
    "minimum_norm": "",
    "hop_skip_jump": "HopSkipJump l2, {queries} queries",
}
DLP = Path(__file__).parent / "dlp.md"
ADAPTIVE = ("slow_poison", "low_frequency", "smooth_patch", "sharpened_wanet", "half_sharpened_wanet")
DETECTION = RESULTS.with_name("detection-fashion-mnist.json")
POISONING = RESULTS.with_name("poisoning-fashion-mnist.json")
SPEED = RESULTS.with_name("poisoning-speed.json")
PRIVACY = RESULTS.with_name("privacy.json")
THEFT = RESULTS.with_name("theft.json")
ENCODERS = RESULTS.with_name("encoders.json")
TEN = Path(__file__).parent / "encoders.md"


def text() -> str:
    known = cards()
    lines = ["# Methods", "", "Made from the source by `make docs`; edit the method's docstring instead.", ""]
    for area in sorted({card.area for card in known}):
        here = [card for card in known if card.area == area]
        lines += [f"## {area}", "", "| method | kind | holds | title |", "|---|---|---|---|"]
        lines += [f"| [{c.path}](#{anchor(c)}) | {c.kind} | {c.sees} | {escaped(c.title)} |" for c in here]
        for kind in dict.fromkeys([*KINDS, *(card.kind for card in here)]):
            if any(card.kind == kind for card in here):
                lines += ["", f"### {KINDS.get(kind, kind.capitalize())}"]
                lines += [line for card in here if card.kind == kind for line in entry(card)]
        lines.append("")
    return "\n".join(lines)


def readme() -> str:
    """The README with its tables of numbers made anew from the benchmarks' results."""
    page = between(README.read_text("utf8"), "benchmarks", numbers(json.loads(RESULTS.read_text("utf8"))))
    page = between(page, "poisoning", summary(json.loads(POISONING.read_text("utf8"))["trials"]))
    page = between(page, "detection", detection(json.loads(DETECTION.read_text("utf8"))["trials"]))
    page = between(page, "speed", training_speed(json.loads(SPEED.read_text("utf8"))))
    page = between(page, "privacy", leaks(json.loads(PRIVACY.read_text("utf8"))))
    return between(page, "theft", copies(json.loads(THEFT.read_text("utf8"))["runs"]))


def training_speed(record: dict[str, Any]) -> str:
    """Training on poisoned rows, beside the field's usual recipe."""
    lines = ["| training | seconds | ratio | accuracy | attack success |", "|---|---|---|---|---|"]
    for side, found in record["median"].items():
        shares = f"{100 * found['accuracy']:.1f} | {100 * found['attack_success']:.1f}"
        lines.append(f"| {side} | {found['seconds']:.0f} | {record['ratio'][side]:.1f}x | {shares} |")
    rounds = len(record["rounds"]["buckler"])
    return "\n".join([*lines, "", f"Medians of {rounds} rounds with {record['threads']} thread; two shared cores."])


def leaks(record: dict[str, Any]) -> str:
    """What attacks find with the same shadow models, how long these take, and a step with differential privacy."""
    lines = ["| attack | area under the curve | found at 1 % false alarms | at 0.1 % |", "|---|---|---|---|"]
    for name, found in record["lira"].items():
        if isinstance(found, dict):
            shares = (_between(found[key], 100) for key in ("found_at_0.01", "found_at_0.001"))
            lines.append(f"| {name} | {found['auc']['value']:.3f} | {' | '.join(shares)} |")
    lines += ["", f"{record['lira']['case']}; per cent, {record['lira']['null']}.", ""]
    lines += ["| shadow models | plain loop | one by one | stacked | processes | ratio |", "|---|---|---|---|---|---|"]
    for name, case in record["farm"].items():
        ways = [f"{case[how]['seconds']:.1f} s" for how in ("plain loop", "sequential", "stacked", "processes")]
        many = f"{case['shadows']} x {name}, {case['rows']} rows, {case['epochs']} epochs"
        lines.append(f"| {many} | {' | '.join(ways)} | {case['ratio']:.2f}x |")
    private = record["dp"]
    lines += ["", "| DP-SGD | seconds per step | beside `dp_sgd` |", "|---|---|---|"]
    for name, seconds in private["seconds"].items():
        lines.append(f"| {name} | {seconds:.3f} | {seconds / private['seconds']['dp_sgd']:.2f}x |")
    return "\n".join([*lines, "", f"{private['case']}."])


def copies(runs: dict[str, Any]) -> str:
    """How copies agree with the model that was asked, by thief, by detail of the answers, and through guards."""
    lines = ["| thief | 100 queries | 300 | 1,000 | transferred |", "|---|---|---|---|---|"]
    for name, found in runs.items():
        if "fidelity_100" in found:
            at = [_between(found[f"fidelity_{queries}"], 100) for queries in (100, 300, 1000)]
            lines.append(f"| {name} | {' | '.join(at)} | {_between(found['transferred'], 100)} |")
    lines += ["", "| knockoff hears, with 1,000 queries | agreement | transferred |", "|---|---|---|"]
    for name, found in runs.items():
        if name.startswith("knockoff of ") or name == "knockoff with noise":
            what = name.removeprefix("knockoff of ").replace("knockoff with noise", "scores, asking about noise")
            lines.append(f"| {what} | {_between(found['fidelity'], 100)} | {_between(found['transferred'], 100)} |")
    lines += ["", "| guard, 1,000 queries | knockoff | a thief on labels | accuracy |", "|---|---|---|---|"]
    first = next(found for found in runs.values() if "guarded_accuracy" in found)
    plain = [_between(first[name], 100) for name in ("fidelity_undefended", "unguarded_accuracy")]
    lines.append(f"| none | {plain[0]} |  | {plain[1]} |")
    for name, found in runs.items():
        if "guarded_accuracy" in found:
            each = [_between(found[key], 100) for key in ("fidelity", "fidelity_adaptive", "guarded_accuracy")]
            lines.append(f"| {name} | {' | '.join(each)} |")
    return "\n".join(lines)


def ten() -> str:
    """The page of the ten problems with the tables of the benchmark's run."""
    record = json.loads(ENCODERS.read_text("utf8"))
    page = between(TEN.read_text("utf8"), "figures", figures(record))
    return between(page, "audit", problems(record["audit"])) if "audit" in record else page


def problems(record: dict[str, Any]) -> str:
    """The table of an audit, as the audit wrote it."""
    head, *rows = record["grid"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(escaped(cell) for cell in row)} |" for row in rows]
    return "\n".join(
        [
            *lines,
            "",
            f"{record['trials']} trials in {record['seconds'] / 60:.1f} minutes, `--jobs {record['jobs']}`.",
        ]
    )


def figures(record: dict[str, Any]) -> str:
    """Every estimate of the cases that were run with several seeds, and what was measured beside them."""
    lines = ["| case | seeds | what | mean | each seed |", "|---|---|---|---|---|"]
    for part in ("worth", "attacks", "overtrained", "repairs", "tokens"):
        for name, case in record.get(part, {}).items():
            for key in FIGURES.get(name.split(" ")[0].rstrip(","), ()):
                if key in case["mean"]:
                    each = ", ".join(
                        f"{value:.3g} [{low:.3g}, {high:.3g}]" for value, low, high in case["estimates"][key]
                    )
                    what = key.replace("_", " ")
                    lines.append(f"| {name} | {len(case['seeds'])} | {what} | {case['mean'][key]:.3g} | {each} |")
    if "detection" in record:
        found = record["detection"]
        clean, bad = (f"{min(found[key]):.2f} to {max(found[key]):.2f}" for key in ("clean", "backdoored"))
        area = "{:.3g} [{:.3g}, {:.3g}]".format(*found["area"])
        lines += [
            "",
            f"DECREE on {found['case']}: scores of clean encoders {clean}, of backdoored ones {bad}; area under the "
            f"curve {area}; flagged {found['flagged clean']} of {len(found['clean'])} clean and "
            f"{found['flagged backdoored']} of {len(found['backdoored'])} backdoored.",
        ]
    if "throughput" in record:
        speed = record["throughput"]
        rows = "; ".join(f"{name} {many:,}" for name, many in speed["rows a second"].items())
        times = "; ".join(f"{name} {many}" for name, many in speed["ratios"].items())
        lines += ["", f"Pre-training, rows a second: {rows}. Buckler is so many times as fast as: {times}."]
    return "\n".join(lines)


REPAIRED = ("success", "spared_success", "adaptive_success", "adaptive_spared_success", "cost")
FIGURES = {
    "simclr": ("correct", "digits_correct", "few_correct", "untrained_correct", "untrained_few_correct"),
    "moco": ("correct", "few_correct"),
    "simsiam": ("correct", "few_correct"),
    "bad_encoder": (
        "success",
        "pairs_success",
        "digits_success",
        "control_success",
        "kept",
        "pairs_kept",
        "digits_kept",
    ),
    "stolen_encoder": (
        "accuracy",
        "ratio_copy_300",
        "ratio_copy_1000",
        "ratio_copy_1000_few",
        "ratio_alone_few",
        "share_paid",
    ),
    "adversarial_contrastive": ("known_correct", "control_known_correct", "gained", "kept"),
    "drupe": ("success", "control_success", "pairs_success", "pairs_control_success", "kept"),
    "dp_rotation": ("few_correct", "untrained_few_correct", "plain_few_correct", "auc", "plain_auc"),
    "poisoned_encoder": ("success", "control_success"),
    "encoder_mi": ("auc", "control_auc", "stopped_0.1_auc"),
    "data_tracing": ("traced", "false"),
    "continued_pretraining": REPAIRED,
    "fine_pruning": REPAIRED,
    "sponge": ("pruned_factor", "capped_factor", "full_correct", "exit_correct", "capped_correct"),
}
"""Of each case of the benchmark of encoders, what its table shows."""


def _between(found: dict[str, float], times: float) -> str:
    return f"{times * found['value']:.1f} [{times * found['low']:.1f}, {times * found['high']:.1f}]"


def detection(trials: list[dict[str, Any]], target: int = 0) -> str:
    """Of how many models an inspector names the class that was aimed at, under its rule and under the paper's."""
    lines = ["| `neural_cleanse` | models | target class found | another class flagged |", "|---|---|---|---|"]
    for scale, name in (("log", "as it is"), ("plain", '`scale="plain"`, the paper\'s rule')):
        for attack in dict.fromkeys(t["attack"] for t in trials):
            flagged = [t["flagged"][scale] for t in trials if t["attack"] == attack]
            hit = "" if attack == "clean" else f"{sum(target in classes for classes in flagged)} of {len(flagged)}"
            wrong = sum(bool(set(classes) - (set() if attack == "clean" else {target})) for classes in flagged)
            lines.append(f"| {name} | {attack} | {hit} | {wrong} of {len(flagged)} |")
    return "\n".join(lines)


def between(page: str, name: str, text: str) -> str:
    """The page with what stands between its two marks of this name replaced."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"


def summary(trials: list[dict[str, Any]], share: float = 0.05) -> str:
    """One line per defence that met every attack: the means over attacks and seeds at one share, and the attack that it
    withstands least."""
    lines = [
        "| training | attacks x seeds | accuracy | attack success | at worst | DER |",
        "|---|---|---|---|---|---|",
    ]
    known = [t for t in trials if t["share"] == share and ":" not in t["defence"] and t["attack"] not in ADAPTIVE]
    ranks = {"none": 0, "dlp": 1}
    for defence in sorted({t["defence"] for t in known}, key=lambda name: (ranks.get(name, 2), name)):
        same = [t for t in known if t["defence"] == defence]
        attacks = dict.fromkeys(t["attack"] for t in same)
        if len(attacks) < len({t["attack"] for t in known}):
            continue
        by = {name: [t["attack_success"] for t in same if t["attack"] == name] for name in attacks}
        worst = max(by, key=lambda name: sum(by[name]) / len(by[name]))
        cells = [_mean(same, "accuracy", 100), _mean(same, "attack_success", 100)]
        cells += [f"{100 * sum(by[worst]) / len(by[worst]):.1f} ({worst})", _mean(same, "der", 1)]
        lines.append(f"| {defence} | {len(attacks)} x {len({t['seed'] for t in same})} | {' | '.join(cells)} |")
    return "\n".join(lines)


def dlp() -> str:
    """DLP's page with its table made anew from the benchmark's results."""
    return between(DLP.read_text("utf8"), "poisoning", matrix(json.loads(POISONING.read_text("utf8"))["trials"]))


def matrix(trials: list[dict[str, Any]]) -> str:
    """Three tables: attacks against defences, attacks made against `dlp`, and `dlp` with parts of it left out."""
    ablations = [t for t in trials if ":" in t["defence"]]
    parts = {(t["attack"], t["share"], t["seed"]) for t in ablations}
    whole = [t for t in trials if t["defence"] in ("none", "dlp") and (t["attack"], t["share"], t["seed"]) in parts]
    plain = [t for t in trials if ":" not in t["defence"] and t["attack"] not in ADAPTIVE]
    return "\n".join(
        [
            "Fashion-MNIST, 8,000 training rows, ResNet-8 with a first stride of 2, 2,000 test rows;",
            "`benchmarks/poisoning.py` says how each was run. Per cent; the mean over seeds and its 95 % interval.",
            *["", *_table(plain)],
            *["", "### Attacked by one who has read it", ""],
            *_table([t for t in trials if t["attack"] in ADAPTIVE]),
            *["", "### With parts of it left out", ""],
            *_table([*whole, *ablations]),
        ]
    )


def _table(trials: list[dict[str, Any]]) -> list[str]:
    """One line per attack, share and defence."""
    lines = [
        "| attack | share | of its class | defence | seeds "
        "| accuracy | attack success | recovered | separation | DER |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    keys = dict.fromkeys((t["attack"], t["share"], t["defence"]) for t in trials)
    ranks = {"none": 0, "dlp": 1}
    for attack, share, defence in sorted(
        keys, key=lambda key: (key[0] != "clean", -key[1], key[0], ranks.get(key[2], 2), key[2])
    ):
        same = [t for t in trials if (t["attack"], t["share"], t["defence"]) == (attack, share, defence)]
        cells = [_mean(same, name, 100) for name in ("accuracy", "attack_success", "recovered_accuracy")]
        more = [_mean(same, "separation", 1), _mean(same, "der", 1)]
        rate, of = (f"{100 * share:g} %", f"{100 * same[0]['class_rate']:.0f} %") if share else ("none", "")
        lines.append(f"| {attack} | {rate} | {of} | {defence} | {len(same)} | {' | '.join([*cells, *more])} |")
    return lines


def _mean(trials: list[dict[str, Any]], name: str, times: float) -> str:
    values = torch.tensor([times * t[name] for t in trials if name in t], dtype=torch.float64)
    digits = 1 if times > 1 else 3
    if len(values) == 0:
        return ""
    if len(values) == 1:
        return f"{float(values):.{digits}f}"
    found = mean(values, name)
    return f"{found.value:.{digits}f} [{max(found.low, 0):.{digits}f}, {min(found.high, times):.{digits}f}]"


def numbers(record: dict[str, Any]) -> str:
    machine, versions = record["machine"], record["versions"]
    lines = [
        f"Fashion-MNIST, ResNet-8; medians on {machine['cores']} shared cores ({machine['processor']}, "
        f"{machine['threads']} threads, torch {versions['torch']}, {machine['date']}), both sides "
        "on the same rows in one process, in turn.",
        "",
        "| work | model | radius | rows x rounds | Buckler | fastest peer | ratio "
        "| robust accuracy, or median size: Buckler | peer |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for section, title in SECTIONS.items():
        for case, one in record.get(section, {}).items():
            lines.append(_row(section, title.format(queries=one.get("queries")), case, one))
    return "\n".join([*lines, *(f"\n{note}" for note in record.get("notes", []))])


def _row(section: str, title: str, case: str, one: dict[str, Any]) -> str:
    own = one["results"]["buckler"]
    peers = {name: result for name, result in one["results"].items() if not name.startswith("buckler")}
    name, peer = min(peers.items(), key=lambda item: item[1]["seconds"])
    work, _, model = case.rpartition(" ") if section == "minimum_norm" else (title, "", case.partition(" ")[0])
    radius = case.partition(" ")[2] if section in ("pgd", "autoattack", "square") else "none"
    key = "robust_accuracy" if radius != "none" else "median_size"
    ratio = peer["seconds"] / own["seconds"]
    return (
        f"| {work} | {model} | {radius} | {one['rows']} x {one['rounds']} | "
        f"{own['seconds']:.3g} s | {name}, {peer['seconds']:.3g} s | {ratio:.2g}x | "
        f"{own[key]:.3g} | {peer[key]:.3g} |"
    )


def anchor(card: Card) -> str:
    """As GitHub makes it from the heading."""
    return card.path.replace("/", "")


def entry(card: Card) -> list[str]:
    lines = ["", f"#### {card.path}", "", f"[{card.title}]({card.reference}).", "", card.text, "", card.summary, ""]
    if card.knobs:
        lines += ["| flag | type | default |", "|---|---|---|"]
        for knob in card.knobs:
            default = "must be given" if knob.default is None else f"`{knob.default}`"
            lines.append(f"| `{knob.flag}` | `{escaped(knob.type)}` | {default} |")
        lines.append("")
    return [*lines, f"Tags: {', '.join(card.tags)}."]


def escaped(value: str) -> str:
    return value.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(text(), "utf8")
    README.write_text(readme(), "utf8")
    DLP.write_text(dlp(), "utf8")
    TEN.write_text(ten(), "utf8")
