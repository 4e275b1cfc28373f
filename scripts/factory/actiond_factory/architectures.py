"""The paper's five architectures as ONNX graphs and manifest streams. Needs no torch; their torch twins: `twins.py`.

An architecture's graph is built from `Weights`, whoever they come from: seeded random numbers, a torch twin, a
checkpoint. Batch norm is folded into them. Against the paper's Table 1, with 400 classes; parameters are counted in the
ONNX files, frames and seconds are those of one training example:

| | parameters | paper | frames | seconds |
| --- | --- | --- | --- | --- |
| (a) convnet-lstm | 8.95 M | 9 M | 25 RGB, one in five | 5 |
| (b) 3d-convnet | 79.63 M | 79 M | 16 RGB | 0.64 |
| (c) two-stream | 12.06 M | 12 M | 1 RGB, 10 flow | 0.4 |
| (d) 3d-fused | 39.76 M | 39 M | 5 RGB, 50 flow | 2 |
| (e) two-stream-i3d | 25.37 M | 25 M | 64 RGB, 64 flow | 2.56 |

Table 1 has whole millions: some of its figures are cut and some rounded. Batch norm's beta, mean and variance are one
bias here; the paper does not say how many of them it counts, which is 0.1 M at most and changes no figure.

In testing the paper shows 2 such examples in a row to (a), 15 to (b), 25 to (c) and 5 to (d), and 250 frames at once to
(e). `actiond infer` and `eval` take as many samples of (c), spread over however long a clip is, the last output of (a),
one pass over (e), and of the others the mean of windows that overlap, one every hop.

Flow is what the daemon computes live, DIS, and not the paper's TV-L1, which a live camera cannot wait for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from . import inception
from .graph import Graph
from .inception import Weights, scaled
from .model import Stream

LOGITS = "Logits/Conv3d_0c_1x1"
"""The last layer in every network's weights; [classes, C] or, in I3D, [classes, C, 1, 1, 1]."""
Shapes = dict[str, tuple[int, ...]]

# C3D (Tran et al., ICCV 2015): output channels of 3x3x3 convolutions; None is a 2x2x2 pool of stride 2.
C3D: dict[str, int | None] = {
    "conv1a": 64,
    "pool1": None,
    "conv2a": 128,
    "pool2": None,
    "conv3a": 256,
    "conv3b": 256,
    "pool3": None,
    "conv4a": 512,
    "conv4b": 512,
    "pool4": None,
    "conv5a": 512,
    "conv5b": 512,
    "pool5": None,
}
HIDDEN = 512
"""Units of the LSTM, and outputs of the fusing convolution."""
DENSE = 4096
"""Outputs of C3D's fc6 and fc7."""


@dataclass(frozen=True)
class Architecture:
    """One of the paper's systems."""

    name: str
    text: str
    size: int
    """pixels of the input's side in the paper"""
    streams: Callable[[int, float], list[Stream]]
    """of an input of `size` pixels, at a width"""
    shapes: Callable[[Stream, int, float], Shapes]
    """stream, classes, width -> every unit's name and the shape of its weights"""
    graph: Callable[[Stream, Weights], Graph]
    steps: int = 1
    """network steps that one training example spans: above 1 where state is carried from step to step"""
    hop: int | None = None
    """frames from one step to the next, where the network was made for a certain one"""
    samples: int | None = None
    """steps that a whole clip's predictions are averaged over, spread evenly; every hop where it is None"""
    smooth: int = 3
    """hops that a live score is the mean of: some 2.5 s of hops of 8 where a step itself sees little"""

    def decision(self, streams: list[Stream]) -> str:
        """The manifest's [decision]: an action is taken to begin in the middle of the first step that sees it."""
        middle = max(s.reach for s in streams) // 2
        return f'[decision]\nby = "mean"\nsmooth_hops = {self.smooth}\nonset = {middle}\noffset = {middle}\n'

    def footprint(self, streams: list[Stream]) -> dict[str, float]:
        """What a training example takes, as in Table 1: RGB frames, flow frames, seconds at 25 fps.

        Seconds are the paper's: a frame stands for the time up to the next one that is sampled.
        """
        rgb = sum(self.steps * s.frames for s in streams if s.kind != "flow")
        flow = sum(self.steps * s.frames * s.stack for s in streams if s.kind != "rgb")
        ticks = max(self.steps * s.frames * max(s.step, s.stack) for s in streams)
        return {"rgb": rgb, "flow": flow, "seconds": ticks / 25}

    def save(self, graph: onnx.ModelProto, stream: Stream, folder: Path) -> None:
        """Writes a stream's f32 file; its metadata say what a training example of it takes."""
        footprint = {f"footprint.{key}": f"{value:g}" for key, value in self.footprint([stream]).items()}
        helper.set_model_props(graph, {"architecture": self.name, **footprint})
        onnx.save(graph, folder / f"{stream.name}.onnx")


