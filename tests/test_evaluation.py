"""What evaluators do alike: draws that leave nothing behind, and a model that is as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from buckler.evaluation import honest, running
from buckler.subject import Subject


def test_a_model_evaluates_inside_and_is_as_it_was_afterwards() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5).eval(), nn.Linear(2, 2))
    x, before = torch.rand(8, 2), {name: value.clone() for name, value in model.state_dict().items()}
    drawn, heard = torch.get_rng_state(), list[tuple[float, int]]()
    encoder = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2).eval())
    subject = Subject("normed", model, (x, torch.zeros(8, dtype=torch.long)), encoder=encoder)
    answers: list[torch.Tensor] = []
    for _ in range(2):
        with running(subject, 3, lambda done, forwards: heard.append((done, forwards))) as (device, meter, told):
            assert not any(part.training for part in (*model.modules(), *encoder.modules()))
            answers.append(torch.cat([model(x).detach(), torch.rand(1, 2)]))
            told(0.5)
        assert (device.type, meter.forwards) == ("cpu", 8)
    assert torch.equal(*answers)
    assert heard == [(0.5, 8)] * 2
    assert [part.training for part in model] == [True, False, True]
    assert [part.training for part in encoder] == [True, False]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_what_a_guard_changes_is_counted_row_by_row() -> None:
    torch.manual_seed(0)
    model, guard = nn.Linear(3, 4), nn.Linear(3, 4)
    x, y = torch.rand(20, 3), torch.randint(0, 4, (20,))
    found = honest(model, guard, x, y)
    for row in range(20):
        before, after = (one(x[row]).softmax(0).tolist() for one in (model, guard))
        truth = [float(label == int(y[row])) for label in range(4)]
        best = [max(range(4), key=said.__getitem__) for said in (before, after)]
        assert bool(found["correct"][row]) == (best[1] == int(y[row]))
        assert bool(found["unguarded_correct"][row]) == (best[0] == int(y[row]))
        assert bool(found["label_kept"][row]) == (best[0] == best[1])
        assert abs(float(found["moved"][row]) - sum(abs(a - b) for a, b in zip(before, after, strict=True))) < 1e-5
        for name, said in (("unguarded_brier", before), ("brier", after)):
            assert abs(float(found[name][row]) - sum((a - b) ** 2 for a, b in zip(said, truth, strict=True))) < 1e-5
    with pytest.raises(ValueError, match=r"expected finite scores \(20, 4\) of a guarded model, got \(20, 2\)"):
        honest(model, nn.Linear(3, 2), x, y)
