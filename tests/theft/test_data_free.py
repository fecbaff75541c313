from __future__ import annotations

import torch
from stolen_worlds import agreement, net, rows, victim
from torch import Tensor, nn

from buckler.target import Oracle
from buckler.theft.data_free import _apart, _shown, _slope, data_free


def test_it_copies_a_small_victim_without_its_inputs() -> None:
    model = victim()
    oracle = Oracle(model, "scores", 30_000)
    made = data_free(oracle, torch.zeros(1, 6), net=net, most=30_000, batch=16, rate=0.03)
    assert 29_000 < oracle.asked <= 30_000
    assert agreement(made, model) > 0.9
    assert agreement(made, victim(5)) < 0.6


def test_forward_differences_are_the_gradient_on_average() -> None:
    model, copy = victim(), victim(3)
    oracle = Oracle(model, "logits")
    raw = (rows(4) * 2 - 1).requires_grad_()
    victims, copied = model(_shown(raw)), copy(_shown(raw))
    apart = (victims - victims.mean(1, keepdim=True) - copied + copied.mean(1, keepdim=True)).abs().sum(1)
    torch.testing.assert_close(_apart(oracle, copy, _shown(raw)), apart)
    (grad,) = torch.autograd.grad(apart.sum(), raw)
    torch.manual_seed(0)
    mean = torch.stack([_slope(raw.detach(), copy, oracle, 1e-3) for _ in range(3000)]).mean(0)
    assert float(torch.cosine_similarity(mean, grad, dim=1).min()) > 0.97
    assert float((mean.norm(dim=1) / grad.norm(dim=1) - 1).abs().max()) < 0.15


def test_dropout_in_the_copy_does_not_drown_the_gradient() -> None:
    oracle, raw, copy = Oracle(victim(), "logits"), rows(4) * 2 - 1, victim(3)
    dropping = nn.Sequential(nn.Dropout(0.5), copy).train()
    slopes = list[Tensor]()
    for one in (copy, dropping):
        torch.manual_seed(0)
        slopes.append(_slope(raw, one, oracle, 1e-3))
    torch.testing.assert_close(slopes[1], slopes[0])
    assert dropping.training


def test_logits_are_known_from_scores_up_to_their_mean() -> None:
    x = rows(20)
    from_scores = _apart(Oracle(victim(steep=1.0), "scores"), victim(3), x)
    torch.testing.assert_close(from_scores, _apart(Oracle(victim(steep=1.0), "logits"), victim(3), x))
