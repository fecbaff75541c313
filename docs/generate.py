"""Write docs/methods.md from the cards of all methods, and the README's numbers from the benchmark's results.

`python docs/generate.py`, or `make docs`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from buckler.catalog import Card, cards

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
BEGIN, END = "<!-- benchmarks -->", "<!-- end of benchmarks -->"
DLP = Path(__file__).parent / "dlp.md"
POISONING = RESULTS.with_name("poisoning-fashion-mnist.json")


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
    """The README with its table of numbers made anew from the benchmark's results."""
    before, _, rest = README.read_text("utf8").partition(BEGIN)
    return f"{before}{BEGIN}\n{numbers(json.loads(RESULTS.read_text('utf8')))}\n{END}{rest.partition(END)[2]}"


def dlp() -> str:
    """DLP's page with its table made anew from the benchmark's results."""
    before, begin, rest = DLP.read_text("utf8").partition("<!-- poisoning -->")
    _, end, after = rest.partition("<!-- end of poisoning -->")
    return f"{before}{begin}\n{matrix(json.loads(POISONING.read_text('utf8'))['trials'])}\n{end}{after}"


def matrix(trials: list[dict[str, Any]]) -> str:
    """One line per attack and share: undefended and with every defence, in the mean over seeds."""
    lines = [
        "Fashion-MNIST, 8,000 training rows, ResNet-8 with a first stride of 2, 2,000 test rows;",
        "`benchmarks/poisoning.py` says how each was run. Per cent, in the mean over seeds.",
        "",
        "| attack | share | of its class | defence | seeds "
        "| accuracy | attack success | recovered | separation | DER |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    keys = dict.fromkeys((t["attack"], t["share"], t["defence"]) for t in trials)
    for attack, share, defence in sorted(keys, key=lambda key: (key[0] != "clean", -key[1], key[0], key[2] != "none")):
        same = [t for t in trials if (t["attack"], t["share"], t["defence"]) == (attack, share, defence)]
        cells = [_mean(same, name, 100) for name in ("accuracy", "attack_success", "recovered_accuracy")]
        more = [_mean(same, "separation", 1), _mean(same, "der", 1)]
        rate, of = (f"{100 * share:g} %", f"{100 * same[0]['class_rate']:.0f} %") if share else ("none", "")
        lines.append(f"| {attack} | {rate} | {of} | {defence} | {len(same)} | {' | '.join([*cells, *more])} |")
    return "\n".join(lines)


def _mean(trials: list[dict[str, Any]], name: str, times: float) -> str:
    values = [times * t[name] for t in trials if name in t]
    return f"{sum(values) / len(values):.{1 if times > 1 else 3}f}" if values else ""


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
