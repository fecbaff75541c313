import torch
from torch import nn
from torch.nn import functional as F
from training_problems import WithNorm, train, two_classes, worst_case

from buckler.evasion.fgsm_rs import fgsm_rs
from buckler.threat import Ball


def test_two_radii_from_anywhere_reach_the_worst_case_of_a_linear_model():
    model, x, y = two_classes()
    losses = fgsm_rs(model, x, y, ball=Ball("linf", 0.1), step=2.0)
    assert torch.allclose(losses, worst_case(model, x, y, "linf", 0.1), rtol=1e-4, atol=1e-5)


def test_the_default_step_is_one_and_a_quarter_radii_from_a_random_start():
    torch.manual_seed(0)
    seen = []

    class Watched(nn.Module):
        def forward(self, x):
            seen.append(x.detach())
            return torch.stack([x.sum(1), -x.sum(1)], 1)

    x, y = torch.full((500, 4), 0.5), torch.zeros(500, dtype=torch.long)
    fgsm_rs(Watched(), x, y, ball=Ball("linf", 0.1))
    begun, ended = (place - x for place in seen)
    assert begun.abs().max() <= 0.1 + 1e-6
    assert begun.std() > 0.05
    assert torch.allclose(ended, (begun - 0.125).clamp(-0.1, 0.1), atol=1e-6)


def test_the_gradient_sees_the_batch_and_the_statistics_see_one_batch():
    torch.manual_seed(0)
    model = WithNorm().train()
    x, y = torch.rand(64, 6), torch.randint(3, (64,))
    seen = []
    model.norm.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, inputs[0].detach())))
    losses = fgsm_rs(model, x, y, ball=Ball("linf", 0.2))
    assert [training for training, _ in seen] == [True, True]
    assert model.norm.num_batches_tracked == 1
    assert torch.allclose(model.norm.running_mean, 0.1 * seen[-1][1].mean(0), atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())
    losses.mean().backward()
    assert model.head.weight.grad.abs().sum() > 0


def test_l2_ends_on_the_sphere():
    model, x, y = two_classes()
    losses = fgsm_rs(model, x, y, ball=Ball("l2", 0.2), step=2.0)
    low, high = F.cross_entropy(model(x), y, reduction="none"), worst_case(model, x, y, "l2", 0.2)
    assert bool((losses > low).all())
    assert bool((losses <= high + 1e-5).all())


def test_training_on_it_buys_robustness():
    _, robust = train(lambda model, x, y: fgsm_rs(model, x, y, ball=Ball("linf", 0.1)))
    assert robust > 0.9
