"""What evaluators do alike: draws that leave nothing behind, and a model that is as it was."""

from __future__ import annotations

import torch
from torch import nn

from buckler.evaluation import running
from buckler.subject import Subject


def test_a_model_evaluates_inside_and_is_as_it_was_afterwards() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5).eval(), nn.Linear(2, 2))
    x, before = torch.rand(8, 2), {name: value.clone() for name, value in model.state_dict().items()}
    drawn, heard = torch.get_rng_state(), list[tuple[float, int]]()
    subject = Subject("normed", model, (x, torch.zeros(8, dtype=torch.long)))
    answers: list[torch.Tensor] = []
    for _ in range(2):
        with running(subject, 3, lambda done, forwards: heard.append((done, forwards))) as (device, meter, told):
            assert not any(part.training for part in model.modules())
            answers.append(torch.cat([model(x).detach(), torch.rand(1, 2)]))
            told(0.5)
        assert (device.type, meter.forwards) == ("cpu", 8)
    assert torch.equal(*answers)
    assert heard == [(0.5, 8)] * 2
    assert [part.training for part in model] == [True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
