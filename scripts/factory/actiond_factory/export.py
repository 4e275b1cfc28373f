"""Writes trained streams as ONNX, with batch norm folded in, and the manifest beside them.

The graphs are built node by node from the weights, not traced: their nodes carry I3D's own names, convolutions and
pools say SAME padding in words (`auto_pad`), and the time axis is open. Input `input` f32 [1, C, T, 64, 64], output
`logits` f32 [1, classes], raw.

  python -m actiond_factory export --rgb build/factory/runs/rgb --flow build/factory/runs/flow --out models/default \\
      --data build/factory/renders/held
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from .classes import LABELS
from .data import EVALUATION_FRAMES, SIZE, Clips, held_out
from .i3d import CHANNELS, I3D, MIXED, POOLS, Unit
from .model import log_softmax, session, write_manifest
from .train import load_run, predict

OPSET = 17
POOL_BEFORE = {
    "Conv3d_2b_1x1": "MaxPool3d_2a_3x3",
    "Mixed_3b": "MaxPool3d_3a_3x3",
    "Mixed_4b": "MaxPool3d_4a_3x3",
    "Mixed_5b": "MaxPool3d_5a_2x2",
}
TOLERANCE = 1e-4


class Graph:
    """An ONNX graph that grows at its end; every method adds a node and returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, kind: str, name: str, inputs: list[str], **attributes: object) -> str:
        """Any node; its output is called as the node is."""
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def weight(self, name: str, value: np.ndarray) -> str:
        """An initializer."""
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
        return name

    def convolution(self, name: str, x: str, weight: np.ndarray, bias: np.ndarray, stride: int = 1) -> str:
        """A cubic convolution with SAME padding."""
        return self.node(
            "Conv",
            name,
            [x, self.weight(f"{name}/weight", weight), self.weight(f"{name}/bias", bias)],
            kernel_shape=list(weight.shape[2:]),
            strides=[stride] * 3,
            auto_pad="SAME_UPPER",
        )

    def unit(self, name: str, x: str, unit: Unit) -> str:
        """Convolution, folded batch norm, ReLU."""
        weight, bias = (value.detach().numpy() for value in unit.folded())
        return self.node("Relu", f"{name}/Relu", [self.convolution(name, x, weight, bias, unit.stride)])

    def max_pool(self, name: str, x: str, kernel: tuple[int, ...], stride: tuple[int, ...]) -> str:
        """A max pool with SAME padding, which ONNX leaves out of the maximum."""
        return self.node("MaxPool", name, [x], kernel_shape=list(kernel), strides=list(stride), auto_pad="SAME_UPPER")


def build(net: I3D, temperature: float = 1.0) -> onnx.ModelProto:
    """The network as ONNX; its logits are divided by `temperature`, in the weights of the last convolution."""
    graph = Graph()
    x = "input"
    for name in ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3"):
        if name in POOL_BEFORE:
            x = graph.max_pool(POOL_BEFORE[name], x, *POOLS[POOL_BEFORE[name]])
        x = graph.unit(name, x, getattr(net, name))
    for name in MIXED:
        if name in POOL_BEFORE:
            x = graph.max_pool(POOL_BEFORE[name], x, *POOLS[POOL_BEFORE[name]])
        mixed = net.mixed[name]
        outputs = []
        for branch in ("Branch_0", "Branch_1", "Branch_2", "Branch_3"):
            y = x
            if branch == "Branch_3":
                y = graph.max_pool(f"{name}/{branch}/MaxPool3d_0a_3x3", y, (3, 3, 3), (1, 1, 1))
            for part, unit in getattr(mixed, branch).items():
                y = graph.unit(f"{name}/{branch}/{part}", y, unit)
            outputs.append(y)
        x = graph.node("Concat", name, outputs, axis=1)
    edge = SIZE // 32
    x = graph.node("AveragePool", "Logits/AvgPool3d_0a_7x7", [x], kernel_shape=[2, edge, edge], strides=[1, 1, 1])
    weight = net.logits.weight.detach().numpy() / temperature
    bias = net.logits.bias.detach().numpy() / temperature
    x = graph.convolution("Logits/Conv3d_0c_1x1", x, weight, bias)
    graph.node("ReduceMean", "logits", [x], axes=[2, 3, 4], keepdims=0)
    classes = len(bias)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            f"i3d_{net.stream}",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, CHANNELS[net.stream], "T", SIZE, SIZE])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, classes])],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="actiond_factory",
        ir_version=8,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


@torch.no_grad()
def difference(net: I3D, model: onnx.ModelProto, frames: int) -> float:
    """Greatest difference of the logits between torch and ONNX Runtime on noise of `frames` pictures."""
    rng = np.random.default_rng(frames)
    x = rng.uniform(-1, 1, (1, CHANNELS[net.stream], frames, SIZE, SIZE)).astype(np.float32)
    expected = net.eval()(torch.from_numpy(x)).numpy()
    return float(np.abs(session(model).run(["logits"], {"input": x})[0] - expected).max())


