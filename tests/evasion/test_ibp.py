import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from buckler.evasion.ibp import _Box, _margins, _propagate, ibp
from buckler.evasion.pgd import pgd
from buckler.kinds import ABSTAIN
from buckler.nets import LinearModel, ResNet, SmallCNN
from buckler.target import metered
from buckler.threat import Ball


def used(model, *shape):
    """Batch norm with statistics of its own, so that it is not the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 0.5
            nn.init.uniform_(module.weight, -1, 1)
            nn.init.normal_(module.bias)
    model.train()
    model(torch.rand(16, *shape))
    return model.eval()


class Zoo(nn.Module):
    """Most of what is supported, and normalisation by buffers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5]).view(2, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, -0.3]).view(2, 1, 1))
        self.one, self.two = nn.Conv2d(2, 4, 3, padding=1, padding_mode="replicate"), nn.Conv2d(4, 4, 3, groups=2)
        self.norm, self.leaky, self.pool = nn.BatchNorm2d(4), nn.LeakyReLU(0.1), nn.MaxPool2d(2)
        self.average, self.drop = nn.AvgPool2d(3, 1, 1), nn.Dropout(0.9)
        self.last, self.bend = nn.Linear(12, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = (x - self.mean) / self.std
        a = self.leaky(self.norm(self.one(x)))
        b = F.max_pool2d(self.average(a), 2)
        c = torch.cat([self.pool(a) * -0.5 + b, -b], 1)
        d = torch.sigmoid(self.two(1 - 2 * c[:, :4]))
        e = F.adaptive_avg_pool2d(d, 1).view(d.size(0), -1)
        e = torch.cat([e, d.mean((2, 3)), torch.tanh(e - d.flatten(2).mean(2))], 1)
        f = self.last(self.drop(e))
        f += 0.1
        return self.bend(F.relu(f, inplace=True))


MODELS = {
    "cnn": (lambda: SmallCNN(width=4), (1, 8, 8)),
    "resnet": (lambda: ResNet(width=4, classes=5), (1, 8, 8)),
    "zoo": (Zoo, (2, 8, 8)),
    "dense": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3), nn.ReLU()),
        (12,),
    ),
}


def build(name, seed=0):
    torch.manual_seed(seed)
    make, shape = MODELS[name]
    return used(make(), *shape), torch.rand(6, *shape)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("radius", [0.001, 0.05])
def test_every_sampled_margin_is_above_its_bound(name, radius):
    model, x = build(name)
    label = model(x).argmax(1)
    graph = fx.symbolic_trace(model.double())
    box = _Box((x.double() - radius).clamp(0, 1), (x.double() + radius).clamp(0, 1))
    with torch.no_grad():
        bound = _margins(_propagate(graph, box, 1e-7), label, 1e-7)
        model.float()
        lowest = torch.full_like(bound, torch.inf)
        for draw in range(60):
            way = torch.rand_like(x) if draw % 2 else torch.rand_like(x).round()
            logits = model((box.low + way * (box.high - box.low)).float()).double()
            own = logits.gather(1, label[:, None]).squeeze(1)
            lowest = torch.minimum(lowest, own - logits.scatter(1, label[:, None], -torch.inf).amax(1))
    assert bound.isfinite().all()
    assert bool((bound <= lowest).all())
    if radius == 0.001:
        clean = model(x).detach().double()
        margin = clean.gather(1, label[:, None]).squeeze(1) - clean.scatter(1, label[:, None], -torch.inf).amax(1)
        assert bool((bound > margin - 1).all())  # a bound, not minus infinity


@pytest.mark.parametrize("classes", [2, 5])
def test_the_certificate_of_a_linear_model_is_its_distance(classes):
    torch.manual_seed(0)
    model = LinearModel(torch.randn(classes, 12), 0.1 * torch.randn(classes))
    x = 0.4 + 0.2 * torch.rand(20, 12)
    label, radius, _ = ibp(model, x, ball=Ball("linf", 0.3), halvings=16)
    exact = model.distances(x, model(x).argmax(1), "linf").clamp_max(0.3)
    assert torch.equal(label, model(x).argmax(1))
    assert bool((radius <= exact).all())
    assert torch.allclose(radius, exact, atol=2e-5)


