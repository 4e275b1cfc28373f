"""Writes a model of one of the paper's architectures with seeded random weights: a folder that actiond runs, for
measuring speed and memory, and for training to begin with. It recognizes nothing.

  scripts/factory/factory build two-stream-i3d --classes 400 --out build/i3d
  scripts/factory/factory build two-stream-i3d --labels labels.txt --size 64 --width 0.25 --out build/small
"""

import argparse
import math
from pathlib import Path

import onnx

from .architectures import ARCHITECTURES, Architecture
from .errors import BadInput
from .inception import random_weights
from .model import Manifest, Stream, staged


def read_labels(path: Path, classes: int | None = None) -> list[str]:
    """A label a line; as many as `classes` where that is given."""
    try:
        # Some editors begin a text with a mark of its encoding, which is no part of the first label.
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot read the labels: {error}") from error
    labels = [line.strip() for line in text.splitlines() if line.strip()]
    if not labels:
        raise BadInput(f"{path}: no labels in it; write one a line")
    for number, label in enumerate(labels):
        if label in labels[:number]:
            raise BadInput(f"{path}: label {label!r} stands twice")
    if classes is not None and len(labels) != classes:
        raise BadInput(f"{path}: {len(labels)} labels for {classes} classes")
    return labels


def check_new(out: Path) -> None:
    """A command that makes a folder from nothing takes the place of nothing."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise BadInput(f"{out}: exists already; remove it or choose another folder")


def random_model(architecture: Architecture, stream: Stream, classes: int, width: float, seed: int) -> onnx.ModelProto:
    """One stream's graph with random weights; streams differ even with the same seed."""
    of_stream = seed * 1000 + sum(stream.name.encode())
    weights = random_weights(architecture.shapes(stream, classes, width), of_stream)
    return architecture.graph(stream, weights).model()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `build`."""
    parser.add_argument(
        "architecture",
        choices=ARCHITECTURES,
        metavar="ARCHITECTURE",
        help="; ".join(f"{name}: {a.text}" for name, a in ARCHITECTURES.items()),
    )
    parser.add_argument("--out", type=Path, required=True, help="the model's folder, which is made")
    parser.add_argument("--classes", type=int, help="how many (400, or as many as there are labels)")
    parser.add_argument("--labels", type=Path, help="file with a label a line (`class 0` and so on without it)")
    parser.add_argument("--size", type=int, help="pixels of the input's sides (the paper's)")
    parser.add_argument("--width", type=float, default=1.0, help="multiplies the channels of every layer (1)")
    parser.add_argument("--seed", type=int, default=1, help="of the weights")


def main(args: argparse.Namespace) -> int:
    """Runs `build`."""
    architecture = ARCHITECTURES[args.architecture]
    size = architecture.size if args.size is None else args.size
    if not 16 <= size <= 1024:
        raise BadInput(f"--size {size}: must be 16 to 1024 pixels")
    if not 0 < args.width <= 4:
        raise BadInput(f"--width {args.width}: must be above 0 and at most 4")
    if args.classes is not None and not 1 <= args.classes <= 100_000:
        raise BadInput(f"--classes {args.classes}: must be 1 to 100000")
    if args.seed < 0:
        raise BadInput(f"--seed {args.seed}: must be 0 or more")
    if args.labels:
        labels = read_labels(args.labels, args.classes)
    else:
        labels = [f"class {number}" for number in range(args.classes or 400)]
    check_new(args.out)
    streams = architecture.streams(size, args.width)
    manifest = Manifest(
        name=f"random-{args.architecture}",
        architecture=args.architecture,
        licence="CC0-1.0",
        source=f"random weights, seed {args.seed}, width {args.width:g}: right in shape and speed, blind to everything",
        labels=labels,
        streams=streams,
        hop=architecture.hop,
        samples=architecture.samples,
        decision=architecture.decision(streams),
    )
    with staged(args.out) as folder:
        for stream in manifest.streams:
            graph = random_model(architecture, stream, len(labels), args.width, args.seed)
            architecture.save(graph, stream, folder)
            print(f"{stream.name}: {parameters(graph) / 1e6:.2f} M parameters")
        manifest.write(folder)
    print(f"{args.out}: {args.architecture}, {size} pixels, {len(labels)} classes, random weights (seed {args.seed})")
    return 0


def parameters(model: onnx.ModelProto) -> int:
    """Floats among a graph's weights; batch norm counts as the bias that it was folded into."""
    floats = (tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)
    return sum(math.prod(tensor.dims) for tensor in floats)