def best_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The divisor of the logits under which the true labels are likeliest."""
    candidates = np.geomspace(0.4, 3.0, 81)
    rows = np.arange(len(labels))
    return float(min(candidates, key=lambda t: -log_softmax(logits / t)[rows, labels].mean()))


def best_weight(rgb: np.ndarray, flow: np.ndarray, labels: np.ndarray) -> float:
    """The RGB stream's share, in steps of 0.05, at which averaged probabilities are right most often.

    Ties go to the share that makes the true labels likelier. Held to 0.3-0.7: held-out renders predict real clips
    too badly to silence a stream by them.
    """
    rows = np.arange(len(labels))

    def merit(share: float) -> tuple[float, float]:
        fused = share * np.exp(log_softmax(rgb)) + (1 - share) * np.exp(log_softmax(flow))
        return float((fused.argmax(1) == labels).mean().round(3)), float(np.log(fused[rows, labels] + 1e-9).mean())

    return float(max(np.round(np.arange(0.3, 0.701, 0.05), 2), key=merit))


def false_start_limit(scores: np.ndarray, labels: np.ndarray, label: int, limit: float) -> float:
    """The lowest start threshold, from 0.5 up, that at most `limit` of the clips without the label pass."""
    others = np.sort(scores[labels != label, label])
    threshold = others[int(np.ceil(len(others) * (1 - limit))) - 1] if len(others) else 0.5
    return float(np.clip(np.ceil(threshold * 20) / 20, 0.5, 0.8))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `export`."""
    parser.add_argument("--rgb", type=Path, required=True, help="run of the RGB stream")
    parser.add_argument("--flow", type=Path, required=True, help="run of the flow stream")
    parser.add_argument("--out", type=Path, required=True, help="the model's folder")
    parser.add_argument("--data", type=Path, required=True, help="held-out shards, for temperature and fusion")
    parser.add_argument("--clips", type=int, default=600, help="how many held-out clips to look at")


def main(args: argparse.Namespace) -> int:
    """Runs `export`."""
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    clips = Clips(args.data)
    clips.rescan()
    # Every third held-out clip sets temperatures, weights and thresholds; the rest is what the accuracy is told of.
    indices = held_out(clips, args.clips)
    labels = clips.labels[indices]
    tuned = np.arange(len(indices)) % 3 == 0
    logits = {}
    for stream in ("rgb", "flow"):
        net, _, progress = load_run(getattr(args, stream))
        raw = predict(net, clips, indices, EVALUATION_FRAMES)
        temperature = best_temperature(raw[tuned], labels[tuned])
        logits[stream] = raw / temperature
        worst = max(difference(net, build(net), frames) for frames in (EVALUATION_FRAMES, 79))
        if worst > TOLERANCE:
            raise RuntimeError(f"{stream}: ONNX Runtime differs from torch by {worst}")
        onnx.save(build(net, temperature), args.out / f"{stream}.onnx")
        (args.out / f"{stream}.int8.onnx").unlink(missing_ok=True)
        print(
            f"{stream}: {progress['presentations']} presentations, {progress['minutes']:.1f} min, held-out "
            f"{(raw.argmax(1) == labels).mean():.3f}, temperature {temperature:.2f}, torch and ONNX within {worst:.1e}"
        )
    share = best_weight(logits["rgb"][tuned], logits["flow"][tuned], labels[tuned])
    fused = share * np.exp(log_softmax(logits["rgb"])) + (1 - share) * np.exp(log_softmax(logits["flow"]))
    starts = {
        label: false_start_limit(fused[tuned], labels[tuned], index, 0.01)
        for index, label in enumerate(LABELS)
        if index
    }
    write_manifest(args.out, {"rgb": share, "flow": 1 - share}, starts)
    report(logits, fused, labels, ~tuned, share)
    return 0


def report(
    logits: dict[str, np.ndarray], fused: np.ndarray, labels: np.ndarray, shown: np.ndarray, share: float
) -> None:
    """Prints accuracies on the clips that nothing was tuned on, as the model card's table, and the worst confusions."""
    right = {name: values.argmax(1) == labels for name, values in {**logits, "fused": fused}.items()}
    count = int(shown.sum())
    print(f"fused with {share:.2f} RGB; on {count} held-out clips that nothing was tuned on:")
    print("| class | clips | RGB | flow | fused |\n| --- | --- | --- | --- | --- |")
    rows = [("all", shown), *((label, shown & (labels == index)) for index, label in enumerate(LABELS))]
    for name, chosen in rows:
        if chosen.any():
            scores = " | ".join(f"{right[stream][chosen].mean():.2f}" for stream in ("rgb", "flow", "fused"))
            print(f"| {name} | {chosen.sum()} | {scores} |")
    predicted = fused.argmax(1)
    pairs, counts = np.unique(
        np.stack([labels, predicted], 1)[shown & (labels != predicted)], axis=0, return_counts=True
    )
    for order in counts.argsort()[::-1][:8]:
        truth, guess = pairs[order]
        print(f"{LABELS[truth]} taken for {LABELS[guess]}: {counts[order]}")
