"""The compact two-stream I3D: Inflated Inception-V1 with a width multiplier, as a torch module.

The graph is DeepMind's `i3d.py` (Carreira & Zisserman, CVPR 2017) unit for unit: the same names, TensorFlow's SAME
padding, batch norm with epsilon 1e-3 and no gamma, and the head that averages over 2 x h x w before the logits.
At `width=1.0` and 224 pixels it is I3D itself; at `width=0.25` and 64 pixels it is small enough for two CPU cores.

Shapes are [batch, channels, time, height, width]. Time shrinks by 8, height and width by 32.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .inception import CHANNELS, MIXED, POOLS, scaled

EPSILON = 1e-3
AUXILIARY_AT = "Mixed_3c"
FULL_PRECISION = ("Mixed_5b", "Mixed_5c")
"""Modules that never run in bf16: on maps as small as theirs its weight gradients are now and then inf or nan."""


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding of one axis: (front, back), with the odd one at the back."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def max_pool_same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Max pooling with SAME padding by minus infinity, over as many axes as `kernel` has.

    torch pads alike on both sides only; where SAME pads just the back, `ceil_mode` cuts the last window off at the
    border, which is the same thing.
    """
    pads = [same_padding(n, k, s) for n, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    if any(front not in (back, back - 1) for front, back in pads):
        raise ValueError(f"cannot pad {tuple(x.shape)} for a {kernel} pool")
    pool = F.max_pool3d if len(kernel) == 3 else F.max_pool2d
    return pool(x, kernel, stride, padding=[front for front, _ in pads], ceil_mode=True)


def stem_convolution(x: Tensor, weight: Tensor) -> Tensor:
    """The stem's 7x7x7 convolution of stride 2 with SAME padding of even sizes, as one of stride 1 on 2x2x2 blocks.

    The same numbers with the eight pictures' corners of a block as channels: 3 (or 2) channels leave the CPU's bf16
    units idle, 24 (or 16) do not. A kernel of 7 becomes one of 8 whose last tap is zero, which is 4 blocks.
    """
    batch, channels, t, h, w = x.shape
    x = x.permute(0, 2, 3, 4, 1).reshape(batch, t // 2, 2, h // 2, 2, w // 2, 2 * channels)
    x = x.permute(0, 1, 3, 5, 2, 4, 6).reshape(batch, t // 2, h // 2, w // 2, 8 * channels)
    weight = F.pad(weight, (0, 1) * 3).reshape(-1, channels, 4, 2, 4, 2, 4, 2)
    weight = weight.permute(0, 3, 5, 7, 1, 2, 4, 6).reshape(-1, 8 * channels, 4, 4, 4)
    # Two pictures' padding in front is one block, three behind are two with the zero tap.
    x = F.pad(x, (0, 0, *(1, 2) * 3)).permute(0, 4, 1, 2, 3)
    return F.conv3d(x, weight)


class Unit(nn.Module):
    """Convolution without bias, batch norm without gamma, ReLU: `Unit3D` of the original, or flat at rank 2."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, rank: int = 3) -> None:
        super().__init__()
        self.stride = stride
        convolution, norm = (nn.Conv3d, nn.BatchNorm3d) if rank == 3 else (nn.Conv2d, nn.BatchNorm2d)
        self.conv = convolution(inputs, outputs, kernel, stride, bias=False)
        self.norm = norm(outputs, eps=EPSILON)
        # No gamma: the next convolution scales anyway. It stays one, and is not a parameter.
        self.norm.weight.requires_grad_(False)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.conv.kernel_size[0]
        pads = [same_padding(n, kernel, self.stride) for n in x.shape[2:]]
        convolve = F.conv3d if len(pads) == 3 else F.conv2d
        stem = kernel == 7 and len(pads) == 3 and torch.is_autocast_enabled("cpu")
        if stem and not any(n % 2 for n in x.shape[2:]):
            x = stem_convolution(x.to(torch.bfloat16), self.conv.weight)
        elif all(front == back for front, back in pads):
            x = convolve(x, self.conv.weight, None, self.stride, [front for front, _ in pads])
        else:
            x = convolve(F.pad(x, [p for pair in reversed(pads) for p in pair]), self.conv.weight, None, self.stride)
        return F.relu(self.norm(x), inplace=True)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weights [out, in, (t,) h, w] and bias [out] of the one convolution that this unit is at inference."""
        scale = self.norm.weight / torch.sqrt(self.norm.running_var + EPSILON)
        return (
            self.conv.weight * scale.reshape(-1, *[1] * (self.conv.weight.ndim - 1)),
            self.norm.bias - self.norm.running_mean * scale,
        )


class Mixed(nn.Module):
    """An inception module, inflated or flat: four branches, concatenated in order."""

    def __init__(self, name: str, inputs: int, width: float, rank: int = 3) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3 = (scaled(c, width) for c in MIXED[name])

        def unit(inputs: int, outputs: int, kernel: int = 1) -> Unit:
            return Unit(inputs, outputs, kernel, rank=rank)

        self.rank = rank
        self.Branch_0 = nn.ModuleDict({"Conv3d_0a_1x1": unit(inputs, b0)})
        self.Branch_1 = nn.ModuleDict({"Conv3d_0a_1x1": unit(inputs, b1a), "Conv3d_0b_3x3": unit(b1a, b1b, 3)})
        # The original calls this one `0a` in Mixed_5b only; imported checkpoints rely on it.
        last = "Conv3d_0a_3x3" if name == "Mixed_5b" else "Conv3d_0b_3x3"
        self.Branch_2 = nn.ModuleDict({"Conv3d_0a_1x1": unit(inputs, b2a), last: unit(b2a, b2b, 3)})
        self.Branch_3 = nn.ModuleDict({"Conv3d_0b_1x1": unit(inputs, b3)})
        self.outputs = b0 + b1b + b2b + b3

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for branch in (self.Branch_0, self.Branch_1, self.Branch_2):
            y = x
            for unit in branch.values():
                y = unit(y)
            outputs.append(y)
        pooled = (F.max_pool3d if self.rank == 3 else F.max_pool2d)(x, 3, 1, padding=1)
        outputs.append(self.Branch_3["Conv3d_0b_1x1"](pooled))
        return torch.cat(outputs, 1)


class Inception(nn.Module):
    """Inception-V1 up to Mixed_5c, inflated (rank 3) or flat (rank 2, shapes without time)."""

    def __init__(self, channels: int, width: float, rank: int = 3) -> None:
        super().__init__()
        self.width = width
        self.rank = rank
        stem, second = scaled(64, width), scaled(192, width)
        self.Conv3d_1a_7x7 = Unit(channels, stem, 7, 2, rank)
        self.Conv3d_2b_1x1 = Unit(stem, stem, rank=rank)
        self.Conv3d_2c_3x3 = Unit(stem, second, 3, rank=rank)
        channels = second
        self.mixed = nn.ModuleDict()
        for name in MIXED:
            self.mixed[name] = Mixed(name, channels, width, rank)
            channels = self.mixed[name].outputs

    @property
    def features(self) -> int:
        """Channels of the last map."""
        return self.mixed["Mixed_5c"].outputs

    def pool(self, name: str, x: Tensor) -> Tensor:
        """One of the pools between the units."""
        kernel, stride = (sides[3 - self.rank :] for sides in POOLS[f"MaxPool3d_{name}"])
        return max_pool_same(x, kernel, stride)

    def trunk(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Every unit's name and output, in order; the last is the map that the head averages."""
        x = self.Conv3d_1a_7x7(x)
        yield "Conv3d_1a_7x7", x
        x = self.pool("2a_3x3", x)
        x = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x))
        yield "Conv3d_2c_3x3", x
        for name, mixed in self.mixed.items():
            for pool, first in (("3a_3x3", "Mixed_3b"), ("4a_3x3", "Mixed_4b"), ("5a_2x2", "Mixed_5b")):
                if name == first:
                    x = self.pool(pool, x)
            if name in FULL_PRECISION:
                with torch.autocast(x.device.type, enabled=False):
                    x = mixed(x.float())
            else:
                x = mixed(x)
            yield name, x

    def last(self, x: Tensor) -> Tensor:
        """Mixed_5c's output, of which a head makes logits."""
        for _, y in self.trunk(x):
            last = y
        return last

    def units(self) -> Iterator[tuple[str, Unit]]:
        """(readable name, unit) of every convolution with batch norm, in order."""
        for name, module in self.named_modules():
            if isinstance(module, Unit):
                yield name.removeprefix("mixed.").replace(".", "/"), module


class I3D(Inception):
    """One stream. `forward` gives raw logits [batch, classes]; `forward_training` the auxiliary map besides."""

    def __init__(self, stream: str, classes: int, width: float = 0.25, dropout: float = 0.1) -> None:
        super().__init__(CHANNELS[stream], width)
        self.stream = stream
        self.dropout = dropout
        self.logits = nn.Conv3d(self.features, classes, 1)
        nn.init.normal_(self.logits.weight, std=0.01)
        nn.init.zeros_(self.logits.bias)

    def head(self, x: Tensor) -> Tensor:
        """Logits [batch, classes] of the last map: average pool 2 x h x w, dropout, 1x1x1 convolution, mean."""
        x = F.avg_pool3d(x, (2, *x.shape[3:]), stride=1)
        x = F.dropout(x, self.dropout, self.training)
        with torch.autocast(x.device.type, enabled=False):
            return self.logits(x).mean((2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(x))

    def forward_training(self, x: Tensor, auxiliary: nn.Module) -> tuple[Tensor, Tensor]:
        """Logits, and `auxiliary` applied to Mixed_3c [batch, outputs, time / 2, height / 8, width / 8]."""
        for name, y in self.trunk(x):
            if name == AUXILIARY_AT:
                side = auxiliary(y)
            last = y
        return self.head(last), side

    @torch.no_grad()
    def project_stem(self) -> None:
        """Takes each conv1 kernel's mean over time away, which leaves it blind to anything that stands still.

        Without this an RGB stream trained from scratch on rendered video stays at chance: the still picture explains
        the loss's first drop, and the network never leaves it. Called after every optimizer step. The exported
        convolution is an ordinary one.
        """
        weight = self.Conv3d_1a_7x7.conv.weight
        weight -= weight.mean(2, keepdim=True)

    def parameter_count(self) -> int:
        """Numbers in a checkpoint of the original: weights, logits, and batch norm's beta, mean and variance."""
        count = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return count + sum(2 * unit.norm.num_features for _, unit in self.units())
