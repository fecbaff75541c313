"""Reference networks, small enough to read and to train on two cores; models whose answers are known exactly; and where
a network's features are."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from buckler.data import Rows, batches
from buckler.target import frozen


class SmallCNN(nn.Module):
    """Two strided convolutions and two linear layers, for images `(B, channels, side, side)` in [0, 1]."""

    def __init__(self, *, channels: int = 1, side: int = 8, classes: int = 10, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.third = nn.Linear(2 * width * ((side + 1) // 2) ** 2, 4 * width)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.head(F.relu(self.third(x.flatten(1))))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut (He et al., CVPR 2016, https://arxiv.org/abs/1512.03385)."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outer)
        same = stride == 1 and inner == outer
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network for small images: `blocks` per stage, `width` doubled at each stage after the first.

    `stride` is that of the first convolution. The default is ResNet-8 of width 16 (78,000 parameters);
    `blocks=(2, 2, 2, 2), width=64` is ResNet-18 as used on CIFAR-10.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        classes: int = 10,
        width: int = 16,
        blocks: tuple[int, ...] = (1, 1, 1),
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        layers: list[nn.Module] = []
        inner = width
        for stage, count in enumerate(blocks):
            outer = width * 2**stage
            for index in range(count):
                layers.append(ResidualBlock(inner, outer, 2 if stage > 0 and index == 0 else 1))
                inner = outer
        self.stages = nn.Sequential(*layers)
        self.head = nn.Linear(inner, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def encoder(
    *, channels: int = 1, width: int = 16, blocks: tuple[int, ...] = (1, 1, 1), stride: int = 2, pool: int = 2
) -> nn.Module:
    """A residual network without its last layer: features `(B, pool^2 width 2^(stages - 1))`, means over `pool` x
    `pool` parts of the image."""
    body = ResNet(channels=channels, width=width, blocks=blocks, stride=stride)
    return nn.Sequential(body.stem, body.stages, nn.AdaptiveAvgPool2d(pool), nn.Flatten())


class TransformerBlock(nn.Module):
    """Attention between tokens `(B, T, D)`, then two linear layers for each; norms first, and shortcuts around both."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.mixed, self.joined = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attended(self, tokens: Tensor, there: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The tokens behind the attention, and how each of them is attended to by each, a mean over heads `(B, T, T)`.

        Only those that are `there` `(B, T)` are attended to.
        """
        many, length, width = tokens.shape
        mixed = self.mixed(self.norm1(tokens)).view(many, length, 3, self.heads, width // self.heads)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(2, 3) / (width // self.heads) ** 0.5
        if there is not None:
            scores = scores.masked_fill(~there[:, None, None], -torch.inf)
        looks = scores.softmax(3)
        out = (looks @ value).transpose(1, 2).reshape(many, length, width)
        return tokens + self.joined(out), looks.mean(1)

    def fed(self, tokens: Tensor) -> Tensor:
        return tokens + self.down(F.gelu(self.up(self.norm2(tokens))))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fed(self.attended(tokens)[0])


class VisionTransformer(nn.Module):
    """A small encoder of images as tokens (Dosovitskiy et al., ICLR 2021, https://arxiv.org/abs/2010.11929): each
    `patch` x `patch` pixels are a token, and one more gathers the features `(B, width)`.

    The default, for 8 x 8 pixels, has 17 tokens and 202,000 parameters. `side` is a multiple of `patch`.
    """

    def __init__(
        self, *, channels: int = 1, side: int = 8, patch: int = 2, width: int = 64, depth: int = 4, heads: int = 4
    ) -> None:
        super().__init__()
        if patch < 1 or heads < 1 or side % patch or width % heads:
            raise ValueError(f"expected sides of whole patches and whole heads, got {side}/{patch} and {width}/{heads}")
        self.side = side
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.gathers = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, (side // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def tokens(self, x: Tensor) -> Tensor:
        """What the first block is given, `(B, T, width)`: the token that gathers, and one for each patch. A
        `ValueError` for images of another size."""
        if x.shape[2:] != (self.side, self.side):
            raise ValueError(f"expected images of {self.side} x {self.side} pixels, got {tuple(x.shape)}")
        seen = self.patches(x).flatten(2).transpose(1, 2)
        return torch.cat([self.gathers.expand(len(x), -1, -1), seen], 1) + self.places

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.blocks(self.tokens(x))[:, 0])


class LinearModel(nn.Module):
    """Logits `W x + b` of the flattened input: the distance to every decision boundary has a closed form."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.weight, self.bias)

    def distances(self, x: Tensor, y: Tensor, norm: str) -> Tensor:
        """From every row to the nearest other class's half-space in `norm`, box not considered: `(B,)`.

        By Hoelder the distance to class k is (margin to k) / (dual norm of w_y - w_k); for l0 it is how many of the
        largest |w_y - w_k| must be spent, an underestimate that ignores the box.
        """
        logits = self(x).detach()
        gaps = self.weight.detach()[y][:, None] - self.weight.detach()[None]
        margins = logits.gather(1, y[:, None]) - logits
        dual = {"linf": gaps.abs().sum(2), "l2": gaps.norm(dim=2), "l1": gaps.abs().amax(2)}[norm]
        distance = margins / dual.clamp_min(1e-12)
        return distance.scatter(1, y[:, None], torch.inf).amin(1)


def where(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def last_linear(model: nn.Module) -> nn.Linear:
    """The last linear layer in the order of the modules: what reads the features. A `ValueError` if there is none."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError("expected a model with a linear layer, whose input are the features, got one without")
    return layers[-1]


def headless(model: nn.Module) -> nn.Module:
    """`model`, whose last linear layer now passes on what goes into it: its features. A `ValueError` if it has none."""
    last = last_linear(model)
    for parent in model.modules():
        for name, part in parent.named_children():
            if part is last:
                setattr(parent, name, nn.Identity())
    return nn.Identity() if model is last else model


@contextmanager
def inputs_of(layer: nn.Module) -> Generator[list[Tensor], None, None]:
    """What goes into `layer` inside the block, call by call."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


def features(model: nn.Module, data: Rows) -> Tensor:
    """The input of the last linear layer for every row, evaluating: `(N, D)`, on the CPU."""
    out: list[Tensor] = []
    with torch.no_grad(), frozen(model), inputs_of(last_linear(model)) as seen:
        for x, _ in batches(data, 512):
            model(x.to(where(model)))
            out.append(seen.pop().flatten(1).cpu())
            seen.clear()
    return torch.cat(out)
