"""A benchmark's results as a file that is added to: what a part found, and the machine that it was found on."""

from __future__ import annotations

import json
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch

from buckler.data import write_whole


def kept(path: Path) -> dict[str, Any]:
    """What is in the file so far."""
    return json.loads(path.read_text("utf8")) if path.exists() else {}


def keep(path: Path, part: dict[str, Any], note: str) -> None:
    """Put `part` into the file, with this machine and what to make of its seconds."""
    machine = {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "note": note,
    }
    path.parent.mkdir(exist_ok=True)
    write_whole(path, json.dumps({**kept(path), "machine": machine, **part}, indent=1).encode())
