"""Averages the weights of two models of the same graph: of one network trained on from another, mostly.

A stream's weights become SHARE of A's and the rest of B's, array by array of the f32 ONNX files. Streams that no
--share names are B's as they are, and so are the labels, thresholds and everything else of the manifest. The new folder
has f32 files only: what was quantized from other weights is another model. Thresholds may fit it no more: see what
`actiond eval` says. The two may look at pictures of different sizes, as a convolution has none: the new one looks at
pictures of B's.

Example:
  factory average models/new models/old --share rgb=0.65 --out models/mixed
  factory quantize models/mixed recordings/
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from . import intake
from .build import check_new
from .errors import BadInput
from .intake import Stream
from .model import staged
from .quantize import list_file, load

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `average`."""
    parser.add_argument("a", type=Path, metavar="A", help="the model whose share is named")
    parser.add_argument("b", type=Path, metavar="B", help="the model that gives the rest, and all that is not averaged")
    parser.add_argument(
        "--share",
        action="append",
        required=True,
        metavar="STREAM=SHARE",
        help="A's share of a stream's weights, from 0 to 1; once for each stream that is averaged",
    )
    parser.add_argument("--out", type=Path, required=True, help="the model's folder, which is made")


def main(args: argparse.Namespace) -> int:
    """Runs `average`."""
    shares = shares_of(args.share)
    check_new(args.out)
    (manifest, first), (other, second) = (intake.read_manifest(folder) for folder in (args.b, args.a))
    for folder, table in ((args.b, manifest), (args.a, other)):
        if "labels" not in table:
            raise BadInput(f"{folder / 'model.toml'}: labels is missing")
    compare_labels(args.a / other["labels"], args.b / manifest["labels"])
    theirs, ours = ({s.name: s for s in streams} for streams in (second, first))
    for name in shares:
        for folder, streams in ((args.a, theirs), (args.b, ours)):
            if name not in streams:
                raise BadInput(f"{folder}: no stream `{name}`; it has {', '.join(streams)}")
        compare_streams(args.a, theirs[name], args.b, ours[name])
    with staged(args.out) as folder:
        for file in ("model.toml", manifest["labels"]):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes((args.b / file).read_bytes())
        for name, stream in ours.items():
            source, path = f32_of(args.b, stream), stream.files["f32"]
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            if name in shares:
                resized = theirs[name].size != stream.size
                onnx.save(averaged(f32_of(args.a, theirs[name]), source, shares[name], resized), folder / path)
            else:
                load(source)
                (folder / path).write_bytes(source.read_bytes())
            list_file(folder, name, "f32", path, alone=True)
            text = f"{shares[name]:g} of {args.a}, {1 - shares[name]:g} of {args.b}" if name in shares else args.b
            print(f"{name}: {text}")
    print(f"{args.out}: f32 only; for int8: factory quantize {args.out} CLIPS")
    return 0


def shares_of(texts: list[str]) -> dict[str, float]:
    """Each stream's share, as the command line has it."""
    shares: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if not name or not 0 <= share <= 1:
            raise BadInput(f"--share {text}: write a stream and a share from 0 to 1, such as rgb=0.65")
        if name in shares:
            raise BadInput(f"--share: `{name}` is named twice")
        shares[name] = share
    return shares


def compare_labels(a: Path, b: Path) -> None:
    """Both models must mean the same by each number."""
    lists = []
    for path in (a, b):
        if not path.is_file():
            raise BadInput(f"{path}: no such file, though model.toml lists it as the labels")
        try:
            lists.append(path.read_text(encoding="utf-8").splitlines())
        except UnicodeDecodeError as e:
            raise BadInput(f"{path}: labels are UTF-8 text, a label a line; this is not UTF-8 ({e.reason})") from None
    if len(lists[0]) != len(lists[1]):
        raise BadInput(f"{a} has {len(lists[0])} labels, {b} {len(lists[1])}")
    for number, (x, y) in enumerate(zip(*lists, strict=True), 1):
        if x != y:
            raise BadInput(f"label {number} is `{x}` in {a}, `{y}` in {b}")


