"""A model behind an HTTP address: inputs go as JSON; scores, labels or an encoder's features come back.

The request is `POST {"inputs": [[...], ...]}`, one nested list per row in [0, 1]. The answer is `{"scores": [[...]]}`,
one list of class probabilities per row, or `{"labels": [...]}`, one whole number per row, or `{"features": [[...]]}`,
one list of numbers per row, all of one length. An `Oracle` counts what is asked; this only carries it.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor

PASSING = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses that may be gone at the next try."""
LONGEST_WAIT = 30.0


class NoAnswer(ValueError):
    """An endpoint that cannot be reached, or whose answer is not what it should be."""


@dataclass(frozen=True)
class Endpoint:
    """Call it with `(B, ...)`; it returns `(B, K)` float32 probabilities, `(B,)` int64 labels or `(B, D)` float32
    features, or raises `NoAnswer`.

    What may pass (no connection, a time-out, HTTP 429 or 5xx) is tried `tries` times in all, waiting `wait` seconds and
    then twice as long each time, or as long as a Retry-After header says, at most 30 s.
    """

    url: str
    answers: Literal["scores", "labels", "features"]
    timeout: float = 30.0
    tries: int = 4
    wait: float = 0.5
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    def __call__(self, x: Tensor) -> Tensor:
        content = self._post(json.dumps({"inputs": x.detach().cpu().tolist()}).encode())
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            raise self._wrong("a JSON object", f"{content[:80]!r}") from None
        if not isinstance(answer, dict) or self.answers not in answer:
            keys = ", ".join(sorted(cast("dict[str, object]", answer))) if isinstance(answer, dict) else "no object"
            raise self._wrong(f'{{"{self.answers}": [...]}}', keys or "an empty object")
        try:
            out = torch.tensor(cast("dict[str, list[float]]", answer)[self.answers])
        except (TypeError, ValueError, RuntimeError):
            raise self._wrong("numbers, the same count for every row", f"{content[:80]!r}") from None
        read = {"scores": self._scores, "labels": self._labels, "features": self._features}[self.answers]
        return read(out, len(x)).to(x.device)

    def _scores(self, out: Tensor, many: int) -> Tensor:
        if out.ndim != 2 or len(out) != many or out.shape[1] < 2:
            raise self._wrong(f"{many} rows of scores, one score per class", f"shape {tuple(out.shape)}")
        out = out.float()
        if not probable(out):
            sums = out.sum(1)
            raise self._wrong(
                "probabilities that sum to 1 in every row",
                f"sums from {float(sums.min()):.4g} to {float(sums.max()):.4g}: answer with softmax outputs, or labels",
            )
        return out

    def _labels(self, out: Tensor, many: int) -> Tensor:
        if out.shape != (many,) or out.is_floating_point() or bool((out < 0).any()):
            lowest = f", the lowest {out.min().item():g}" if out.numel() else ""
            raise self._wrong(
                f"{many} labels, whole numbers from 0", f"shape {tuple(out.shape)} of {out.dtype}{lowest}"
            )
        return out.long()

    def _features(self, out: Tensor, many: int) -> Tensor:
        if out.ndim != 2 or len(out) != many or out.shape[1] < 1:
            raise self._wrong(f"{many} rows of features, as many numbers in each", f"shape {tuple(out.shape)}")
        if not bool(out.isfinite().all()):
            raise self._wrong("finite features", "NaN or infinity")
        return out.float()

    def _post(self, body: bytes) -> bytes:
        request = urllib.request.Request(
            self.url, body, {"Content-Type": "application/json", "Accept": "application/json", **self.headers}
        )
        pause = self.wait
        for left in reversed(range(self.tries)):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    return _whole(answer, time.monotonic() + self.timeout)
            except urllib.error.HTTPError as error:
                said = error.read(200).decode("utf8", "replace").strip()
                if left == 0 or error.code not in PASSING:
                    raise self._wrong("an answer", f"HTTP {error.code} {error.reason} {said}".strip()) from error
                after = error.headers.get("Retry-After", "")
                pause = max(pause, float(after)) if after.isdecimal() else pause
            except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
                if left == 0:
                    reason = error.reason if isinstance(error, urllib.error.URLError) else error
                    raise self._wrong(f"an answer within {self.timeout:g} s", f"{reason}") from error
            time.sleep(min(pause, LONGEST_WAIT))
            pause *= 2
        raise self._wrong("at least one try", f"tries = {self.tries}")

    def _wrong(self, expected: str, got: str) -> NoAnswer:
        parts = urllib.parse.urlsplit(self.url)  # without a password or a token, which may be in it
        place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        return NoAnswer(f"{place}: expected {expected}, got {got}")


def _whole(answer: http.client.HTTPResponse, deadline: float) -> bytes:
    """The body, read as it comes, so that one that trickles in for ever is a time-out too."""
    parts: list[bytes] = []
    while part := answer.read1(1 << 20):
        parts.append(part)
        if time.monotonic() > deadline:
            raise TimeoutError("an answer that never ends")
    if answer.length:
        raise http.client.IncompleteRead(b"".join(parts), answer.length)
    return b"".join(parts)


def probable(scores: Tensor) -> bool:
    """Whether `scores` `(B, K)` can be probabilities: none below 0, and sums of 1, up to what two digits each make of
    that, or less where only the leading classes are shown."""
    least, most = 0.0, 1 + max(0.05, 0.005 * scores.shape[1])
    sums = scores.sum(1)
    return bool((scores >= 0).all() & (sums > least).all() & (sums <= most).all())


def is_address(url: str) -> bool:
    """Whether `url` is one that can be asked: http or https, a host, and nothing that has to be escaped."""
    try:
        parts = urllib.parse.urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # such as a port that is no number
        return False
    return known and url.isascii() and url.isprintable() and " " not in url


def header(name: str, text: str) -> str:
    """A header with `$NAME` and `${NAME}` from the environment; what is not there is not sent as it stands."""
    for variable in re.findall(r"\$(?:\{(\w+)\}|(\w+))", text):
        if "".join(variable) not in os.environ:
            raise ValueError(
                f"headers: expected {''.join(variable)} in the environment for {name}, got nothing: export it"
            )
    value = os.path.expandvars(text)
    if not (name.isascii() and value.isascii() and value.isprintable() and re.fullmatch(r"[!-9;-~]+", name)):
        raise ValueError(f"headers: expected a name and one line of ASCII text, got {name!r} = {text!r}")
    return value
