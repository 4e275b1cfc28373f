"""Inflates a 2D ConvNet to 3D, as I3D was made of Inception-V1: N x N filters become N x N x N, their weights repeated
N times along time and divided by N; pools likewise. A still picture repeated then gives what the picture gave, which
`factory boring` (or --check) shows layer by layer.

MODEL2D is an ONNX file with one input [N, C, H, W]: convolutions, pools, batch norm, ReLU and other functions of one
element, additions, concatenations of channels, flattening, fully connected layers. A network in torch gets there with
torch.onnx.export(net.eval(), x, "net.onnx", dynamo=False). Pacing, which nodes get which kernel and stride along time,
is data: see pacing/i3d.toml, the default, for what a rule can say.

  scripts/factory/factory inflate flat.onnx --out inflated.onnx --check
  scripts/factory/factory inflate resnet.onnx --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --labels labels.txt \\
      --manifest --frames 64 --out build/inflated
"""

import argparse
import fnmatch
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from .architectures import bound
from .build import check_new, read_labels
from .errors import BadInput
from .model import Manifest, Stream, staged
from .toml import tomllib

PACING = Path(__file__).parent / "pacing" / "i3d.toml"
# What does the same to every element, whatever the rank; other inputs than maps are spread over them.
ELEMENTWISE = {
    *("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh"),
    *("Softplus", "Softsign", "Mish", "Gelu", "Erf", "Abs", "Neg", "Exp", "Sqrt", "Identity", "Dropout", "Cast"),
    *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum"),
}
POOLS = {"MaxPool", "AveragePool"}
WHOLE_MAP = {"GlobalAveragePool", "GlobalMaxPool", "ReduceMean"}
FLATTEN = {"Flatten", "Reshape", "Squeeze"}
# What exporters write constants and reshaping to computed sizes with.
ARITHMETIC = {
    *(
        "Constant",
        "ConstantOfShape",
        "Identity",
        "Cast",
        "Gather",
        "Slice",
        "Squeeze",
        "Unsqueeze",
        "Concat",
        "Reshape",
    ),
    *("Transpose", "Expand", "Range", "ReduceProd", "Add", "Sub", "Mul", "Div", "Mod", "Neg"),
}
SCALED = "inflate/scaled"
"""The picture as the 2D network takes it, where --mean and --std were given."""


@dataclass(frozen=True)
class Rule:
    """What a [[rule]] of a pacing file says."""

    match: str = "*"
    op: tuple[str, ...] = ()
    first: int | None = None
    kernel: int | None = None
    stride: int | None = None
    pads: tuple[int, int] | None = None


