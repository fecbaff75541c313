"""A vision transformer with and without its tokens, against loops over single tokens; and sponges that keep them."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from buckler.data import Rows
from buckler.encoders._adaptive import Adaptive, adaptive
from buckler.encoders._early_exit import EarlyExit, products
from buckler.encoders._token_pruning import TokenPruned, token_pruned
from buckler.encoders.evaluate import evaluate
from buckler.encoders.judge import judge
from buckler.encoders.query_flood import query_flood
from buckler.encoders.sponge import sponge
from buckler.findings import rules
from buckler.nets import TransformerBlock, VisionTransformer
from buckler.subject import Subject
from buckler.threat import Ball
from buckler.train import fit, started


@pytest.fixture(scope="module")
def net(learnt: Rows) -> VisionTransformer:
    """A transformer that learnt digits with their labels, without its last layer: its attention means something."""
    made = started(partial(VisionTransformer, width=32, depth=3), 0)
    fit(nn.Sequential(made, started(lambda: nn.Linear(32, 10), 0)), learnt, epochs=40, rate=2e-3, optimizer="adam")
    return made.eval()


@pytest.fixture(scope="module")
def served(net: VisionTransformer, unseen: Rows) -> TokenPruned:
    return token_pruned(net, unseen[0][:300])


def alone(block: TransformerBlock, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """One image's tokens `(T, D)` behind the attention, and how much of it each gets, by loops."""
    width = tokens.shape[1]
    size = width // block.heads
    query, key, value = block.mixed(block.norm1(tokens)).split(width, 1)
    out, got = torch.zeros_like(tokens), torch.zeros(len(tokens))
    for head in range(block.heads):
        mine = slice(head * size, (head + 1) * size)
        for row in range(len(tokens)):
            look = torch.stack([query[row, mine] @ key[other, mine] for other in range(len(tokens))]) / size**0.5
            look = look.softmax(0)
            out[row, mine] = sum(look[other] * value[other, mine] for other in range(len(tokens)))
            got += look / (block.heads * len(tokens))
    return tokens + block.joined(out), got


def naive(served: TokenPruned, image: Tensor) -> tuple[Tensor, float]:
    """Features and multiplications of one image `(1, 1, H, W)`, whose dropped tokens are really gone."""
    net, tokens = served.net, served.net.tokens(image)[0]
    wide, work = tokens.shape[1], (len(tokens) - 1) * net.patches.weight.numel()
    for block, least, most in zip(net.blocks, served.least, served.most, strict=True):
        assert isinstance(block, TransformerBlock)
        work += 4 * len(tokens) * wide**2 + 2 * len(tokens) ** 2 * wide
        tokens, got = alone(block, tokens)
        stay = [0] + [place for place in range(1, len(tokens)) if got[place] >= least]
        stay = [0, *sorted(sorted(stay[1:], key=lambda place: -float(got[place]))[: int(most) - 1])]
        tokens = block.fed(tokens[stay])
        work += 8 * len(tokens) * wide**2
    return net.norm(tokens[0]), work


def test_all_tokens_make_the_same_features(net: VisionTransformer, unseen: Rows) -> None:
    x = unseen[0][:5]
    with torch.no_grad():
        torch.testing.assert_close(TokenPruned(net)(x), net(x))
        assert TokenPruned(net).spent(x).tolist() == [1.0] * 5
        for row in x.split(1):
            torch.testing.assert_close(naive(TokenPruned(net), row)[0], net(row)[0], atol=1e-4, rtol=1e-4)


