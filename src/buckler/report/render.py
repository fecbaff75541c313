"""Write a report: one folder, five files and the findings' tables, each whole or not at all."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

from buckler.findings import Report
from buckler.report import html, json_, junit, markdown, sarif


def render(report: Report, folder: Path) -> dict[str, Path]:
    """Write `report.json` (the record), `.html`, `.md`, `.sarif` and `.xml` into `folder`; returns the path of each.

    A file that is already there is replaced in one step, so a reader never meets half of one. Tables of an earlier
    report that this one does not have are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "html": html.text(report),
        "md": markdown.text(report),
        "sarif": sarif.text(report),
        "xml": junit.text(report),
        "json": json_.text(report),  # last: it says which tables there are
    }
    tables = _tables(report)
    stale = dict[str, str]()
    with suppress(ValueError):  # no report was here, or none that can be read
        stale = _tables(json_.read(folder / "report.json"))
    for name, content in tables.items():
        _write(folder / name, content)
    for name in stale.keys() - tables.keys():
        (folder / name).unlink(missing_ok=True)
    return {suffix: _write(folder / f"report.{suffix}", text) for suffix, text in texts.items()}


def _tables(report: Report) -> dict[str, str]:
    return {name: content for finding in report.findings for name, content in finding.tables.items()}


def _write(path: Path, text: str) -> Path:
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with beside.open("wb") as handle:
            handle.write(text.encode("utf8", "replace"))
            handle.flush()
            os.fsync(handle.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path