def test_the_box_of_legal_inputs_counts():
    """Logits 0 and x - 1.5: no legal input gets the second label, so all of the box is certified."""
    model = LinearModel(torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, -1.5]))
    _, radius, _ = ibp(model, torch.rand(4, 1), ball=Ball("linf", torch.inf))
    assert torch.equal(radius, torch.ones(4))


@pytest.mark.parametrize("name", ["cnn", "resnet", "zoo"])
def test_no_attack_succeeds_inside_a_certificate(name):
    model, x = build(name)
    label, radius, _ = ibp(model, x, ball=Ball("linf", 0.5))
    assert torch.equal(label, model(x).argmax(1))
    assert (radius > 0).any()
    ball = Ball("linf", radius)
    moved = pgd(model, x, label, ball=ball, steps=20, objective="margin", restarts=2)
    assert bool((model(moved).argmax(1) == label)[ball.contains(x, moved)].all())
    assert ball.contains(x, moved).all()


def test_rows_have_their_own_limit_and_do_not_depend_on_their_batch():
    model, x = build("cnn")
    limit = torch.tensor([0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    whole = ibp(model, x, ball=Ball("linf", limit))
    split = ibp(model, x, ball=Ball("linf", limit), batch=4)
    assert bool((whole.radius <= limit).all())
    assert whole.radius[1] == limit[1]
    assert torch.equal(whole.label, split.label)
    assert torch.allclose(whole.radius, split.radius, rtol=1e-2)


def test_a_tie_is_abstained_from():
    model = LinearModel(torch.tensor([[1.0], [1.0]]), torch.zeros(2))
    label, radius, _ = ibp(model, torch.rand(3, 1), ball=Ball("linf", 0.1))
    assert label.tolist() == [ABSTAIN] * 3
    assert radius.tolist() == [0.0] * 3


def test_rounding_of_the_model_is_within_the_bounds():
    """Float32 sums that cancel: the error of the model itself must be inside the bounds of a point."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(400, 50), nn.Linear(50, 3))
    layers[0].weight.data *= 1000
    x = torch.rand(50, 400)
    graph = fx.symbolic_trace(nn.Sequential(*layers, nn.Identity()).double())
    with torch.no_grad():
        end = _propagate(graph, _Box(x.double(), x.double()), torch.finfo(torch.float32).eps)
        exact = layers(x.double())
        rough = layers.float()(x).double()
    assert (rough - exact).abs().max() > 0
    assert bool(((end.low <= rough) & (rough <= end.high)).all())


def test_the_model_stays_as_it_is():
    model, x = build("resnet")
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with metered(model) as meter:
        assert ibp(model, x, ball=Ball("linf", 0.1)).norm == "linf"
    assert meter.forwards == len(x)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in model.parameters())


class Functional(nn.Module):
    def __init__(self, do):
        super().__init__()
        self.do, self.head = do, nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.do(x))


@pytest.mark.parametrize(
    ("do", "named"),
    [
        (nn.LayerNorm(4), "LayerNorm"),
        (nn.GELU(), "GELU"),
        (nn.LeakyReLU(-0.5), "LeakyReLU"),
        (nn.BatchNorm1d(4, track_running_stats=False), "BatchNorm1d"),
        (torch.sin, "sin"),
        (lambda x: x * x, "two activations"),
        (lambda x: 1 / x, "two activations"),
        (lambda x: torch.add(x, x, alpha=-1), "addition without options"),
        (F.dropout, "dropout"),
        (lambda x: x if x.sum() > 0 else -x, "torch.fx can trace"),
    ],
)
def test_what_bounds_do_not_go_through_is_named(do, named):
    with pytest.raises(ValueError, match=named):
        ibp(Functional(do), torch.rand(2, 4), ball=Ball("linf", 0.1))


def test_other_norms_are_refused():
    with pytest.raises(ValueError, match="expected a ball in linf"):
        ibp(nn.Linear(4, 2), torch.rand(1, 4), ball=Ball("l2", 0.1))
