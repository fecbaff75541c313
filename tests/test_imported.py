"""The user's own functions: whatever they set, print or raise, what runs next is as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from buckler.imported import BadSubject, imported, raised

SETTINGS = """
import torch

def careless(*_):
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_num_threads(torch.get_num_threads() + 1)
    return "made"

def breaks():
    careless()
    raise RuntimeError("on the way")
"""


@pytest.fixture(autouse=True)
def _set_back() -> Iterator[None]:
    """For the other tests, whatever becomes of these."""
    threads = torch.get_num_threads()
    yield
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_num_threads(threads)


def _settings() -> tuple[object, ...]:
    return torch.is_grad_enabled(), torch.get_default_dtype(), torch.ones(1).device, torch.get_num_threads()


@pytest.mark.parametrize("when", ["called", "raises", "imported"])
def test_what_a_function_sets_for_all_of_torch_is_set_back(tmp_path: Path, when: str) -> None:
    name = f"careless_{when}"
    (tmp_path / f"{name}.py").write_text(SETTINGS + ("careless()\n" if when == "imported" else ""))
    before = _settings()
    function = imported(tmp_path, "recipe", f"{name}:{'breaks' if when == 'raises' else 'careless'}")
    assert _settings() == before
    if when == "raises":
        with pytest.raises(BadSubject, match="on the way"):
            function()
    else:
        assert function(3) == "made"
    assert _settings() == before
    with torch.no_grad():
        assert not torch.is_grad_enabled()
        function(3) if when != "raises" else None
        assert not torch.is_grad_enabled(), "what was off stays off"


@pytest.mark.parametrize(
    "text", ["\x1b[31mred\x1b[0m", "\ud800 lone", "\x00\x07\x9b", "two\nlines\tand a tab", "long " * 99]
)
def test_an_error_can_be_shown_on_any_terminal(text: str) -> None:
    said = raised(ValueError(text))
    assert said.isprintable()
    said.encode("utf8")
    assert len(said) < 320
    assert raised(ValueError("plain, with accents: é")) == "ValueError: plain, with accents: é"
