"""Writes trained streams as ONNX, with batch norm folded in, and the manifest beside them.

The graphs are built node by node from the weights, not traced: their nodes carry I3D's own names, convolutions and
pools say SAME padding in words (`auto_pad`), and the time axis is open. Input `input` f32 [1, C, T, 64, 64], output
`logits` f32 [1, classes], raw.

Example:
  scripts/factory/factory export --rgb build/runs/rgb --flow build/runs/flow --out models/default \\
      --data build/renders/held
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
import torch

from . import inception
from .classes import LABELS
from .data import EVALUATION_FRAMES, SIZE, Clips, held_out
from .errors import BadInput
from .i3d import I3D
from .inception import CHANNELS
from .model import default_manifest, log_softmax, session, staged
from .train import load_run, predict

TOLERANCE = 1e-4


def build(net: I3D, temperature: float = 1.0) -> onnx.ModelProto:
    """The network as ONNX; its logits are divided by `temperature`, in the weights of the last convolution."""
    units = dict(net.units())

    def weights(name: str) -> tuple[np.ndarray, np.ndarray]:
        weight, bias = units[name].folded()
        return weight.detach().numpy(), bias.detach().numpy()

    logits = (net.logits.weight.detach().numpy() / temperature, net.logits.bias.detach().numpy() / temperature)
    return inception.i3d(net.stream, SIZE, weights, logits).model()


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
    nets = {stream: load_run(getattr(args, stream)) for stream in ("rgb", "flow")}
    for stream, (net, _, _) in nets.items():
        if net.stream != stream:
            raise BadInput(f"{getattr(args, stream)}: a run of the {net.stream} stream, given as --{stream}")
    clips = Clips(args.data)
    clips.rescan()
    if not len(clips):
        raise BadInput(f"{args.data}: no shards in it; --data is the held/ of what `render --out` fills")
    # Every third held-out clip sets temperatures, weights and thresholds; the rest is what the accuracy is told of.
    indices = held_out(clips, args.clips)
    labels = clips.labels[indices]
    tuned = np.arange(len(indices)) % 3 == 0
    logits, graphs = {}, {}
    for stream, (net, _, progress) in nets.items():
        raw = predict(net, clips, indices, EVALUATION_FRAMES)
        temperature = best_temperature(raw[tuned], labels[tuned])
        logits[stream] = raw / temperature
        worst = max(difference(net, build(net), frames) for frames in (EVALUATION_FRAMES, 79))
        if worst > TOLERANCE:
            raise RuntimeError(f"{stream}: ONNX Runtime differs from torch by {worst}")
        graphs[stream] = build(net, temperature)
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
    with staged(args.out) as folder:
        for stream, graph in graphs.items():
            onnx.save(graph, folder / f"{stream}.onnx")
            # What was quantized from other weights is no longer this model.
            (folder / f"{stream}.int8.onnx").unlink(missing_ok=True)
        default_manifest({"rgb": share, "flow": 1 - share}, starts).write(folder)
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
