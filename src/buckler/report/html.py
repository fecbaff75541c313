"""One HTML file that opens from `file://` with no network: no script, no font, no image from anywhere else.

Texts of the record are escaped by the template engine; figures are embedded as images, in which a browser runs
nothing; and a content security policy in the page forbids whatever else might be asked for.
"""

from __future__ import annotations

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined

from buckler.findings import PROPERTIES, STAGES, Figure, Report, verdict
from buckler.report import _view as view
from buckler.threat import tag_name


def text(report: Report) -> str:
    environment = Environment(
        loader=PackageLoader("buckler.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    findings = view.ordered(report.findings)
    grades: list[str] = [view.grade(f.state, f.severity) for f in findings]
    return environment.get_template("report.html.jinja").render(
        report=report,
        verdict=verdict(report),
        findings=findings,
        squares=view.life_cycle(report),
        stages=STAGES,
        properties=PROPERTIES,
        grade=view.grade,
        number=view.number,
        interval=view.interval,
        level=view.level,
        span=view.span,
        duration=view.seconds,
        picture=_picture,
        facts=view.facts,
        tag_name=tag_name,
        methods={str(trial.get("fingerprint", "")): str(trial.get("method", "")) for trial in report.trials},
        tally=_tally(grades + ["not measured"] * len(report.not_measured)),
    )


def _tally(grades: list[str]) -> list[tuple[str, int]]:
    return [(grade, grades.count(grade)) for grade in dict.fromkeys(grades)]


def _picture(figure: Figure) -> str:
    """A figure as a data address."""
    if figure.svg:
        return f"data:image/svg+xml;base64,{base64.b64encode(figure.svg.encode('utf8', 'replace')).decode()}"
    return f"data:image/png;base64,{base64.b64encode(figure.png).decode()}"
