"""The fast form of a model: the same answers and gradients, where it exists; the model itself, where it does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from buckler import target
from buckler.nets import LinearModel, ResNet, SmallCNN
from buckler.target import inference_form, metered


@pytest.fixture
def resnet() -> ResNet:
    torch.manual_seed(0)
    model = ResNet(width=8)
    with torch.no_grad():
        for _ in range(3):  # running statistics that are not the initial ones
            model(torch.rand(16, 1, 12, 12))
    return model.eval()


@pytest.mark.parametrize("rows", [1, 2, 5, 16, 17, 33])
def test_answers_and_gradients_are_the_model_s_at_any_number_of_rows(resnet, rows) -> None:
    form = inference_form(resnet, torch.rand(8, 1, 12, 12))
    assert form is not resnet
    assert not any(isinstance(module, nn.BatchNorm2d) and module in _called(form) for module in form.modules())
    x = torch.rand(rows, 1, 12, 12, requires_grad=True)
    assert torch.allclose(form(x), resnet(x), atol=1e-5)
    for k in (0, 9):
        want, got = (torch.autograd.grad(model(x)[:, k].sum(), x)[0] for model in (resnet, form))
        assert torch.allclose(got, want, atol=1e-5)


def _called(form: nn.Module) -> list[nn.Module]:
    return [form.get_submodule(node.target) for node in form.graph.nodes if node.op == "call_module"]


def test_bfloat16_keeps_the_ends_in_float32_and_the_answers_close(resnet, monkeypatch) -> None:
    monkeypatch.setattr(target, "_has_bfloat16", lambda sample: True)
    x = torch.rand(9, 1, 12, 12)
    form = inference_form(resnet, x, "bfloat16")
    layers = [getattr(module, "convolution", module) for module in _called(form)]
    kinds = [layer.weight.dtype for layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert kinds[0] == kinds[-1] == torch.float32
    assert set(kinds[1:-1]) == {torch.bfloat16}
    want, got = resnet(x), form(x)
    assert got.dtype == torch.float32
    assert 0 < (got - want).abs().max() <= 0.04 * want.abs().max()
    assert all(p.dtype == torch.float32 for p in resnet.parameters())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_without_gradients_convolution_addition_and_relu_are_one_operation(resnet, monkeypatch, precision) -> None:
    monkeypatch.setattr(target, "_has_bfloat16", lambda sample: True)
    form = inference_form(resnet, torch.rand(8, 1, 12, 12), precision)
    joined = [module for module in form.modules() if isinstance(module, target._Joined)]
    assert len(joined) == 7  # the stem, and both convolutions of three blocks
    x = torch.rand(9, 1, 12, 12)
    asked: list[int] = []
    real = target._POINTWISE

    class Counted:
        def __call__(self, *given: object) -> Tensor:
            asked.append(1)
            return real(*given)

        def binary(self, *given: object) -> Tensor:
            asked.append(2)
            return real.binary(*given)

    monkeypatch.setattr(target, "_POINTWISE", Counted())
    with torch.no_grad():
        quick = form(x)
    assert sorted(asked) == [1, 1, 1, 1, 2, 2, 2]
    slow = form(x)
    assert len(asked) == 7
    assert slow.requires_grad or not x.requires_grad
    assert torch.allclose(quick, slow, atol=1e-5 if precision == "float32" else 0.04 * float(slow.abs().max()))


def test_layers_that_are_called_twice_or_lead_elsewhere_are_not_joined() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding="same")
            self.third = nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.second(torch.relu(self.first(x))))
            x = self.third(torch.relu(self.third(x)))
            return self.head((x + torch.relu(x)).mean((2, 3)))

    torch.manual_seed(0)
    model, x = Twice().eval(), torch.rand(5, 1, 8, 8)
    form = inference_form(model, x)
    assert [name for name, module in form.named_modules() if isinstance(module, target._Joined)] == ["first"]
    with torch.no_grad():
        assert torch.allclose(form(x), model(x), atol=1e-5)


def test_bfloat16_is_not_used_where_the_processor_has_none(resnet, monkeypatch) -> None:
    monkeypatch.setattr(target, "_has_bfloat16", lambda sample: False)
    x = torch.rand(4, 1, 12, 12)
    assert torch.allclose(inference_form(resnet, x, "auto")(x), resnet(x), atol=1e-5)


def test_a_model_that_bfloat16_would_change_too_much_stays_in_float32(monkeypatch) -> None:
    monkeypatch.setattr(target, "_has_bfloat16", lambda sample: True)

    class Delicate(nn.Module):
        """The logits are differences of large numbers, which bfloat16 cannot tell apart."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last((self.second(self.first(x)) + 1000.0) - 1000.0)

    torch.manual_seed(0)
    model, x = Delicate().eval(), torch.rand(6, 8)
    form = inference_form(model, x, "auto")
    assert torch.allclose(form(x), model(x), atol=1e-3)


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_what_cannot_be_traced_or_couples_rows_still_answers_the_same(precision) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = SmallCNN(width=4)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) if float(x.sum()) > 0 else self.net(x) * 2

    class Coupled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - x.mean(0)).flatten(1)[:, :3]

    for model in (Branching().eval(), Coupled(), LinearModel(torch.randn(3, 64), torch.zeros(3))):
        for rows in (1, 5, 16):
            x = torch.rand(rows, 1, 8, 8)
            form = inference_form(model, torch.rand(7, 1, 8, 8), precision)
            assert torch.allclose(form(x), model(x), atol=1e-5), type(model).__name__


def test_a_model_that_answers_at_random_is_left_alone() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] + torch.randn(len(x), 3)

    model = Noisy()
    assert inference_form(model, torch.rand(5, 8)) is model


def test_the_model_itself_is_untouched(resnet) -> None:
    resnet.train()
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    inference_form(resnet, torch.rand(4, 1, 12, 12), "auto")
    assert resnet.training
    assert all(p.requires_grad for p in resnet.parameters())
    assert all(torch.equal(value, before[name]) for name, value in resnet.state_dict().items())


def test_a_meter_of_the_model_counts_the_form_once(resnet) -> None:
    with metered(resnet) as meter:
        form = inference_form(resnet, torch.rand(4, 1, 12, 12), "auto")
        meter.watch(form)
        before = meter.forwards
        x = torch.rand(5, 1, 12, 12, requires_grad=True)
        torch.autograd.grad(form(x).sum(), x)
        assert meter.forwards - before == 5
        assert meter.backwards == 5


def test_a_form_has_a_faster_form_too(resnet, monkeypatch) -> None:
    monkeypatch.setattr(target, "_has_bfloat16", lambda sample: True)
    form = inference_form(resnet, torch.rand(8, 1, 12, 12))
    faster = inference_form(form, torch.rand(8, 1, 12, 12), "auto")
    assert torch.bfloat16 in {p.dtype for p in faster.parameters()}
    assert all(p.dtype == torch.float32 for p in form.parameters())
    x = torch.rand(5, 1, 12, 12)
    assert torch.allclose(faster(x), form(x), atol=0.05)
    assert sum("spare" in str(node.target) for node in faster.graph.nodes) == 1
