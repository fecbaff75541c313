from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from buckler import stats
from buckler.target import Oracle
from buckler.threat import Threat
from buckler.trial import Check, Cost, DamagedTrial, Trial, fingerprint_model, identity, load, save


def _trial() -> Trial:
    robust = torch.tensor([True, False, True, True])
    return Trial(
        method="evasion/pgd",
        kind="evade",
        params={"steps": 40, "ball": "linf:0.1"},
        threat=Threat("weights", "input", "linf:0.1", "any wrong label", ()),
        subject={"name": "s", "model": "m", "data": "d"},
        seed=3,
        status="ok",
        checks=(Check("random", True, "It does not.", 0.0),),
        estimates={"robust_accuracy": stats.share(robust, "robust")},
        evidence={"robust": robust, "distance": torch.tensor([0.0, 1.0, float("inf"), 2.0])},
        cost=Cost(10, 5, 0, 1.5, 1000),
        source="def pgd(): ...",
        fingerprint="abc",
    )


def test_round_trip(tmp_path: Path) -> None:
    trial = _trial()
    save(trial, tmp_path / "abc")
    again = load(tmp_path / "abc")
    assert replace(again, evidence={}) == replace(trial, evidence={})
    assert all(torch.equal(again.evidence[name], tensor) for name, tensor in trial.evidence.items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["abc"]
    name, tensor = next(iter(trial.evidence.items()))
    save(replace(trial, seed=4, evidence={**trial.evidence, "again": tensor}), tmp_path / "abc")
    assert load(tmp_path / "abc").seed == 4
    assert torch.equal(load(tmp_path / "abc").evidence["again"], trial.evidence[name]), "two names of one tensor"


def _edit(folder: Path, **changes: object) -> None:
    record = json.loads((folder / "trial.json").read_text())
    (folder / "trial.json").write_text(json.dumps({**record, **changes}))


def test_a_number_that_its_evidence_does_not_give_is_found_out(tmp_path: Path) -> None:
    save(_trial(), tmp_path / "t")
    better = stats.share(torch.tensor([True] * 4), "robust").record()
    _edit(tmp_path / "t", estimates={"robust_accuracy": better})
    with pytest.raises(DamagedTrial, match="evidence gives"):
        load(tmp_path / "t")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method", "evasion/fgsm"),
        ("kind", "banana"),
        ("params", {"steps": 40}),
        ("params", []),
        (
            "threat",
            {"sees": "labels", "changes": "input", "within": "linf:0.1", "wants": "any wrong label", "tags": []},
        ),
        ("subject", {"name": "s"}),
        ("seed", "3"),
        ("status", "inconclusive"),
        ("reason", None),
        ("checks", []),
        ("estimates", {}),
        ("cost", {}),
        ("versions", None),
        ("fingerprint", "abd"),
    ],
)
def test_an_edited_record_is_found_out(tmp_path: Path, key: str, value: object) -> None:
    save(_trial(), tmp_path / "t")
    _edit(tmp_path / "t", **{key: value})
    with pytest.raises(DamagedTrial, match="t: "):
        load(tmp_path / "t")
    _edit(tmp_path / "t", **{key: json.loads(json.dumps(_trial().record()))[key]})
    assert load(tmp_path / "t").status == "ok", "written back as it was"


def test_other_evidence_is_found_out(tmp_path: Path) -> None:
    save(_trial(), tmp_path / "t")
    save_file({"robust": torch.tensor([True] * 4)}, tmp_path / "t" / "evidence.safetensors")
    with pytest.raises(DamagedTrial, match="not the file"):
        load(tmp_path / "t")


@pytest.mark.parametrize("damage", ["truncate", "empty", "missing", "schema", "not json"])
def test_damage_is_one_error(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "t"
    save(_trial(), folder)
    file = folder / "trial.json"
    if damage == "truncate":
        file.write_text(file.read_text()[:80])
    elif damage == "empty":
        (folder / "evidence.safetensors").write_bytes(b"")
    elif damage == "missing":
        (folder / "method.py.txt").unlink()
    elif damage == "schema":
        _edit(folder, schema="buckler/trial/999")
    else:
        file.write_text("[]")
    with pytest.raises(DamagedTrial, match="t: "):
        load(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits to a file's size")
@pytest.mark.parametrize("room", [100, 500])
def test_a_save_that_fails_leaves_nothing(tmp_path: Path, room: int) -> None:
    """A file may not grow past `room` bytes: the evidence is not written, or the record beside it is not."""
    import resource

    save(_trial(), tmp_path / "t")
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "t").iterdir()}
    assert 100 < sizes["evidence.safetensors"] < 500 < sizes["trial.json"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(replace(_trial(), seed=9), tmp_path / "t")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load(tmp_path / "t").seed == 3
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_a_folder_of_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="other files"):
        save(_trial(), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_identity_sees_weights_structure_and_rows() -> None:
    x, y = torch.rand(5, 3), torch.zeros(5, dtype=torch.long)
    model = nn.Linear(3, 2)
    base = identity("s", model, [(x, y)])
    assert identity("s", model, [(x, y)]) == base
    before = fingerprint_model(model)
    with torch.no_grad():
        model.weight[0, 0] += 1e-6
    assert fingerprint_model(model) != before
    assert identity("s", model, [(x, y + 1)])["data"] != base["data"]
    assert identity("s", Oracle(model, "labels"), [(x, y)])["model"] != base["model"]
