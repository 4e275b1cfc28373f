"""The boring-video fixed point: a picture repeated as a video gives, at every layer of an inflated network, what the
picture gives in the 2D network it was made of.

Every tensor that has the same name in both is compared: the greatest difference over all positions and all times,
relative to the layer's greatest activation. The video is padded in time by its own first and last picture. The network
itself pads with zeros there, as I3D does, and next to the ends of a clip a still picture then is not still: it is cut
from black. With replicate padding the fixed point holds at every time, so that short clips do and the head, which
averages over all times, can be compared too.

  scripts/factory/factory boring flat.onnx inflated.onnx
  scripts/factory/factory boring build/two-stream/rgb.onnx build/inflated --frames 16 --picture photo.jpg
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .errors import BadInput
from .inflate import SCALED, attributes, folded, load, pinned, shapes_of, without_softmax
from .model import session
from .toml import tomllib

TOLERANCE = 1e-5
FRAMES = 16
WINDOWS = ("Conv", "MaxPool", "AveragePool")


@dataclass(frozen=True)
class Row:
    """One layer's comparison."""

    name: str
    op: str
    shape: tuple[int, ...]
    scale: float
    """the greatest activation of the 2D network there"""
    difference: float
    """the greatest one, divided by the scale"""


def explicit_pads(options: dict, sides: list[int]) -> list[int]:
    """A convolution's or pool's padding in numbers, all fronts, then all backs."""
    auto = options.get("auto_pad", b"NOTSET").decode()
    kernel = options["kernel_shape"]
    if auto == "NOTSET":
        return list(options.get("pads") or [0] * 2 * len(kernel))
    if auto == "VALID":
        return [0] * 2 * len(kernel)
    strides, dilations = (options.get(key) or [1] * len(kernel) for key in ("strides", "dilations"))
    totals = [
        max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        for n, k, s, d in zip(sides, kernel, strides, dilations, strict=True)
    ]
    less = [total // 2 for total in totals]
    more = [total - half for total, half in zip(totals, less, strict=True)]
    return [*less, *more] if auto == "SAME_UPPER" else [*more, *less]


def replicated(model: onnx.ModelProto, frames: int) -> onnx.ModelProto:
    """A copy for `frames` pictures that pads time by repeating its ends instead of by zeros."""
    copy = pinned(model, frames)
    shapes = shapes_of(copy)
    known = {t.name: numpy_helper.to_array(t) for t in copy.graph.initializer}
    nodes = []
    old = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")) < 11

    def pad(x: list[str], pads: np.ndarray, output: str, **options: object) -> None:
        """A Pad node, as the file's opset writes it."""
        if old:
            nodes.append(helper.make_node("Pad", x[:1], [output], output, pads=pads.tolist(), **options))
            return
        copy.graph.initializer.append(numpy_helper.from_array(pads, f"{output}/time_pads"))
        nodes.append(helper.make_node("Pad", [x[0], f"{output}/time_pads", *x[2:]], [output], output, **options))

    def edges(x: str, front: int, back: int, name: str) -> str:
        pad([x], np.array([0, 0, front, 0, 0, 0, 0, back, 0, 0], np.int64), f"{name}/edges", mode="edge")
        return f"{name}/edges"

    for node in copy.graph.node:
        options = attributes(node)
        if node.op_type in WINDOWS and len(shapes[node.input[0]]) == 5:
            if "kernel_shape" not in options:
                options["kernel_shape"] = list(known[node.input[1]].shape[2:])
            pads = explicit_pads(options, shapes[node.input[0]][2:])
            inputs = list(node.input)
            if pads[0] or pads[3]:
                inputs[0] = edges(inputs[0], pads[0], pads[3], node.output[0])
            options |= {"pads": [0, *pads[1:3], 0, *pads[4:]], "auto_pad": "NOTSET"}
            nodes.append(helper.make_node(node.op_type, inputs, list(node.output), name=node.name, **options))
            continue
        if node.op_type == "Pad" and len(shapes[node.input[0]]) == 5:
            pads = np.array(options.pop("pads") if old else known[node.input[1]], np.int64)
            if pads[2] or pads[7]:
                x = edges(node.input[0], int(pads[2]), int(pads[7]), node.output[0])
                pads[[2, 7]] = 0
                pad([x, *node.input[1:]], pads, node.output[0], **options)
                continue
        nodes.append(node)
    del copy.graph.node[:], copy.graph.value_info[:]
    copy.graph.node.extend(nodes)
    return copy


def all_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy that gives the named tensors."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:], copy.graph.value_info[:]
    copy.graph.output.extend(helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names)
    return copy


def compare(
    flat: onnx.ModelProto, inflated: onnx.ModelProto, frames: int = FRAMES, picture: np.ndarray | None = None
) -> list[Row]:
    """One row a tensor that both networks have, in order, and one for their logits.

    `picture`: f32 [1, C, H, W] from -1 to 1; seeded noise where it is left out.
    """
    flat = folded(flat)
    video = replicated(inflated, frames)
    shape = shapes_of(video)[video.graph.input[0].name]
    if picture is None:
        picture = np.random.default_rng(1).uniform(-1, 1, (1, shape[1], *shape[3:])).astype(np.float32)
    if list(picture.shape) != [1, shape[1], *shape[3:]]:
        raise BadInput(f"the picture is {list(picture.shape)} and the video's input {shape}")
    last = {without_softmax(flat.graph, flat.graph.output[0].name): video.graph.output[0].name}
    ops = {node.output[0]: node.op_type for node in flat.graph.node}
    there = {name for node in video.graph.node for name in node.output}
    shared = [name for name in ops if name in there and name not in last]
    if not shared:
        raise BadInput("no tensor has the same name in both networks: the second was not inflated from the first")
    scaled = [SCALED] if SCALED in there else []
    names = [*shared, *last.values(), *scaled]
    still = np.repeat(picture[:, :, None], shape[2], 2)
    of_video = dict(zip(names, session(all_outputs(video, names)).run(names, {"input": still}), strict=True))
    if scaled:
        picture = of_video[SCALED][:, :, 0]
    wanted = [*shared, *last]
    of_picture = session(all_outputs(flat, wanted)).run(wanted, {flat.graph.input[0].name: picture})
    rows = []
    for name, one in zip(wanted, of_picture, strict=True):
        other = of_video[last.get(name, name)]
        if other.ndim == one.ndim + 1:
            one = np.expand_dims(one, 2)
        if other.ndim != one.ndim or any(a not in (b, 1) for a, b in zip(one.shape, other.shape, strict=True)):
            raise BadInput(f"{name!r} is {list(one.shape)} in the 2D network and {list(other.shape)} in the other")
        scale = float(np.abs(one).max())
        difference = float(np.abs(other - one).max())
        rows.append(Row(name, ops[name], other.shape, scale, difference / scale if scale else difference))
    return rows


def report(
    flat: onnx.ModelProto,
    inflated: onnx.ModelProto,
    frames: int = FRAMES,
    picture: np.ndarray | None = None,
    tolerance: float = TOLERANCE,
) -> int:
    """Prints a table of all layers; 1 where the fixed point is missed, else 0."""
    rows = compare(flat, inflated, frames, picture)
    width = max(len(row.name) for row in rows)
    print(f"| {'layer':<{width}} | {'operator':<18} | {'shape':<22} | activations | difference |")
    print(f"| {'-' * width} | {'-' * 18} | {'-' * 22} | ----------: | ---------: |")
    for row in rows:
        shape = " x ".join(map(str, row.shape[1:]))
        print(f"| {row.name:<{width}} | {row.op:<18} | {shape:<22} | {row.scale:>11.4g} | {row.difference:>10.1e} |")
    worst = max(rows, key=lambda row: row.difference)
    good = worst.difference <= tolerance and all(np.isfinite(row.difference) for row in rows)
    print(
        f"{'the fixed point holds' if good else 'THE FIXED POINT IS MISSED'}: {len(rows)} layers, differences up to "
        f"{worst.difference:.1e} of a layer's greatest activation (at {worst.name}), {tolerance:.0e} allowed; "
        "time padded by its own ends"
    )
    return 0 if good else 1


def graph_file(path: Path, stream: str | None) -> Path:
    """An ONNX file, or the f32 file of a stream of a model's folder."""
    if not path.is_dir():
        return path
    try:
        streams = tomllib.loads((path / "model.toml").read_text(encoding="utf-8"))["stream"]
        names = {s["name"]: path / f["path"] for s in streams for f in s["file"] if f["precision"] == "f32"}
    except (OSError, UnicodeDecodeError, KeyError, TypeError, tomllib.TOMLDecodeError) as error:
        raise BadInput(f"{path / 'model.toml'}: cannot be read: {error}") from error
    if stream is None and len(names) == 1:
        return next(iter(names.values()))
    if stream not in names:
        raise BadInput(f"{path} has the streams {', '.join(names)}: say which with --stream")
    return names[stream]


def one_picture(model: onnx.ModelProto, path: Path, axes: int) -> onnx.ModelProto:
    """The network, if it takes a picture (4 axes) or a video (5) and nothing besides."""
    stored = {w.name for w in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in stored]
    what = {4: "the first is the 2D network, on a picture", 5: "the second is the 3D network, on a video"}[axes]
    if len(inputs) != 1:
        raise BadInput(
            f"{path}: takes {', '.join(i.name for i in inputs) or 'nothing'}; {what}, and takes nothing else"
        )
    if len(inputs[0].type.tensor_type.shape.dim) != axes:
        raise BadInput(f"{path}: its input has {len(inputs[0].type.tensor_type.shape.dim)} axes, not {axes}: {what}")
    if inputs[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise BadInput(f"{path}: its input is not f32")
    return model


def read_picture(path: Path, size: tuple[int, int], channels: int) -> np.ndarray:
    """f32 [1, 3, H, W] from -1 to 1, squeezed to `size` (width, height)."""
    import cv2

    if channels != 3:
        raise BadInput(f"--picture: the network takes {channels} channels, a picture has 3")
    picture = cv2.imread(str(path))
    if picture is None:
        raise BadInput(f"{path}: no picture that can be read")
    picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)[..., ::-1]
    return (picture.transpose(2, 0, 1)[None] / np.float32(127.5) - 1).astype(np.float32)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `boring`."""
    parser.add_argument("flat", type=Path, metavar="MODEL2D", help="ONNX file, or a model's folder")
    parser.add_argument("inflated", type=Path, metavar="MODEL3D", help="ONNX file, or a model's folder")
    parser.add_argument("--stream", help="which stream of folders that have several")
    parser.add_argument("--frames", type=int, default=FRAMES, help=f"length of the video ({FRAMES})")
    parser.add_argument("--picture", type=Path, help="the picture (seeded noise without it)")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help=f"({TOLERANCE:.0e})")


def main(args: argparse.Namespace) -> int:
    """Runs `boring`."""
    if args.frames < 1:
        raise BadInput(f"--frames {args.frames}: must be 1 or more")
    flat, inflated = (
        one_picture(load(file), file, axes)
        for path, axes in ((args.flat, 4), (args.inflated, 5))
        for file in [graph_file(path, args.stream)]
    )
    picture = None
    if args.picture:
        shape = shapes_of(inflated)[inflated.graph.input[0].name]
        picture = read_picture(args.picture, (shape[-1], shape[-2]), shape[1])
    return report(flat, inflated, args.frames, picture, args.tolerance)