def test_attention_is_torchs_own(net: VisionTransformer, unseen: Rows) -> None:
    tokens = net.tokens(unseen[0][:4]).detach()
    block = net.blocks[0]
    assert isinstance(block, TransformerBlock)
    theirs = nn.MultiheadAttention(32, block.heads, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(block.mixed.weight)
        theirs.in_proj_bias.copy_(block.mixed.bias)
        theirs.out_proj.load_state_dict(block.joined.state_dict())
        there = torch.rand(4, 17, generator=torch.Generator().manual_seed(0)) < 0.7
        normed = block.norm1(tokens)
        out, looks = theirs(normed, normed, normed, key_padding_mask=~there)
        mine, mine_looks = block.attended(tokens, there)
    torch.testing.assert_close(mine, tokens + out, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mine_looks, looks, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("capped", [False, True])
def test_dropped_tokens_are_gone_and_what_is_done_is_counted(
    served: TokenPruned, unseen: Rows, *, capped: bool
) -> None:
    x = unseen[0][300:312]
    served = copy.deepcopy(served)
    if capped:
        served.most.copy_(torch.tensor([12, 8, 5]))
    with torch.no_grad():
        features, spent = served(x), served.spent(x)
        whole = naive(TokenPruned(served.net), x[:1])[1]
        for row in range(len(x)):
            expected, work = naive(served, x[row : row + 1])
            torch.testing.assert_close(features[row], expected, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(float(spent[row]), work / whole)
    assert len(set(spent.tolist())) > 1 or capped
    assert float(spent.max()) < 1


def test_linear_layers_are_counted_as_hooks_count_them(served: TokenPruned) -> None:
    """All but what tokens look at, which no layer does."""
    x, wide = torch.zeros(1, 1, 8, 8), 32
    left = [torch.full((1,), 17.0).double() for _ in range(4)]
    assert float(served._work(left)) == products(served.net, x) + 3 * 2 * 17**2 * wide


def test_honest_images_leave_the_share_that_was_asked_for(net: VisionTransformer, unseen: Rows) -> None:
    x = unseen[0][:300]
    served = token_pruned(net, x, leave=0.3)
    with torch.no_grad():
        left = [there[:, 1:].sum().item() for there in served.run(x)[1]]
    assert abs(left[1] / left[0] - 0.7) < 0.01
    assert abs(left[2] / left[1] - 0.7) < 0.01
    assert left[3] == left[2], "behind the last block nothing is dropped"


def test_a_cap_holds_for_every_input_and_is_lifted(served: TokenPruned, unseen: Rows) -> None:
    x = unseen[0][:300]
    with torch.no_grad():
        usual = torch.stack([there.sum(1) for there in served.run(x)[1][1:]]).double().mean(1)
        with served.capped(x):
            left = torch.stack([there.sum(1) for there in served.run(unseen[0][300:])[1][1:]])
    assert bool((left.amax(1) <= usual).all())
    assert bool((left.amax(1) >= usual - 1).all())
    assert served.most.tolist() == [17] * 3


def test_which_encoders_can_be_served_so(served: TokenPruned, encoder: nn.Module, unseen: Rows) -> None:
    x = unseen[0][:40]
    assert isinstance(adaptive(served.net, x), TokenPruned)
    assert isinstance(adaptive(encoder, x), EarlyExit)
    assert adaptive(nn.Flatten(), x) is None
    assert all(isinstance(one, Adaptive) for one in (served, adaptive(encoder, x)))
    assert not isinstance(encoder, Adaptive)
    for wrong in ({"side": 9}, {"patch": 0}, {"heads": 3}):
        with pytest.raises(ValueError, match="whole patches"):
            VisionTransformer(**wrong)
    with pytest.raises(ValueError, match="8 x 8 pixels"):
        served(torch.zeros(1, 1, 9, 9))


def test_what_is_not_a_number_is_not_cheap(served: TokenPruned) -> None:
    with torch.no_grad():
        assert float(served.spent(torch.full((1, 1, 8, 8), torch.nan))) == 1


def test_sponges_keep_more_tokens_than_noise_of_their_size(served: TokenPruned, unseen: Rows) -> None:
    x, ball = unseen[0][300:364], Ball("linf", 0.1)
    made = sponge(served, x, ball=ball, steps=20)
    noise = ball.clip(x, x + 0.1 * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 1))
    assert bool(ball.contains(x, made).all())
    assert float((served.spent(made) - served.spent(noise)).mean()) > 0.03
    moved = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(served.pressure(moved).sum(), moved)
    assert bool((slope.flatten(1).abs().sum(1) > 0).all())


def test_pressure_is_what_tokens_lack(served: TokenPruned, unseen: Rows) -> None:
    x = unseen[0][300:303]
    with torch.no_grad():
        _, left, got = served.run(x)
        by_hand = [0.0] * 3
        for row in range(3):
            for block in range(2):
                least = float(served.least[block])
                for token in range(17):
                    if left[block][row, token]:
                        by_hand[row] -= max(0.0, 1.05 * least - float(got[block][row, token])) / least
        torch.testing.assert_close(served.pressure(x), torch.tensor(by_hand), atol=1e-4, rtol=1e-4)


def test_an_audit_of_a_transformer_says_what_tokens_cost(subject: Subject, net: VisionTransformer) -> None:
    own = replace(subject, encoder=net)
    trial = evaluate(partial(sponge, steps=10), own, ball=Ball("linf", 0.1), rows=200)
    known = trial.estimates
    assert known["pruned_factor"].low > 1
    assert known["capped_factor"].high < known["pruned_factor"].low
    assert known["dense"].low == known["dense"].high == 1
    assert known["full_correct"].value > 0.6
    verdict = judge([trial], {}, rules(), "run {method}")
    (found,) = [finding for finding in verdict.findings if finding.id == "encoders/depletion"]
    assert found.state == "found"
    assert "with token pruning" in found.claim
    (ten,) = [finding for finding in verdict.findings if finding.id == "encoders/ten"]
    assert ten.grid[10][4] == "a cap on the tokens"


def test_a_flood_of_sponges_is_worse_for_a_transformer_too(served: TokenPruned, unseen: Rows) -> None:
    found = query_flood(served, unseen[0][300:], ball=Ball("linf", 1.0), runs=3)
    share = {name: float(value.mean()) for name, value in found.items()}
    assert share["sponged"] < share["flooded"]
    assert share["capped"] > share["sponged"]
