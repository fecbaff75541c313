"""Clients: honest ones, attackers whose questions are recorded, and those who know what watches them.

An adaptive client simulates the detector, with a secret of its own where there is one, on what it has sent so far, and
sends nothing that would raise the alarm. What would is moved by noise whose size is tuned as it goes, and tried again;
then natural inputs are sent in between; then the client stops. OARS (Feng et al., CCS 2023,
https://arxiv.org/abs/2303.06280) tunes each attack's own proposals by asking the service instead: this one spends no
questions on that, works around any attack, and knows the alarm's threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from buckler.data import Rows
from buckler.target import Oracle, QueryBudgetExceeded

FRAMES, NOISE, LIGHT = 10, 0.02, 0.1
"""How often a scene is sent, each time with so much noise, brighter or darker by such a share, and moved by a pixel."""
AGAIN = 0.1
"""How often one who repeats sends an input again."""
CHUNK, LEAST, MOST = 10, 0.02, 0.5
"""How many questions are simulated at once, and the least and the largest share of their numbers that noise is on."""


class Unsuited(ValueError):
    """Inputs in which a detector sees nothing, whoever sends them."""


def natural(rows: Rows, many: int, draw: torch.Generator) -> Rows:
    """`many` different inputs in random order; a `ValueError` where there are fewer."""
    if len(rows[0]) < many:
        raise ValueError(f"expected {many} rows or more for a client, got {len(rows[0])}")
    chosen = torch.randperm(len(rows[0]), generator=draw)[:many]
    return rows[0][chosen], rows[1][chosen]


def video(rows: Rows, many: int, draw: torch.Generator) -> Rows:
    """Inputs of which each is sent `FRAMES` times: with noise, in other light, and, of images, moved by a pixel."""
    x, y = natural(rows, -(-many // FRAMES), draw)
    x, y = x.repeat_interleave(FRAMES, 0)[:many], y.repeat_interleave(FRAMES)[:many]
    if x.ndim == 4:
        moves = torch.randint(-1, 2, (len(x), 2), generator=draw).tolist()
        x = torch.stack([row.roll((down, right), (1, 2)) for row, (down, right) in zip(x, moves, strict=True)])
    light = 1 + LIGHT * (2 * torch.rand(len(x), *[1] * (x.ndim - 1), generator=draw) - 1)
    return (light * x + NOISE * torch.randn(x.shape, generator=draw)).clamp(0, 1), y


def repeats(rows: Rows, many: int, draw: torch.Generator) -> Rows:
    """Different inputs of which one in ten is sent twice, as after a lost answer."""
    x, y = natural(rows, many, draw)
    times = 1 + (torch.rand(len(x), generator=draw) < AGAIN).long()
    return x.repeat_interleave(times, 0)[:many], y.repeat_interleave(times)[:many]


HONEST: Mapping[str, Callable[[Rows, int, torch.Generator], Rows]] = {
    "natural": natural,
    "video": video,
    "repeats": repeats,
}


class Client:
    """One who asks through `door`; what was sent, and what was answered, is kept."""

    def __init__(self, door: Oracle) -> None:
        self.door = door
        self._sent, self._said = list[Tensor](), list[Tensor]()

    def __call__(self, x: Tensor) -> Tensor:
        out = self.door(x)
        self._sent.append(x.detach().cpu())
        self._said.append(out.cpu())
        return out

    def stream(self, like: Tensor) -> Rows:
        """Everything sent `(N, ...)`, inputs such as `like` `(B, ...)`, and the labels `(N,)`."""
        said = [out if out.ndim == 1 else out.argmax(1) for out in self._said]
        return torch.cat([like[:0].cpu(), *self._sent]), torch.cat([torch.empty(0, dtype=torch.long), *said])

    def lesson(self, like: Tensor) -> Rows:
        """As `stream`, with all that the answers say: probabilities `(N, K)`, or labels `(N,)`."""
        sent, labels = self.stream(like)
        if self.door.reveals == "labels" or not self._said:
            return sent, labels
        said = torch.cat(self._said)
        return sent, said.softmax(1) if self.door.reveals == "logits" else said


class Quiet:
    """`client` for one who sends only what `heard`, a score of a stream for every question, leaves below `alarm`.

    `spare` `(N, ...)` are natural inputs to send in between, and `kept` brings a question back where it was moved out
    of what the attack allows. Where nothing passes it raises `QueryBudgetExceeded`.
    """

    def __init__(
        self,
        client: Client,
        heard: Callable[[Rows], Tensor],
        alarm: float,
        spare: Tensor,
        kept: Callable[[Tensor, Tensor], Tensor],
        seed: int,
    ) -> None:
        self._client, self._heard, self._alarm, self._kept = client, heard, alarm, kept
        self._spare, self._share = list(spare.split(CHUNK)), 0.0
        self._draw = torch.Generator().manual_seed(seed)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([self._answer(part) for part in x.split(CHUNK)])

    def _answer(self, wanted: Tensor) -> Tensor:
        while not self._passes(offered := self._moved(wanted)):
            if self._share < MOST:
                self._share = min(max(1.5 * self._share, LEAST), MOST)
            elif self._spare and self._passes(self._spare[0]):
                self._client(self._spare.pop(0))
            else:
                raise QueryBudgetExceeded("nothing more can be asked without an alarm")
        self._share *= 0.9
        return self._client(offered)

    def _moved(self, x: Tensor) -> Tensor:
        """`x` with noise on a share of its numbers."""
        some = (torch.rand(x.shape, generator=self._draw) < self._share).float()
        noise = some * (2 * torch.rand(x.shape, generator=self._draw) - 1)
        return self._kept(x, (x + noise.to(x)).clamp(0, 1))

    def _passes(self, x: Tensor) -> bool:
        """Whether `x`, answered like what it is nearest to, leaves the score below the alarm."""
        sent, said = self._client.stream(x)
        offered = x.detach().cpu()
        nearest = torch.cdist(offered.flatten(1), sent.flatten(1)).argmin(1) if len(sent) else None
        guessed = torch.zeros(len(x), dtype=torch.long) if nearest is None else said[nearest]
        score = self._heard((torch.cat([sent, offered]), torch.cat([said, guessed])))
        before = float(score[len(sent) - 1]) if len(sent) else 0.0
        return bool((score[len(sent) :] <= max(self._alarm, before)).all())
