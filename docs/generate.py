"""Write docs/methods.md from the cards of all methods: `python docs/generate.py`, or `make docs`."""

from __future__ import annotations

from pathlib import Path

from buckler.catalog import Card, cards

KINDS = {
    "evade": "Attacks",
    "certify": "Certificates",
    "loss": "Defences by training",
    "guard": "Guards",
    "probe": "Probes",
    "extract": "Extraction",
}
PAGE = Path(__file__).parent / "methods.md"


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