def read_rules(path: Path) -> list[Rule]:
    """A pacing file's rules, checked."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInput(f"{path}: cannot read the rules: {error}") from error
    if set(tables) - {"rule"} or not isinstance(tables.get("rule", []), list):
        raise BadInput(f"{path}: holds {', '.join(tables)}; only [[rule]] tables have a meaning here")
    known = [f.name for f in fields(Rule)]
    rules = []
    for number, table in enumerate(tables.get("rule", []), 1):
        wrong = f"{path}: rule {number}"
        if not isinstance(table, dict):
            raise BadInput(f"{wrong}: is {table!r} and should be a table")
        if unknown := set(table) - set(known):
            raise BadInput(f"{wrong}: {', '.join(sorted(unknown))} means nothing; there are {', '.join(known)}")
        for key in ("first", "kernel", "stride"):
            if key in table and (type(table[key]) is not int or table[key] < 1):
                raise BadInput(f"{wrong}: {key} = {table[key]!r} is not a whole number from 1 up")
        pads = table.get("pads")
        if pads is not None and not (
            isinstance(pads, list) and len(pads) == 2 and all(type(p) is int and p >= 0 for p in pads)
        ):
            raise BadInput(f"{wrong}: pads = {pads!r} is not [front, back]")
        if not isinstance(table.get("match", ""), str):
            raise BadInput(f"{wrong}: match = {table['match']!r} is no text")
        ops = table.get("op", [])
        if not isinstance(ops, str | list) or not all(isinstance(op, str) for op in ops):
            raise BadInput(f"{wrong}: op = {ops!r} is no operator's name, nor a list of them")
        table = table | {"op": (ops,) if isinstance(ops, str) else tuple(ops), "pads": pads and tuple(pads)}
        rules.append(Rule(**table))
    return rules


def called(node: onnx.NodeProto) -> str:
    """A node's name, or where it has none its output's."""
    return node.name or node.output[0]


def assign(rules: list[Rule], nodes: Iterable[onnx.NodeProto]) -> tuple[dict[str, Rule], list[Rule]]:
    """The rule of each node that has one, by the name of its output, and the rules that fit none."""
    nodes, chosen, idle = list(nodes), {}, []
    for rule in rules:
        fitting = [
            n for n in nodes if fnmatch.fnmatchcase(called(n), rule.match) and (not rule.op or n.op_type in rule.op)
        ]
        if not fitting:
            idle.append(rule)
        for node in fitting[: rule.first]:
            chosen.setdefault(node.output[0], rule)
    return chosen, idle


def load(path: Path) -> onnx.ModelProto:
    """An ONNX file, checked, with shapes."""
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
        return shape_inference.infer_shapes(model, strict_mode=True)
    except FileNotFoundError as error:
        raise BadInput(f"{path}: there is no such file") from error
    except (OSError, DecodeError, ValueError, onnx.checker.ValidationError, shape_inference.InferenceError) as error:
        raise BadInput(f"{path} is not an ONNX file that can be read: {str(error).strip().splitlines()[0]}") from error


def shapes_of(model: onnx.ModelProto) -> dict[str, list[int | None]]:
    """Every tensor's shape as far as it is known; None for an open side."""
    graph = model.graph
    found = {t.name: list(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            found[value.name] = [d.dim_value if d.HasField("dim_value") else None for d in dims]
    return found


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    """By name."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for a batch of one, without nodes whose value is known: constants, and arithmetic on shapes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    given = {t.name for t in copy.graph.initializer}
    for value in copy.graph.input:
        if value.name not in given and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_value = 1
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    # Before version 4 initializers had to be listed as inputs too.
    copy.ir_version = min(max(copy.ir_version, 8), 10)
    del copy.graph.value_info[:]
    copy = shape_inference.infer_shapes(copy, strict_mode=True, data_prop=True)
    shapes, known = shapes_of(copy), {t.name: numpy_helper.to_array(t) for t in copy.graph.initializer}
    kept = []
    for node in copy.graph.node:
        sides = shapes.get(node.input[0], [None]) if node.input else []
        if node.op_type == "Shape" and None not in sides:
            options = attributes(node)
            known[node.output[0]] = np.array(sides[options.get("start", 0) : options.get("end")], np.int64)
        elif node.op_type in ARITHMETIC and all(name in known for name in node.input if name):
            alone = helper.make_graph(
                [node], "one", [], [helper.make_empty_tensor_value_info(name) for name in node.output]
            )
            alone.initializer.extend(numpy_helper.from_array(known[n], n) for n in dict.fromkeys(node.input) if n)
            values = ReferenceEvaluator(helper.make_model(alone, opset_imports=copy.opset_import)).run(None, {})
            known |= dict(zip(node.output, values, strict=True))
        else:
            kept.append(node)
    used = {name for node in kept for name in node.input}
    del copy.graph.node[:], copy.graph.initializer[:]
    copy.graph.node.extend(kept)
    copy.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), n) for n, v in known.items() if n in used)
    inputs = [value for value in copy.graph.input if value.name not in known]
    del copy.graph.input[:]
    copy.graph.input.extend(inputs)
    return copy


@dataclass
class Inflater:
    """One inflation: the graph that grows node by node."""

    flat: onnx.ModelProto
    rules: dict[str, Rule]
    opset: int = 17
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shapes = shapes_of(self.flat)
        self.weights = {t.name: numpy_helper.to_array(t) for t in self.flat.graph.initializer}
        self.opset = next(o.version for o in self.flat.opset_import if o.domain in ("", "ai.onnx"))

    def is_map(self, name: str) -> bool:
        """Whether a tensor has height and width, and is to have time."""
        return name not in self.weights and len(self.shapes.get(name) or []) == 4

    def add(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        """A node that is called as its output."""
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def mean(self, x: str, axes: list[int], output: str, keepdims: int) -> str:
        """A mean over axes, as the file's opset writes it."""
        if self.opset < 18:
            return self.add("ReduceMean", [x], output, axes=axes, keepdims=keepdims)
        self.weights[f"{output}/axes"] = np.array(axes, np.int64)
        return self.add("ReduceMean", [x, f"{output}/axes"], output, keepdims=keepdims)

    def inflate(self, node: onnx.NodeProto) -> None:
        """Adds what a node of the 2D network becomes."""
        maps = [name for name in node.input if self.is_map(name)]
        options = attributes(node)
        new = onnx.NodeProto()
        new.CopyFrom(node)
        if not maps or node.op_type == "BatchNormalization":
            self.nodes.append(new)
        elif node.op_type == "LRN":
            self.by_position(new)
        elif node.op_type == "Conv" or node.op_type in POOLS:
            self.window(node, options)
        elif node.op_type in WHOLE_MAP:
            self.whole_map(node, options)
        elif node.op_type in FLATTEN and len(self.shapes.get(node.output[0]) or []) == 2:
            # Whatever steps are left are averaged: the same as weights of a fully connected layer repeated over time
            # and divided by their number, at any length.
            new.input[0] = self.mean(node.input[0], [2], f"{node.output[0]}/mean_over_time", 0)
            self.nodes.append(new)
        elif node.op_type == "Concat" and options["axis"] in (1, -3) and len(maps) == len(node.input):
            self.add("Concat", list(node.input), node.output[0], axis=1)
        elif node.op_type == "Pad":
            self.pad(node, options)
        elif node.op_type in ELEMENTWISE:
            new.input[:] = [name if self.is_map(name) else self.spread(name) for name in node.input]
            self.nodes.append(new)
        else:
            raise BadInput(f"node {called(node)!r}: there is no 3D {node.op_type} of {self.described(node)}")

    def described(self, node: onnx.NodeProto) -> str:
        """A node's inputs and outputs, for errors."""
        shown = (f"{n} {self.shapes.get(n)}" for n in (*node.input, *node.output) if n)
        return f"what it is given ({', '.join(shown)})"

    def by_position(self, node: onnx.NodeProto) -> None:
        """What does the same to every position and is written for maps without time: time and height as one axis."""
        _, channels, height, width = self.shapes[node.input[0]]
        x, output = node.input[0], node.output[0]
        self.weights[f"{output}/flat"] = np.array([1, channels, -1, width], np.int64)
        self.weights[f"{output}/video"] = np.array([1, channels, -1, height, width], np.int64)
        node.input[0] = self.add("Reshape", [x, f"{output}/flat"], f"{output}/input")
        node.output[0] = node.name = f"{output}/output"
        self.nodes.append(node)
        self.add("Reshape", [node.output[0], f"{output}/video"], output)

    def spread(self, name: str) -> str:
        """A constant that is spread over a map, for a map with time: [C, 1, 1] becomes [C, 1, 1, 1]."""
        value = self.weights.get(name)
        if value is None or value.ndim < 3:
            return name
        self.weights[f"{name}/3d"] = np.expand_dims(value, -3)
        return f"{name}/3d"

    def window(self, node: onnx.NodeProto, options: dict) -> None:
        """A convolution or a pool."""
        rule = self.rules.get(node.output[0], Rule())
        weight = self.weights.get(node.input[1]) if node.op_type == "Conv" else None
        if node.op_type == "Conv" and (weight is None or weight.ndim != 4):
            raise BadInput(f"node {called(node)!r}: its weights are not in the file")
        if len(node.output) > 1:
            raise BadInput(f"node {called(node)!r}: a pool that tells where its maxima are has no 3D form here")
        kernel = list(options.get("kernel_shape") or weight.shape[2:])
        strides = list(options.get("strides") or [1, 1])
        dilations = list(options.get("dilations") or [1, 1])
        pads = list(options.get("pads") or [0, 0, 0, 0])
        small = kernel.index(min(kernel))
        time = rule.kernel or kernel[small]
        spread = dilations[small] if time > 1 else 1
        padded = rule.pads or self.time_pads(time, spread, kernel[small], (pads[small], pads[small + 2]))
        auto = options.get("auto_pad", b"NOTSET").decode()
        if rule.pads and auto != "NOTSET":
            raise BadInput(f"node {called(node)!r} says auto_pad = {auto}: its rule cannot say pads")
        options |= {
            "kernel_shape": [time, *kernel],
            "strides": [rule.stride or (strides[0] if strides[0] == strides[1] else min(strides)), *strides],
        }
        if "dilations" in options:
            options["dilations"] = [spread, *dilations]
        if auto == "NOTSET":
            options["pads"] = [padded[0], *pads[:2], padded[1], *pads[2:]]
        inputs = list(node.input)
        if weight is not None:
            inputs[1] = f"{node.input[1]}/{time}"
            self.weights[inputs[1]] = np.repeat(weight[:, :, None], time, 2) / weight.dtype.type(time)
        new = helper.make_node(node.op_type, inputs, list(node.output), name=node.name, **options)
        self.nodes.append(new)

    @staticmethod
    def time_pads(kernel: int, dilation: int, flat: int, pads: tuple[int, int]) -> tuple[int, int]:
        """Those of the side that the kernel along time is taken from; a kernel of another length keeps the length if
        that side did, and is not padded if it was not."""
        if kernel == flat or not any(pads):
            return pads
        total = (kernel - 1) * dilation
        return total // 2, total - total // 2

    def whole_map(self, node: onnx.NodeProto, options: dict) -> None:
        """A pool over the whole map, which takes in all of time."""
        x, rule = node.input[0], self.rules.get(node.output[0], Rule())
        if rule.kernel and rule.kernel > 1:
            kind = "MaxPool" if node.op_type == "GlobalMaxPool" else "AveragePool"
            shape = {"kernel_shape": [rule.kernel, 1, 1], "strides": [rule.stride or 1, 1, 1]}
            x = self.add(kind, [x], f"{node.output[0]}/over_time", **shape)
        if node.op_type != "ReduceMean":
            self.nodes.append(helper.make_node(node.op_type, [x], list(node.output), name=node.name))
            return
        axes = options.get("axes") or (self.weights.get(node.input[1]) if len(node.input) > 1 else None)
        if axes is None or sorted(axis % 4 for axis in axes) != [2, 3]:
            raise BadInput(f"node {called(node)!r}: a mean over {axes} is no mean over height and width")
        self.mean(x, [2, 3, 4], node.output[0], options.get("keepdims", 1))

    def pad(self, node: onnx.NodeProto, options: dict) -> None:
        """Padding as a node of its own; along time as along height, or as a rule says."""
        pads = options.get("pads") or self.weights.get(node.input[1])
        if pads is None or len(pads) != 8 or any(pads[i] for i in (0, 1, 4, 5)) or len(node.input) > 3:
            raise BadInput(f"node {called(node)!r}: only padding of height and width by known numbers can be inflated")
        front, back = self.rules.get(node.output[0], Rule()).pads or self.pads_ahead(node, int(pads[2]), int(pads[6]))
        new = onnx.NodeProto()
        new.CopyFrom(node)
        all_pads = np.array([0, 0, front, *pads[2:4], 0, 0, back, *pads[6:8]], np.int64)
        if "pads" in options:
            del new.attribute[[a.name for a in new.attribute].index("pads")]
            new.attribute.append(helper.make_attribute("pads", all_pads.tolist()))
        else:
            new.input[1] = f"{node.input[1]}/3d/{node.output[0]}"
            self.weights[new.input[1]] = all_pads
        self.nodes.append(new)

    def pads_ahead(self, node: onnx.NodeProto, front: int, back: int) -> tuple[int, int]:
        """Padding along time in front of the one convolution or pool that a Pad node is there for."""
        takers = [n for n in self.flat.graph.node if node.output[0] in n.input]
        if len(takers) != 1 or takers[0].op_type not in ("Conv", *POOLS):
            return front, back
        options, rule = attributes(takers[0]), self.rules.get(takers[0].output[0], Rule())
        kernel = min(options.get("kernel_shape") or self.weights[takers[0].input[1]].shape[2:])
        return self.time_pads(rule.kernel or kernel, 1, kernel, (front, back))


def without_softmax(graph: onnx.GraphProto, output: str) -> str:
    """The logits behind `output`: actiond takes them raw."""
    for number, node in enumerate(graph.node):
        if node.output[0] == output and node.op_type in ("Softmax", "LogSoftmax"):
            before = node.input[0]
            del graph.node[number]
            return before
    return output


def normalization(mean: list[float], std: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Factor and term [1, C, 1, 1, 1] that make (p - mean) / std, p in [0, 1], of an input in [-1, 1]."""
    mean, std = (np.array(x, np.float64).reshape(1, -1, 1, 1, 1) for x in (mean, std))
    return (0.5 / std).astype(np.float32), ((0.5 - mean) / std).astype(np.float32)


def inflate(
    model: onnx.ModelProto,
    rules: list[Rule],
    scaling: tuple[np.ndarray, np.ndarray] | None = None,
    strict: bool = False,
) -> onnx.ModelProto:
    """The 3D network: `input` f32 [1, C, T, H, W], T open, to `logits`. Tensors between keep the 2D network's names.

    `scaling`: see `normalization`; `strict`: a rule that fits no node is an error.
    """
    flat = folded(model)
    graph = flat.graph
    if len(graph.input) != 1 or len(graph.output) != 1:
        names = [[v.name for v in values] for values in (graph.input, graph.output)]
        raise BadInput(f"one input and one output can be inflated; there are {names[0]} and {names[1]}")
    dims = shapes_of(flat).get(graph.input[0].name) or []
    if len(dims) != 4 or None in dims:
        raise BadInput(f"input {graph.input[0].name!r} is {dims}; it must be [N, C, H, W] with known C, H, W")
    if scaling and scaling[0].shape[1] != dims[1]:
        raise BadInput(f"{scaling[0].shape[1]} means for {dims[1]} channels")
    output = without_softmax(graph, graph.output[0].name)
    chosen, idle = assign(rules, graph.node)
    if idle and strict:
        raise BadInput(f"no node fits {idle[0]}; the nodes are {', '.join(map(called, graph.node))}")
    work = Inflater(flat, chosen)
    for node in graph.node:
        work.inflate(node)
    rename = {graph.input[0].name: "input", output: "logits"}
    if scaling:
        rename[graph.input[0].name] = SCALED
    for node in work.nodes:
        for names in (node.input, node.output):
            names[:] = [rename.get(name, name) for name in names]
    if scaling:
        work.weights |= {"inflate/factor": scaling[0], "inflate/term": scaling[1]}
        first = [
            helper.make_node("Mul", ["input", "inflate/factor"], ["inflate/product"], name="inflate/product"),
            helper.make_node("Add", ["inflate/product", "inflate/term"], [SCALED], name=SCALED),
        ]
        work.nodes[:0] = first
    used = {name for node in work.nodes for name in node.input}
    classes = (work.shapes.get(output) or [None])[-1]
    if len(work.shapes.get(output) or []) != 2 or classes is None:
        raise BadInput(f"output {output!r} is {work.shapes.get(output)}, not logits [N, classes]")
    inflated = helper.make_model(
        helper.make_graph(
            work.nodes,
            f"{graph.name}_3d",
            [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [1, dims[1], "T", *dims[2:]])],
            [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, classes])],
            [numpy_helper.from_array(np.ascontiguousarray(v), n) for n, v in work.weights.items() if n in used],
        ),
        opset_imports=model.opset_import,
        producer_name="actiond_factory",
        ir_version=flat.ir_version,
    )
    onnx.checker.check_model(inflated)
    return inflated


def pinned(model: onnx.ModelProto, frames: int) -> onnx.ModelProto:
    """A copy for exactly `frames` pictures, with all shapes; an error where they are too few for the pacing."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    dims = copy.graph.input[0].type.tensor_type.shape.dim
    if len(dims) != 5:
        raise BadInput(f"input {copy.graph.input[0].name!r} has {len(dims)} axes; a 3D network takes [1, C, T, H, W]")
    if not dims[2].dim_value:
        dims[2].dim_value = frames
    try:
        copy = shape_inference.infer_shapes(copy, strict_mode=True)
        small = [
            name for name, shape in shapes_of(copy).items() if any(side is not None and side < 1 for side in shape)
        ]
        reason = f"nothing is left at {small[0]!r}" if small else ""
    except shape_inference.InferenceError as error:
        reason = str(error).strip().splitlines()[0]
    if reason:
        raise BadInput(f"{frames} frames are too few for this pacing: {reason}")
    return copy


def from_torch(net: object, shape: tuple[int, int, int]) -> onnx.ModelProto:
    """A torch ConvNet for pictures [C, H, W] as the ONNX that `inflate` takes. Needs torch."""
    import io
    import warnings

    import torch

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Batch norm stays a node of its own, so that there is as much to compare as the network has layers.
        torch.onnx.export(
            net.eval(),
            (torch.zeros(1, *shape),),
            buffer,
            dynamo=False,
            opset_version=17,
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
        )
    return shape_inference.infer_shapes(onnx.load_from_string(buffer.getvalue()))


def numbers(text: str) -> list[float]:
    """Comma-separated numbers of a command line."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers") from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `inflate`."""
    parser.add_argument("model", type=Path, metavar="MODEL2D", help="the 2D network's ONNX file")
    parser.add_argument("--out", type=Path, required=True, help="ONNX file, or with --manifest a folder, to make")
    parser.add_argument("--rules", type=Path, help="pacing file (the paper's I3D without it)")
    parser.add_argument("--mean", type=numbers, help="what the 2D network's pictures, from 0 to 1, were shifted by")
    parser.add_argument("--std", type=numbers, help="and then divided by, a channel each")
    parser.add_argument("--manifest", action="store_true", help="write a model's folder that actiond runs")
    parser.add_argument("--labels", type=Path, help="of the folder: a label a line (`class 0` and so on without it)")
    parser.add_argument("--frames", type=int, default=64, help="of the folder: pictures of a window, 1 to 64 (64)")
    parser.add_argument("--fit", choices=["crop", "squeeze", "letterbox"], default="crop", help="of the folder")
    parser.add_argument("--check", action="store_true", help="show the fixed point, as `factory boring` does")


def main(args: argparse.Namespace) -> int:
    """Runs `inflate`."""
    if not 1 <= args.frames <= 64:
        raise BadInput(f"--frames {args.frames}: actiond's window holds 1 to 64")
    if (args.mean is None) != (args.std is None) or (args.mean and len(args.mean) != len(args.std)):
        raise BadInput("--mean and --std go together, a number a channel each")
    if args.mean and not all(map(math.isfinite, args.mean)):
        raise BadInput("--mean must be numbers")
    if args.std and not all(math.isfinite(s) and s > 0 for s in args.std):
        raise BadInput("--std must be above 0")
    if args.manifest:
        check_new(args.out)
    elif args.out.exists():
        raise BadInput(f"{args.out}: exists already; remove it or choose another name")
    flat = load(args.model)
    rules = read_rules(args.rules or PACING)
    scaling = normalization(args.mean, args.std) if args.mean else None
    inflated = inflate(flat, rules, scaling, strict=args.rules is not None)
    pinned(inflated, args.frames)
    failed = 0
    if args.check:
        from .boring import report

        failed = report(flat, inflated)
    (channels,), (classes,) = ([shapes_of(inflated)[name][1]] for name in ("input", "logits"))
    if not args.manifest:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        part = args.out.with_name(f".{args.out.name}.part-{os.getpid()}")
        try:
            onnx.save(inflated, part)
            part.replace(args.out)
        finally:
            part.unlink(missing_ok=True)
    else:
        write_folder(args, inflated, channels, classes)
    print(f"{args.out}: {len(inflated.graph.node)} nodes, {classes} classes")
    return failed


def write_folder(args: argparse.Namespace, inflated: onnx.ModelProto, channels: int, classes: int) -> None:
    """The model as actiond takes it."""
    if channels not in (2, 3):
        raise BadInput(f"{args.model} takes {channels} channels; actiond's streams have 3 (RGB) or 2 (flow)")
    labels = read_labels(args.labels, classes) if args.labels else [f"class {number}" for number in range(classes)]
    height, width = shapes_of(inflated)["input"][3:]
    kind = "rgb" if channels == 3 else "flow"
    limit = bound(width) if kind == "flow" else None
    stream = Stream(kind, kind, (width, height), frames=args.frames, fit=args.fit, bound=limit)
    manifest = Manifest(
        name=f"inflated-{args.model.stem}",
        architecture="inflated",
        licence="that of the 2D network",
        source=f"{args.model.name}, inflated",
        labels=labels,
        streams=[stream],
    )
    with staged(args.out) as folder:
        onnx.save(inflated, folder / f"{kind}.onnx")
        manifest.write(folder)
