"""Every example runs as its reader would run it, and says something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example: Path, cache: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-W", "error", str(example)]
    surroundings = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    said = subprocess.run(
        words, cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=False, timeout=200
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip()
    if example.stem == "own_method":
        cheat = next(line for line in said.stdout.splitlines() if line.startswith("cheat"))
        assert "robust accuracy 0.9" in cheat, "what leaves the ball is not counted"
