"""Floods: the queue against closed forms, and what limits do."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from buckler.data import Rows
from buckler.encoders._early_exit import early_exit
from buckler.encoders.evaluate import evaluate
from buckler.encoders.judge import judge
from buckler.encoders.query_flood import _served, query_flood  # pyright: ignore[reportPrivateUsage]
from buckler.findings import rules
from buckler.subject import Subject
from buckler.threat import Ball

BALL = Ball("linf", 1.0)


def test_a_queue_takes_what_it_can_work_off() -> None:
    """At a pace of 1 and a wait of 2 three queries of cost 1 at once are taken, and one more a second later."""
    at = [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    assert _served(at, [0] * 6, [1.0] * 6, 1.0, 2.0, None).tolist() == [1, 1, 1, 0, 1, 0]


def test_a_bucket_refuses_what_is_beyond_rate_and_burst() -> None:
    at = [0.0, 0.0, 0.0, 0.5, 1.0, 1.1]
    assert _served(at, [0] * 6, [0.0] * 6, 1.0, 2.0, (1.0, 2.0)).tolist() == [1, 1, 0, 0, 1, 0]
    assert _served(at, list(range(6)), [0.0] * 6, 1.0, 2.0, (1.0, 1.0)).tolist() == [1] * 6


def test_a_flood_locks_out_and_limits_help_until_names_are_free(encoder: nn.Module, unseen: Rows) -> None:
    found = query_flood(early_exit(encoder, unseen[0][:300]), unseen[0][300:], ball=BALL, runs=3)
    share = {name: float(value.mean()) for name, value in found.items()}
    assert share["quiet"] > 0.99
    assert share["sponged"] < share["flooded"] < 0.9
    assert min(share["limited"], share["limited_quiet"]) > 0.95
    assert share["flooded"] < share["capped"], "under a cap sponges cost less than the mean of honest queries"
    assert share["many_names"] < 0.8


def test_sponges_change_nothing_for_an_encoder_that_costs_the_same(encoder: nn.Module, unseen: Rows) -> None:
    found = query_flood(encoder, unseen[0][:200], ball=BALL, runs=2)
    assert found["flooded"].equal(found["sponged"])


def test_what_makes_no_sense_is_refused(encoder: nn.Module, unseen: Rows) -> None:
    with pytest.raises(ValueError, match="load between 0 and 1"):
        query_flood(encoder, unseen[0][:4], ball=BALL, load=1.0)


def test_an_audit_says_whom_a_flood_locks_out(subject: Subject, encoder: nn.Module) -> None:
    trial = evaluate(partial(query_flood, runs=2), replace(subject, encoder=encoder), ball=BALL, rows=200)
    assert trial.status == "ok"
    verdict = judge([trial], {}, rules(), "run {method}")
    (found,) = [finding for finding in verdict.findings if finding.id == "encoders/depletion/flood"]
    assert found.state == "found"
    assert torch.equal(trial.evidence["refused"], trial.evidence["quiet"] - trial.evidence["sponged"])
