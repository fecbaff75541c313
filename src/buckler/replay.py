"""Answers that were paid for, kept as they come, so that a trial that was stopped does not ask for them again."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from buckler.target import Oracle
from buckler.trial import fingerprint_tensors

PAUSES = (0.5, 1.0, 2.0)
"""Seconds to wait before an oracle that could not be reached is asked again."""


def replayed(oracle: Oracle, path: Path) -> Oracle:
    """`oracle`, with every answer in the file `path` as soon as it is there.

    What is in the file already is answered from there for as long as the same is asked in the same order, as it is by a
    trial that begins again with the same seed; from the first other question on, or the first damaged answer, the
    oracle is asked, and the rest of the file is given up.
    """
    return Oracle(_Log(oracle, path), oracle.reveals, batch=oracle.batch)


class _Log:
    """Records of a question's fingerprint, its answer's length and digest, and the answer, one after the other, of
    which the first `good` bytes hold."""

    def __init__(self, oracle: Oracle, path: Path) -> None:
        self._oracle, self._path, self._good, self._ahead = oracle, path, 0, path.exists()

    def __call__(self, x: Tensor) -> Tensor:
        key = fingerprint_tensors({"x": x}).encode()
        held = self._held(key, len(x)) if self._ahead else None
        if held is not None:
            self._oracle.asked += len(x)  # it was paid for
            return held.to(x.device)
        self._ahead = False
        answer = patient(self._oracle, x)
        answer = answer.float() if answer.dtype in (torch.bfloat16, torch.float16) else answer
        content = io.BytesIO()
        np.save(content, answer.cpu().numpy(), allow_pickle=False)
        with self._path.open("r+b" if self._path.exists() else "wb") as file:
            file.truncate(self._good)
            file.seek(self._good)
            self._good += file.write(key + _sealed(key, content.getvalue()) + content.getvalue())
        return answer

    def _held(self, key: bytes, rows: int) -> Tensor | None:
        """The next answer in the file, if it is whole, and to this question."""
        with self._path.open("rb") as file:
            file.seek(self._good)
            asked, seal = file.read(len(key)), file.read(SEAL)
            content = file.read(min(int.from_bytes(seal[:8], "big"), self._path.stat().st_size))
            if asked != key or seal != _sealed(key, content):
                return None
            self._good = file.tell()
        answer = torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))
        return answer if len(answer) == rows else None


SEAL = 8 + hashlib.sha256().digest_size


def _sealed(key: bytes, content: bytes) -> bytes:
    """How long an answer is, and a digest of it and of its question."""
    return len(content).to_bytes(8, "big") + hashlib.sha256(key + content).digest()


def patient(ask: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What `ask` says of `x`, asked again after each of `PAUSES` when it cannot be reached."""
    for pause in PAUSES:
        try:
            return ask(x)
        except (ConnectionError, TimeoutError):
            time.sleep(pause)
    return ask(x)