def bound(size: int) -> float:
    """Pixels of flow that become 1: the paper's 20 at 224, and as far across a picture of another size."""
    return round(20 * size / 224, 3)


def edge(size: int) -> int:
    """Side of the last map of an input of `size` pixels: five halvings, each rounded up."""
    return -(-size // 32)


def flat_shapes(channels: int, width: float, prefix: str = "") -> Shapes:
    """Of an Inception-V1 tower without its head."""
    return {prefix + name: shape for name, shape in inception.shapes(channels, width, rank=2).items()}


def tower(graph: Graph, x: str, weights: Weights, prefix: str = "") -> str:
    """Adds Inception-V1 up to Mixed_5c; `weights` know its units with the prefix."""
    for _, y in inception.trunk(graph, x, lambda name: weights(prefix + name), prefix):
        x = y
    return x


def dense(graph: Graph, name: str, x: str, weights: tuple[np.ndarray, np.ndarray]) -> str:
    """A fully connected layer on [N, C]."""
    weight, bias = weights
    return graph.node(
        "Gemm", name, [x, graph.weight(f"{name}/weight", weight), graph.weight(f"{name}/bias", bias)], transB=1
    )


def integers(graph: Graph, name: str, values: list[int]) -> str:
    """An i64 initializer: shapes, axes."""
    return graph.weight(name, np.array(values, np.int64))


# --- (a) ConvNet+LSTM ------------------------------------------------------------------------------------------------


def lstm_streams(size: int, width: float) -> list[Stream]:
    """One picture a step, every fifth; the state is carried."""
    shape = (1, 1, scaled(HIDDEN, width))
    state = (("h", "h_next", shape), ("c", "c_next", shape))
    return [Stream("rgb", "rgb", (size, size), frames=1, step=5, fit="crop", layout="NCHW", state=state)]


def lstm_shapes(stream: Stream, classes: int, width: float) -> Shapes:
    """The LSTM's gates stand in ONNX's order: input, output, forget, cell."""
    features, hidden = inception.features(width), scaled(HIDDEN, width)
    of_lstm = {"LSTM/input": (4 * hidden, features), "LSTM/state": (4 * hidden, hidden)}
    return flat_shapes(stream.channels, width) | of_lstm | {LOGITS: (classes, hidden)}


def lstm_graph(stream: Stream, weights: Weights) -> Graph:
    """(a) One step: `input` [1, 3, h, w], `h` and `c` [1, 1, hidden] to `logits` [1, classes], `h_next` and `c_next`.

    Left open by the paper: where the batch normalization is (here on the average pool's output, before the LSTM, where
    it folds into the LSTM's input weights), and what becomes of the last average pool (here the mean of the whole map).
    """
    graph = Graph("convnet_lstm")
    x = tower(graph, graph.input("input", stream.shape(1)), weights)
    h, c = (graph.input(name, shape) for name, _, shape in stream.state)
    x = graph.node("ReduceMean", "AvgPool", [x], axes=[2, 3], keepdims=0)
    (w, bias), (r, state_bias) = weights("LSTM/input"), weights("LSTM/state")
    hidden = r.shape[1]
    x = graph.node("Reshape", "LSTM/step", [x, integers(graph, "LSTM/step/shape", [1, 1, w.shape[1]])])
    inputs = [
        x,
        graph.weight("LSTM/input/weight", w[None]),
        graph.weight("LSTM/state/weight", r[None]),
        graph.weight("LSTM/bias", np.concatenate([bias, state_bias])[None]),
        "",
        h,
        c,
    ]
    graph.nodes.append(helper.make_node("LSTM", inputs, ["LSTM", "h_next", "c_next"], name="LSTM", hidden_size=hidden))
    x = graph.node("Reshape", "LSTM/output", ["LSTM", integers(graph, "LSTM/output/shape", [1, hidden])])
    logits = weights(LOGITS)
    dense(graph, "logits", x, logits)
    graph.output("logits", [1, len(logits[1])])
    for _, name, shape in stream.state:
        graph.output(name, shape)
    return graph


# --- (b) 3D-ConvNet --------------------------------------------------------------------------------------------------


def c3d_streams(size: int, width: float) -> list[Stream]:
    """16 pictures, 0.64 s."""
    return [Stream("rgb", "rgb", (size, size), frames=16, fit="crop")]


def c3d_shapes(stream: Stream, classes: int, width: float) -> Shapes:
    """The last map is one step of time, so that fc6 depends on the picture's size alone."""
    shapes, inputs = {}, stream.channels
    for name, channels in C3D.items():
        if channels is not None:
            shapes[name] = (scaled(channels, width), inputs, 3, 3, 3)
            inputs = scaled(channels, width)
    outputs = scaled(DENSE, width)
    shapes["fc6"] = (outputs, inputs * edge(stream.size[0]) * edge(stream.size[1]))
    shapes["fc7"] = (outputs, outputs)
    return shapes | {LOGITS: (classes, outputs)}


def c3d_graph(stream: Stream, weights: Weights) -> Graph:
    """(b) `input` [1, 3, 16, h, w] to `logits` [1, classes]; as long as it is wide, for the fully connected layers.

    Five pools of 2x2x2 and stride 2, the first too (C3D's own keeps time there), which leaves one of the 16 steps.
    Left open by the paper: the layers' sizes (C3D's own), the padding (SAME, as in I3D; at 112 pixels the last map is
    4x4 as C3D's), and whether the classifier counts among the "2 fully connected layers": it does not, as only fc6 and
    fc7 of 4096 with a classifier behind them have 79 M parameters.
    """
    graph = Graph("3d_convnet")
    x = graph.input("input", stream.shape(stream.frames))
    for name, channels in C3D.items():
        if channels is None:
            x = graph.max_pool(name, x, (2, 2, 2), (2, 2, 2))
        else:
            x = graph.node("Relu", f"{name}/Relu", [graph.convolution(name, x, *weights(name), [1, 1, 1])])
    x = graph.node("Flatten", "flatten", [x], axis=1)
    for name in ("fc6", "fc7"):
        x = graph.node("Relu", f"{name}/Relu", [dense(graph, name, x, weights(name))])
    logits = weights(LOGITS)
    dense(graph, "logits", x, logits)
    graph.output("logits", [1, len(logits[1])])
    return graph


# --- (c) Two-Stream --------------------------------------------------------------------------------------------------


def two_stream_streams(size: int, width: float) -> list[Stream]:
    """A picture, and 10 flow fields that end at it."""
    return [
        Stream("rgb", "rgb", (size, size), frames=1, fit="crop", layout="NCHW"),
        Stream("flow", "flow", (size, size), frames=1, stack=10, fit="crop", layout="NCHW", bound=bound(size)),
    ]


def two_stream_shapes(stream: Stream, classes: int, width: float) -> Shapes:
    """Of one stream's network."""
    return flat_shapes(stream.channels, width) | {LOGITS: (classes, inception.features(width))}


def two_stream_graph(stream: Stream, weights: Weights) -> Graph:
    """(c) One stream: `input` [1, 3 or 20, h, w] to `logits` [1, classes]; the flow's channels are dx, dy by frame.

    Left open by the paper: where in the 0.4 s the RGB frame lies. Here it is the last, so that a live answer is not
    late by half of the flow.
    """
    graph = Graph(f"two_stream_{stream.kind}")
    x = tower(graph, graph.input("input", stream.shape(1)), weights)
    x = graph.node("ReduceMean", "Logits/AvgPool", [x], axes=[2, 3], keepdims=0)
    logits = weights(LOGITS)
    dense(graph, "logits", x, logits)
    graph.output("logits", [1, len(logits[1])])
    return graph


# --- (d) 3D-Fused Two-Stream -----------------------------------------------------------------------------------------


def fused_streams(size: int, width: float) -> list[Stream]:
    """5 pictures, 10 apart, each with the 10 flow fields that end at it: one network sees both."""
    return [
        Stream(
            "rgb+flow",
            "rgb+flow",
            (size, size),
            frames=5,
            step=10,
            stack=10,
            fit="crop",
            layout="NTCHW",
            bound=bound(size),
        )
    ]


def fused_shapes(stream: Stream, classes: int, width: float) -> Shapes:
    """Towers `RGB/` and `Flow/`, and the convolution that fuses them."""
    fusion = {"Fusion/Conv3d_3x3x3": (scaled(HIDDEN, width), 2 * inception.features(width), 3, 3, 3)}
    towers = flat_shapes(3, width, "RGB/") | flat_shapes(stream.channels - 3, width, "Flow/")
    return towers | fusion | {LOGITS: (classes, scaled(HIDDEN, width))}


def fused_graph(stream: Stream, weights: Weights) -> Graph:
    """(d) `input` [1, 5, 3 + 20, h, w] to `logits` [1, classes].

    The towers see the 5 times as a batch of pictures; then 5x7x7 features of both, 3x3x3 convolution to 512, 3x3x3
    max-pool, fully connected layer. Left open by the paper: padding (SAME) and the pool's stride (2, as I3D's 3x3x3
    pool between blocks), and what of the pooled 3x4x4 the last layer sees: here their mean. On all of it flattened it
    would have 9.8 M parameters and the network 49 M; on the mean they are the paper's 39 M.
    """
    graph = Graph("3d_fused")
    times, size = stream.frames, stream.size[0]
    x = graph.input("input", stream.shape(times))
    x = graph.node("Reshape", "times", [x, integers(graph, "times/shape", [times, stream.channels, size, size])])
    features = []
    for prefix, first, end in (("RGB/", 0, 3), ("Flow/", 3, stream.channels)):
        limits = [integers(graph, f"{prefix}{key}", [n]) for key, n in (("from", first), ("to", end), ("axis", 1))]
        features.append(tower(graph, graph.node("Slice", f"{prefix}slice", [x, *limits]), weights, prefix))
    x = graph.node("Concat", "Fusion/towers", features, axis=1)
    x = graph.node("Transpose", "Fusion/transpose", [x], perm=[1, 0, 2, 3])
    x = graph.node("Unsqueeze", "Fusion/batch", [x, integers(graph, "Fusion/batch/axes", [0])])
    x = graph.convolution("Fusion/Conv3d_3x3x3", x, *weights("Fusion/Conv3d_3x3x3"), [1, 1, 1])
    x = graph.node("Relu", "Fusion/Conv3d_3x3x3/Relu", [x])
    x = graph.max_pool("Fusion/MaxPool3d_3x3x3", x, (3, 3, 3), (2, 2, 2))
    x = graph.node("ReduceMean", "Logits/AvgPool", [x], axes=[2, 3, 4], keepdims=0)
    logits = weights(LOGITS)
    dense(graph, "logits", x, logits)
    graph.output("logits", [1, len(logits[1])])
    return graph


# --- (e) Two-Stream I3D ----------------------------------------------------------------------------------------------


def i3d_streams(size: int, width: float) -> list[Stream]:
    """64 pictures and 64 flow fields, 2.56 s."""
    return [
        Stream("rgb", "rgb", (size, size), frames=64, fit="crop"),
        Stream("flow", "flow", (size, size), frames=64, fit="crop", bound=bound(size)),
    ]


def i3d_shapes(stream: Stream, classes: int, width: float) -> Shapes:
    """Of one stream's network."""
    return inception.shapes(stream.channels, width) | {LOGITS: (classes, inception.features(width), 1, 1, 1)}


def i3d_graph(stream: Stream, weights: Weights) -> Graph:
    """(e) One stream: see `inception.i3d`. Its time axis is open."""
    return inception.i3d(stream.kind, stream.size[0], weights, weights(LOGITS))


_ALL = (
    Architecture(
        "convnet-lstm",
        "(a) Inception-V1 on every fifth frame, and an LSTM of 512 units",
        224,
        lstm_streams,
        lstm_shapes,
        lstm_graph,
        steps=25,
        hop=5,
    ),
    Architecture(
        "3d-convnet", "(b) C3D with batch norm, on 16 frames", 112, c3d_streams, c3d_shapes, c3d_graph, smooth=8
    ),
    Architecture(
        "two-stream",
        "(c) Inception-V1 on a frame and on 10 flow frames",
        224,
        two_stream_streams,
        two_stream_shapes,
        two_stream_graph,
        samples=25,
        smooth=8,
    ),
    Architecture(
        "3d-fused",
        "(d) Inception-V1 on 5 frames and on their flow stacks, fused by a 3D convolution",
        224,
        fused_streams,
        fused_shapes,
        fused_graph,
    ),
    Architecture(
        "two-stream-i3d",
        "(e) Inception-V1 inflated, on 64 RGB frames and on 64 flow frames",
        224,
        i3d_streams,
        i3d_shapes,
        i3d_graph,
    ),
)
ARCHITECTURES = {architecture.name: architecture for architecture in _ALL}