def compare_streams(a: Path, x: Stream, b: Path, y: Stream) -> None:
    """Both networks must be shown the same."""
    # Where the files lie, and how long a window they are given, is no part of the network.
    x, y = (replace(s, files={}, frames=0) for s in (x, y))
    # To both the same share of the picture is the same flow.
    scaled = [x.bound * v for v in y.size] == [y.bound * v for v in x.size]
    if x.size != y.size and (x.kind == "rgb" or scaled):
        x = replace(x, size=y.size, bound=y.bound)
    for key, value in vars(x).items():
        if value != getattr(y, key):
            raise BadInput(f"stream {x.name}: {key} is {value} in {a}, {getattr(y, key)} in {b}")


def f32_of(folder: Path, stream: Stream) -> Path:
    """The stream's f32 file."""
    if "f32" not in stream.files:
        raise BadInput(f"{folder}: stream {stream.name} has no f32 file (only {', '.join(stream.files)})")
    return folder / stream.files["f32"]


def averaged(a: Path, b: Path, share: float, resized: bool = False) -> onnx.ModelProto:
    """B's graph with `share` of A's weights and the rest of its own. `resized`: A's is of another picture size."""
    first, result = load(a), load(b)
    x, y = first.graph, result.graph
    if resized:
        fit_to_size(x, y)
    for i, (p, q) in enumerate(zip(x.node, y.node, strict=False)):
        if p != q:
            raise BadInput(f"{a} and {b} are not the same graph: node {i} is {said(p)} and {said(q)}")
    if len(x.node) != len(y.node):
        raise BadInput(f"{a} and {b} are not the same graph: {len(x.node)} and {len(y.node)} nodes")
    if list(x.input) != list(y.input) or list(x.output) != list(y.output):
        raise BadInput(f"{a} and {b} are not the same graph: their inputs or outputs differ")
    weights = {w.name: w for w in x.initializer}
    if odd := weights.keys() ^ {w.name for w in y.initializer}:
        raise BadInput(f"{a} and {b} are not the same graph: `{min(odd)}` is in one of them only")
    for w in y.initializer:
        theirs = weights[w.name]
        if list(theirs.dims) != list(w.dims) or theirs.data_type != w.data_type:
            raise BadInput(
                f"`{w.name}` is {list(theirs.dims)} of {kind(theirs)} in {a}, {list(w.dims)} of {kind(w)} in {b}"
            )
        p, q = numpy_helper.to_array(theirs), numpy_helper.to_array(w)
        if w.data_type in FLOATS:
            mixed = share * p.astype(np.float64) + (1 - share) * q.astype(np.float64)
            w.CopyFrom(numpy_helper.from_array(mixed.astype(q.dtype), w.name))
        elif not np.array_equal(p, q):
            raise BadInput(f"{a} and {b} are not the same graph: `{w.name}`, which is no weight, differs")
    return result


def fit_to_size(x: onnx.GraphProto, y: onnx.GraphProto) -> None:
    """Takes from Y what is another at another picture size: the inputs' sides, and the pool over the last map."""
    for p, q in zip(x.input, y.input, strict=False):
        sides, theirs = p.type.tensor_type.shape.dim[-2:], q.type.tensor_type.shape.dim[-2:]
        for side, other in zip(sides, theirs, strict=False):
            side.CopyFrom(other)
    for p, q in zip(x.node, y.node, strict=False):
        if p.op_type == q.op_type == "AveragePool" and p.name == q.name:
            p.CopyFrom(q)


def said(node: onnx.NodeProto) -> str:
    """A node for a person."""
    return f"{node.op_type} {node.name or ', '.join(node.output)}"


def kind(tensor: onnx.TensorProto) -> str:
    """Its type's name."""
    return TensorProto.DataType.Name(tensor.data_type).lower()
