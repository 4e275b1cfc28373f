"""Inception-V1 as data, and as ONNX: flat (2D) and inflated (3D, which is I3D). Needs no torch.

Units are named as DeepMind's `i3d.py` names them; see `i3d.py` here for the torch twin.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np

from .graph import Graph

CHANNELS = {"rgb": 3, "flow": 2}

# Mixed units: channels of Branch_0 (1x1), Branch_1 (1x1 then 3x3), Branch_2 (1x1 then 3x3), Branch_3 (pool then 1x1).
MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
# The pools of the inflated network: kernel and stride (time, height, width). The flat one's are these without time.
POOLS = {
    "MaxPool3d_2a_3x3": ((1, 3, 3), (1, 2, 2)),
    "MaxPool3d_3a_3x3": ((1, 3, 3), (1, 2, 2)),
    "MaxPool3d_4a_3x3": ((3, 3, 3), (2, 2, 2)),
    "MaxPool3d_5a_2x2": ((2, 2, 2), (2, 2, 2)),
}
POOL_BEFORE = {
    "Conv3d_2b_1x1": "MaxPool3d_2a_3x3",
    "Mixed_3b": "MaxPool3d_3a_3x3",
    "Mixed_4b": "MaxPool3d_4a_3x3",
    "Mixed_5b": "MaxPool3d_5a_2x2",
}

Weights = Callable[[str], tuple[np.ndarray, np.ndarray]]
"""Unit name, such as `Mixed_3b/Branch_1/Conv3d_0a_1x1`, to the weights [out, in, (t,) h, w] and bias [out] of the one
convolution that it is once batch norm is folded in."""


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, as a multiple of 4 (vector lanes), at least 4; unchanged at `width=1`."""
    return channels if width == 1.0 else max(4, round(channels * width / 4) * 4)


def features(width: float = 1.0) -> int:
    """Channels of the last map, Mixed_5c."""
    b0, _, b1, _, b2, b3 = (scaled(c, width) for c in MIXED["Mixed_5c"])
    return b0 + b1 + b2 + b3


def shapes(channels: int, width: float = 1.0, rank: int = 3) -> dict[str, tuple[int, ...]]:
    """Shape of every unit's weights, [out, in, (t,) h, w], in the trunk's order; `channels`: of the input."""
    stem, second = scaled(64, width), scaled(192, width)
    found = {"Conv3d_1a_7x7": (stem, channels, 7), "Conv3d_2b_1x1": (stem, stem, 1), "Conv3d_2c_3x3": (second, stem, 3)}
    inputs = second
    for name, numbers in MIXED.items():
        b0, b1a, b1b, b2a, b2b, b3 = (scaled(c, width) for c in numbers)
        sizes = [
            [(b0, inputs, 1)],
            [(b1a, inputs, 1), (b1b, b1a, 3)],
            [(b2a, inputs, 1), (b2b, b2a, 3)],
            [(b3, inputs, 1)],
        ]
        for (branch, units), of_units in zip(branches(name), sizes, strict=True):
            found |= {f"{name}/{branch}/{unit}": size for unit, size in zip(units, of_units, strict=True)}
        inputs = b0 + b1b + b2b + b3
    return {name: (out, into, *[kernel] * rank) for name, (out, into, kernel) in found.items()}


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> Weights:
    """Seeded weights of these shapes by He et al. (2015), under which a ReLU network keeps its activations' scale.

    Biases are small normal numbers, as a batch norm's beta folded in. A layer's numbers depend on seed and name only.
    """
    order = {name: number for number, name in enumerate(shapes)}

    def weights(name: str) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([seed, order[name]])
        weight = rng.standard_normal(shapes[name], np.float32)
        weight *= math.sqrt(2 / math.prod(shapes[name][1:]))
        return weight, rng.standard_normal(shapes[name][0], np.float32) * np.float32(0.05)

    return weights


def branches(name: str) -> Iterator[tuple[str, list[str]]]:
    """A mixed unit's branches and the units in each, in order."""
    # The original calls this one `0a` in Mixed_5b only; its checkpoints rely on it.
    last = "Conv3d_0a_3x3" if name == "Mixed_5b" else "Conv3d_0b_3x3"
    yield "Branch_0", ["Conv3d_0a_1x1"]
    yield "Branch_1", ["Conv3d_0a_1x1", "Conv3d_0b_3x3"]
    yield "Branch_2", ["Conv3d_0a_1x1", last]
    yield "Branch_3", ["Conv3d_0b_1x1"]


def trunk(graph: Graph, x: str, weights: Weights, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Adds everything up to Mixed_5c; gives every endpoint's name and output, in order.

    Flat or inflated, as the rank of the weights says. `prefix` stands before every node's name (two towers in a graph).
    """

    def unit(name: str, x: str, stride: int = 1) -> str:
        weight, bias = weights(name)
        x = graph.convolution(prefix + name, x, weight, bias, [stride] * (weight.ndim - 2))
        return graph.node("Relu", f"{prefix}{name}/Relu", [x])

    def pool(name: str, x: str) -> str:
        kernel, stride = (sides[3 - rank :] for sides in POOLS[name])
        return graph.max_pool(prefix + name, x, kernel, stride)

    rank = weights("Conv3d_1a_7x7")[0].ndim - 2
    for name in ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3", *MIXED):
        if name in POOL_BEFORE:
            x = pool(POOL_BEFORE[name], x)
            yield POOL_BEFORE[name], x
        if name in MIXED:
            outputs = []
            for branch, units in branches(name):
                y = x
                if branch == "Branch_3":
                    y = graph.max_pool(f"{prefix}{name}/{branch}/MaxPool3d_0a_3x3", y, (3,) * rank, (1,) * rank)
                for part in units:
                    y = unit(f"{name}/{branch}/{part}", y)
                outputs.append(y)
            x = graph.node("Concat", prefix + name, outputs, axis=1)
        else:
            x = unit(name, x, 2 if name == "Conv3d_1a_7x7" else 1)
        yield name, x


def i3d(stream: str, size: int, weights: Weights, logits: tuple[np.ndarray, np.ndarray]) -> Graph:
    """I3D: `input` f32 [1, C, T, size, size] to `logits` f32 [1, classes]. `logits`: [classes, C, 1, 1, 1] and bias.

    The time axis is open. The head averages 2 x h x w, as the paper, then over time behind the last convolution.
    """
    graph = Graph(f"i3d_{stream}")
    x = graph.input("input", [1, CHANNELS[stream], "T", size, size])
    for _, y in trunk(graph, x, weights):
        x = y
    # Five halvings, each rounded up.
    edge = -(-size // 32)
    x = graph.node("AveragePool", "Logits/AvgPool3d_0a_7x7", [x], kernel_shape=[2, edge, edge], strides=[1, 1, 1])
    x = graph.convolution("Logits/Conv3d_0c_1x1", x, *logits, [1, 1, 1])
    graph.node("ReduceMean", "logits", [x], axes=[2, 3, 4], keepdims=0)
    graph.output("logits", [1, len(logits[1])])
    return graph
