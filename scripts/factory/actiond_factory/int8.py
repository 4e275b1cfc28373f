"""A float graph becomes one with explicit s8 quantization (QDQ), and what that costs is measured. Needs no torch.

Weights: s8 per output channel, symmetric, stored as s8. Activations: s8 per tensor, symmetric, zero point 0. Biases
stay f32 (TensorRT takes no other). One pair of QuantizeLinear and DequantizeLinear a tensor, in front of all who read
it in integers: convolutions and matrix products, but the pools and concatenations between them too, which keep one
scale from their inputs to their outputs. So everything that crosses time is s8, and the trunk stays in integers.

A convolution's output is quantized behind its ReLU: in front of it half of the s8 range would go to values that the
ReLU throws away.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .errors import BadInput
from .model import session

WEIGHTED = ("Conv", "Gemm", "MatMul")
SAME_SCALE = ("MaxPool", "Concat", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice")
"""What moves values without changing them: input and output share a scale, so that s8 passes through."""
AVERAGES = ("AveragePool",)
"""Takes s8, gives f32: what it keeps of the past is s8."""
LEVELS = 127
BINS = 2048
SAMPLE = 1 << 15
"""Values of a tensor that a histogram takes from one window."""
METHODS = ("minmax", "percentile", "entropy", "mse")
PERCENTILE = 99.99

Inputs = dict[str, np.ndarray]
Windows = Callable[[], Iterator[Inputs]]
"""Gives the calibration's inputs, anew at each call."""


@dataclass
class Layer:
    """A convolution or matrix product with constant weights."""

    name: str
    x: str
    weight: str
    axis: int
    """of the weight's output channels"""
    output: str


@dataclass
class Plan:
    """What of a graph goes to s8."""

    layers: list[Layer]
    reads: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """tensor to the nodes that read it in s8"""
    group: dict[str, str] = field(default_factory=dict)
    """tensor to the one that stands for all of its scale"""


def initializers(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """By name."""
    return {w.name: w for w in graph.initializer}


def consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Tensor to the nodes that read it."""
    readers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    return readers


def attribute(node: onnx.NodeProto, name: str, default: object) -> object:
    """A node's attribute."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every node has a name of its own."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    seen: set[str] = set()
    for number, node in enumerate(copy.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{number}"
        seen.add(node.name)
    return copy


def layers_of(graph: onnx.GraphProto) -> list[Layer]:
    """Everything that multiplies by constant weights, in the graph's order."""
    weights = initializers(graph)
    found = []
    for node in graph.node:
        if node.op_type not in WEIGHTED or node.input[1] not in weights or node.input[0] in weights:
            continue
        weight = weights[node.input[1]]
        if weight.data_type != TensorProto.FLOAT:
            continue
        if node.op_type == "Conv":
            axis = 0
        elif len(weight.dims) != 2:
            continue
        else:
            axis = 0 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 1
        if node.op_type == "Gemm" and attribute(node, "transA", 0):
            continue
        found.append(Layer(node.name, node.input[0], node.input[1], axis, node.output[0]))
    return found


def last_layers(graph: onnx.GraphProto) -> set[str]:
    """Names of the layers behind which no other one comes: the classifiers."""
    producer = {o: node for node in graph.node for o in node.output}
    inner = {layer.name for layer in layers_of(graph)}
    last, seen = set(), set()
    todo = [o.name for o in graph.output]
    while todo:
        node = producer.get(todo.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if node.name in inner:
            last.add(node.name)
        else:
            todo += node.input
    # A recurrent network's state leaves through an output too, in front of the classifier.
    behind: set[str] = set()
    for name in last:
        node = next(n for n in graph.node if n.name == name)
        todo, seen = list(node.input), set()
        while todo:
            before = producer.get(todo.pop())
            if before is not None and before.name not in seen:
                seen.add(before.name)
                behind.add(before.name)
                todo += before.input
    return last - behind


def plan(graph: onnx.GraphProto, keep: set[str]) -> Plan:
    """Which tensors and layers go to s8; layers named in `keep` stay f32."""
    weights = initializers(graph)
    readers = consumers(graph)
    producer = {o: node for node in graph.node for o in node.output}
    result = Plan([layer for layer in layers_of(graph) if layer.name not in keep])
    inner = {layer.name for layer in result.layers}
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for layer in result.layers:
        result.reads[layer.x].add(layer.name)
    # Values that are only moved are worth integers where someone behind them takes integers.
    wanted = set(result.reads)
    for node in reversed(graph.node):
        if node.op_type in AVERAGES and node.input[0] not in weights and behind_layer(node, producer, inner):
            result.reads[node.input[0]].add(node.name)
            wanted.add(node.input[0])
        if node.op_type in SAME_SCALE and node.output[0] in wanted:
            data = list(node.input) if node.op_type == "Concat" else [node.input[0]]
            if any(name in weights for name in data):
                continue
            for name in data:
                result.reads[name].add(node.name)
                wanted.add(name)
                parent[root(name)] = root(node.output[0])
    # A residual sum is one with the convolution before it if its other operand is s8.
    for node in graph.node:
        if node.op_type == "Add" and not any(name in weights for name in node.input):
            other = [
                n for n in node.input if not (n in producer and producer[n].name in inner and len(readers[n]) == 1)
            ]
            for name in (other or list(node.input[1:]))[:1]:
                if name in wanted or not other:
                    result.reads[name].add(node.name)
    for name in result.reads:
        result.group[name] = root(name)
    return result


def behind_layer(node: onnx.NodeProto, producer: dict[str, onnx.NodeProto], inner: set[str]) -> bool:
    """Whether what a node reads comes from a layer in s8, over nodes that change no more than the sign."""
    todo = list(node.input[:1])
    while todo:
        before = producer.get(todo.pop())
        if before is None:
            continue
        if before.name in inner:
            return True
        if before.op_type in (*SAME_SCALE, "Relu", "Clip", "Add"):
            todo += before.input if before.op_type in ("Concat", "Add") else before.input[:1]
    return False


# ---------------------------------------------------------------------------------------------- calibration


def pinned(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    """A copy whose inputs have these shapes, with every tensor's shape inferred."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.input:
        if value.name in shapes:
            for dim, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
                dim.dim_value = size
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(copy)


def shape_of(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Known shapes by tensor name."""
    graph = model.graph
    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if all(dims):
            found[value.name] = dims
    return found


def asked(model: onnx.ModelProto, nodes: list[onnx.NodeProto], extra: list[onnx.TensorProto], outputs: list[str]):
    """A session of a model with `nodes` added, which gives `outputs` and nothing else: what a tensor of gigabytes is
    asked for is answered inside the graph."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.node.extend(nodes)
    copy.graph.initializer.extend(extra)
    del copy.graph.output[:]
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in outputs)
    for value, name in zip(copy.graph.output, outputs, strict=True):
        value.name = name
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    return session(sorted_nodes(copy))


def sorted_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model, its nodes in an order in which each follows what it reads."""
    graph = model.graph
    waiting: dict[str, list[int]] = defaultdict(list)
    made = {o for node in graph.node for o in node.output}
    missing = []
    ready = []
    for i, node in enumerate(graph.node):
        needed = {name for name in node.input if name in made}
        missing.append(len(needed))
        for name in needed:
            waiting[name].append(i)
        if not needed:
            ready.append(i)
    order = []
    heapq.heapify(ready)
    while ready:
        i = heapq.heappop(ready)
        order.append(graph.node[i])
        for name in graph.node[i].output:
            for j in waiting[name]:
                missing[j] -= 1
                if not missing[j]:
                    heapq.heappush(ready, j)
    if len(order) != len(graph.node):
        raise BadInput("the graph has a loop")
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in order]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def peaks_of(model: onnx.ModelProto, tensors: Iterable[str], windows: Windows) -> dict[str, float]:
    """The largest |value| of each tensor over all windows, found inside the graph."""
    nodes, names = [], []
    tensors = list(tensors)
    for t in tensors:
        for kind in ("Max", "Min"):
            name = f"{t}/calibrate/{kind}"
            nodes.append(helper.make_node(f"Reduce{kind}", [t], [name], name=name, keepdims=0))
            names.append(name)
    loaded = asked(model, nodes, [], names)
    peaks = dict.fromkeys(tensors, 0.0)
    for x in windows():
        values = loaded.run(names, x)
        for i, t in enumerate(tensors):
            peaks[t] = max(peaks[t], abs(float(values[2 * i])), abs(float(values[2 * i + 1])))
    return peaks


def histograms(
    model: onnx.ModelProto, tensors: Iterable[str], peaks: dict[str, float], windows: Windows
) -> dict[str, np.ndarray]:
    """|value| of each tensor in `BINS` bins from 0 to its peak, from a regular sample of each window."""
    shapes = shape_of(model)
    nodes, extra, names = [], [], []
    tensors = list(tensors)
    for t in tensors:
        dims = shapes.get(t, [])
        steps = [1] * len(dims)
        # Odd steps, so that no row or column is left out for ever.
        while dims and np.prod([-(-d // s) for d, s in zip(dims, steps, strict=True)]) > SAMPLE:
            axis = int(np.argmax([(-(-d // s)) * (i > 1) for i, (d, s) in enumerate(zip(dims, steps, strict=True))]))
            if -(-dims[axis] // steps[axis]) < 2 or axis < 2:
                break
            steps[axis] += 2
        name = f"{t}/calibrate/sample"
        if max(steps, default=1) > 1:
            for part, value in {
                "starts": [s // 2 for s in steps],
                "ends": dims,
                "axes": list(range(len(dims))),
                "steps": steps,
            }.items():
                extra.append(numpy_helper.from_array(np.array(value, np.int64), f"{name}/{part}"))
            inputs = [t, *(f"{name}/{part}" for part in ("starts", "ends", "axes", "steps"))]
            nodes.append(helper.make_node("Slice", inputs, [name], name=name))
        else:
            nodes.append(helper.make_node("Identity", [t], [name], name=name))
        names.append(name)
    loaded = asked(model, nodes, extra, names)
    counts = {t: np.zeros(BINS, np.int64) for t in tensors}
    for x in windows():
        for t, values in zip(tensors, loaded.run(names, x), strict=True):
            peak = peaks[t] or 1.0
            counts[t] += np.histogram(np.abs(values), BINS, (0, peak))[0]
    return counts


def clip_at(counts: np.ndarray, peak: float, method: str) -> float:
    """Where |values| are clipped, from their histogram up to `peak`."""
    if method == "minmax" or not counts.sum():
        return peak
    edges = np.arange(1, BINS + 1) * (peak / BINS)
    if method == "percentile":
        share = np.cumsum(counts) / counts.sum()
        return float(edges[np.searchsorted(share, PERCENTILE / 100)])
    middles = edges - peak / BINS / 2
    candidates = np.arange(LEVELS + 1, BINS + 1, 8)
    if method == "mse":
        errors = []
        for c in edges[candidates - 1]:
            step = c / LEVELS
            errors.append((counts * (np.minimum(np.rint(middles / step), LEVELS) * step - middles) ** 2).sum())
        return float(edges[candidates[int(np.argmin(errors))] - 1])
    # Entropy: the clipped histogram against itself in 128 levels (Migacz, "8-bit inference with TensorRT", GTC 2017).
    # The bin of zero is left out: zero is exact in any scale.
    counts = counts.astype(np.float64)
    counts[0] = 0
    losses = []
    for c in candidates:
        kept = counts[:c].copy()
        kept[-1] += counts[c:].sum()
        level = np.minimum((np.arange(c) * (LEVELS + 1)) // c, LEVELS)
        sums = np.bincount(level, counts[:c], LEVELS + 1)
        filled = np.bincount(level, counts[:c] > 0, LEVELS + 1)
        model = np.where(counts[:c] > 0, sums[level] / np.maximum(filled[level], 1), 0)
        p, q = kept / max(kept.sum(), 1), model / max(model.sum(), 1)
        seen = p > 0
        losses.append((p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))).sum())
    return float(edges[candidates[int(np.argmin(losses))] - 1])


# ---------------------------------------------------------------------------------------------- equalization


PASSED = ("Relu", "MaxPool", "AveragePool")
"""What a positive factor on a channel passes through."""
STRENGTH = 0.5
"""Power of a channel's peak that it is divided by; 0.5 was best of 0, 0.3, 0.5, 0.7, 0.8 and 1 on the default model."""
STRONGEST = 16.0
"""Largest factor."""


def plain_convolution(node: onnx.NodeProto) -> bool:
    """Whether each input channel has weights of its own, along their axis 1."""
    return node.op_type == "Conv" and attribute(node, "group", 1) == 1


def channel_readers(graph: onnx.GraphProto) -> dict[str, list[tuple[Layer, int]]]:
    """Convolutions whose output channels can be scaled at will, by name, each with all who read them: the layer, and
    the first of its input channels that they are. Between lie only ReLUs, pools and concatenations of channels."""
    readers = consumers(graph)
    outputs = {o.name for o in graph.output}
    weights = initializers(graph)
    found_layers = layers_of(graph)
    layers = {layer.name: layer for layer in found_layers}
    nodes = {n.name: n for n in graph.node}
    width: dict[str, int] = {}
    for node in graph.node:
        if node.name in layers and plain_convolution(node):
            width[node.output[0]] = weights[node.input[1]].dims[0]
        elif node.op_type in PASSED and node.input[0] in width:
            width[node.output[0]] = width[node.input[0]]
        elif node.op_type == "Concat" and attribute(node, "axis", 0) == 1 and all(n in width for n in node.input):
            width[node.output[0]] = sum(width[n] for n in node.input)

    def behind(tensor: str, first: int) -> list[tuple[Layer, int]] | None:
        """None where somebody reads the values who would see them scaled."""
        if tensor in outputs:
            return None
        found: list[tuple[Layer, int]] = []
        for reader in readers[tensor]:
            if reader.name in layers and plain_convolution(reader) and reader.input[0] == tensor:
                found.append((layers[reader.name], first))
                continue
            if reader.op_type in PASSED and reader.output[0] in width:
                more = behind(reader.output[0], first)
            elif reader.op_type == "Concat" and reader.output[0] in width and list(reader.input).count(tensor) == 1:
                place = list(reader.input).index(tensor)
                more = behind(reader.output[0], first + sum(width[n] for n in reader.input[:place]))
            else:
                return None
            if more is None:
                return None
            found += more
        return found

    result = {}
    for layer in found_layers:
        if plain_convolution(nodes[layer.name]) and (found := behind(layer.output, 0)):
            result[layer.name] = found
    return result


def channel_peaks(model: onnx.ModelProto, tensors: Iterable[str], windows: Windows) -> dict[str, np.ndarray]:
    """The largest |value| of each channel (axis 1) of each tensor [C]: the median over all windows, since one window's
    outlier says little."""
    shapes = shape_of(model)
    nodes, names = [], []
    tensors = [t for t in tensors if t in shapes]
    for t in tensors:
        axes = [i for i in range(len(shapes[t])) if i != 1]
        for kind in ("Max", "Min"):
            name = f"{t}/channels/{kind}"
            nodes.append(helper.make_node(f"Reduce{kind}", [t], [name], name=name, axes=axes, keepdims=0))
            names.append(name)
    loaded = asked(model, nodes, [], names)
    seen: dict[str, list[np.ndarray]] = {t: [] for t in tensors}
    for x in windows():
        values = loaded.run(names, x)
        for i, t in enumerate(tensors):
            seen[t].append(np.maximum(np.abs(values[2 * i]), np.abs(values[2 * i + 1])))
    return {t: np.median(peaks, 0) for t, peaks in seen.items()}


def equalized(model: onnx.ModelProto, windows: Windows) -> onnx.ModelProto:
    """The same function with channels of more equal range, which one scale a tensor fits better: what a convolution's
    channel is divided by, its readers' weights are multiplied with (Nagel et al., "Data-Free Quantization", ICCV 2019;
    Xiao et al., "SmoothQuant", ICML 2023)."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    readers = consumers(graph)
    nodes = {n.name: n for n in graph.node}
    layers = {layer.name: layer for layer in layers_of(graph)}
    scaled = channel_readers(graph)
    # Behind the ReLU, where what it throws away counts no more.
    seen = {}
    for name in scaled:
        tensor = layers[name].output
        follow = readers[tensor]
        seen[name] = follow[0].output[0] if len(follow) == 1 and follow[0].op_type == "Relu" else tensor
    peaks = channel_peaks(model, seen.values(), windows)
    stored = initializers(graph)
    arrays: dict[str, np.ndarray] = {}

    def array(name: str) -> np.ndarray:
        return arrays.setdefault(name, numpy_helper.to_array(stored[name]).copy())

    for name, behind in scaled.items():
        node = nodes[name]
        constants = [*list(node.input)[1:], *(reader.weight for reader, _ in behind)]
        peak = peaks.get(seen[name])
        if peak is None or any(c not in stored or len(readers[c]) > 1 for c in constants) or not (peak > 0).any():
            continue
        alive = peak > 0
        factor = np.ones(len(peak), np.float32)
        factor[alive] = peak[alive] ** STRENGTH
        factor[alive] /= np.exp(np.log(factor[alive]).mean())
        factor = np.clip(factor, 1 / STRONGEST, STRONGEST).astype(np.float32)
        for constant in list(node.input)[1:]:
            w = array(constant)
            w /= factor.reshape(-1, *[1] * (w.ndim - 1))
        for reader, first in behind:
            w = array(reader.weight)
            w[:, first : first + len(factor)] *= factor.reshape(1, -1, *[1] * (w.ndim - 2))
    for name, w in arrays.items():
        stored[name].CopyFrom(numpy_helper.from_array(w, name))
    return copy


# ---------------------------------------------------------------------------------------------- the graph in s8


def weight_scales(w: np.ndarray, axis: int) -> np.ndarray:
    """f32 [C]: a scale for each output channel."""
    peak = np.abs(w).max(tuple(i for i in range(w.ndim) if i != axis))
    return np.where(peak > 0, peak / LEVELS, 1).astype(np.float32)


def quantized_weights(w: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """s8 weights, and their scales [C].

    What rounding takes from a kernel's weight is given to the next one in time (in height, where there is no time), so
    that what a still picture gives is right to half a step: neighbours in time see nearly the same, and rounded each
    for itself their errors add up. On the default model's RGB stream, whose first kernels have no mean over time, it
    leaves a tenth of the noise of the weights.
    """
    scales = weight_scales(w, axis)
    shape = [1] * w.ndim
    shape[axis] = -1
    steps = w / scales.reshape(shape)
    if w.ndim < 4 or axis != 0:
        return np.clip(np.rint(steps), -LEVELS, LEVELS).astype(np.int8), scales
    rounded = np.empty_like(steps)
    carried = np.zeros_like(steps[:, :, 0])
    for t in range(w.shape[2]):
        wanted = steps[:, :, t] + carried
        rounded[:, :, t] = np.clip(np.rint(wanted), -LEVELS, LEVELS)
        carried = wanted - rounded[:, :, t]
    return rounded.astype(np.int8), scales


class Writer:
    """Adds quantization nodes to a graph; names them after their tensors."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.extra: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: np.ndarray) -> str:
        """An initializer, once."""
        self.extra.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def activation(self, tensor: str, group: str, scale: float) -> str:
        """s8 and back; gives the name of the f32 behind it."""
        scale_name = self.constant(f"{group}/scale", np.array(scale, np.float32))
        zero = self.constant("zero_s8", np.array(0, np.int8))
        q, dq = f"{tensor}/QuantizeLinear", f"{tensor}/DequantizeLinear"
        self.nodes.append(helper.make_node("QuantizeLinear", [tensor, scale_name, zero], [q], name=q))
        self.nodes.append(helper.make_node("DequantizeLinear", [q, scale_name, zero], [dq], name=dq))
        return dq

    def weights(self, layer: Layer, w: np.ndarray) -> str:
        """s8 per channel; gives the name of the f32 behind it."""
        values, scales = quantized_weights(w, layer.axis)
        dq = f"{layer.weight}/DequantizeLinear"
        inputs = [
            self.constant(f"{layer.weight}/s8", values),
            self.constant(f"{layer.weight}/scale", scales),
            self.constant(f"{layer.weight}/zero", np.zeros(len(scales), np.int8)),
        ]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [dq], name=dq, axis=layer.axis))
        return dq


def quantized(model: onnx.ModelProto, what: Plan, scales: dict[str, float]) -> onnx.ModelProto:
    """The graph in s8; `scales` by group."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    weights = initializers(graph)
    writer = Writer()
    behind = {t: writer.activation(t, what.group[t], scales[what.group[t]]) for t in what.reads}
    layers = {layer.name: layer for layer in what.layers}
    done: dict[str, str] = {}
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name in behind and node.name in what.reads[name]:
                node.input[i] = behind[name]
        if node.name in layers:
            layer = layers[node.name]
            if layer.weight not in done:
                done[layer.weight] = writer.weights(layer, numpy_helper.to_array(weights[layer.weight]))
            node.input[1] = done[layer.weight]
    graph.node.extend(writer.nodes)
    used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    left = [w for w in graph.initializer if w.name in used]
    del graph.initializer[:]
    graph.initializer.extend([*left, *writer.extra.values()])
    del graph.value_info[:]
    sorted_nodes(copy)
    return copy


# ---------------------------------------------------------------------------------------------- what it costs


@dataclass
class Noise:
    """What a layer's quantization does to its output."""

    own: float
    """dB: the signal against the error that its own s8 weights and input make"""
    total: float
    """dB: the signal against the error that has come together up to here"""


def ranges_of(
    model: onnx.ModelProto, tensors: Iterable[str], methods: Sequence[str], windows: Windows
) -> dict[str, dict[str, float]]:
    """For each method, where each tensor's |values| are clipped."""
    peaks = peaks_of(model, tensors, windows)
    if list(methods) == ["minmax"]:
        return {"minmax": peaks}
    counts = histograms(model, peaks, peaks, windows)
    return {method: {t: clip_at(counts[t], peak, method) for t, peak in peaks.items()} for method in methods}


def scales_of(what: Plan, ranges: dict[str, float]) -> dict[str, float]:
    """Each group's scale, from the widest of its tensors."""
    widest: dict[str, float] = {}
    for t in what.reads:
        widest[what.group[t]] = max(widest.get(what.group[t], 0.0), ranges[t])
    return {group: (peak or 1.0) / LEVELS for group, peak in widest.items()}


def decibel(signal: float, noise: float) -> float:
    """Signal to noise; 99 where there is no noise."""
    return 99.0 if noise <= 0 else float(min(99.0, 10 * np.log10(max(signal, 1e-30) / noise)))


def layer_noise(
    model: onnx.ModelProto, s8: onnx.ModelProto, what: Plan, scales: dict[str, float], windows: Windows
) -> dict[str, Noise]:
    """Each layer's noise, measured inside one graph that holds the f32 network, the s8 one, and every layer of the
    first alone in s8."""
    graph = model.graph
    nodes_by_name = {n.name: n for n in graph.node}
    weights = initializers(graph)
    writer = Writer()
    names: list[str] = []

    def square(tensor: str) -> None:
        name = f"{tensor}/square"
        writer.nodes.append(helper.make_node("ReduceSumSquare", [tensor], [name], name=name, keepdims=0))
        names.append(name)

    def shadow(name: str) -> str:
        return f"{name}/s8graph"

    inputs = {i.name for i in graph.input}
    for node in s8.graph.node:
        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        twin.name = shadow(node.name)
        for i, name in enumerate(node.input):
            twin.input[i] = name if name in inputs or not name else shadow(name)
        for i, name in enumerate(node.output):
            twin.output[i] = shadow(name)
        writer.nodes.append(twin)
    for w in s8.graph.initializer:
        twin = onnx.TensorProto()
        twin.CopyFrom(w)
        twin.name = shadow(w.name)
        writer.extra[twin.name] = twin
    for layer in what.layers:
        node = onnx.NodeProto()
        node.CopyFrom(nodes_by_name[layer.name])
        node.name = f"{layer.name}/alone"
        node.output[0] = node.name
        if f"{layer.x}/DequantizeLinear" not in {n.name for n in writer.nodes}:
            writer.activation(layer.x, what.group[layer.x], scales[what.group[layer.x]])
        node.input[0] = f"{layer.x}/DequantizeLinear"
        if f"{layer.weight}/DequantizeLinear" not in {n.name for n in writer.nodes}:
            writer.weights(layer, numpy_helper.to_array(weights[layer.weight]))
        node.input[1] = f"{layer.weight}/DequantizeLinear"
        writer.nodes.append(node)
        square(layer.output)
        for kind, other in (("alone", node.output[0]), ("total", shadow(layer.output))):
            name = f"{layer.name}/error/{kind}"
            writer.nodes.append(helper.make_node("Sub", [layer.output, other], [name], name=name))
            square(name)
    loaded = asked(model, writer.nodes, list(writer.extra.values()), names)
    sums: list[float] = []
    for x in windows():
        values = loaded.run(names, x)
        sums = [float(v) for v in values] if not sums else [s + float(v) for s, v in zip(sums, values, strict=True)]
    if not sums:
        raise BadInput("nothing to measure on")
    result = {}
    for i, layer in enumerate(what.layers):
        signal, own, total = sums[3 * i : 3 * i + 3]
        result[layer.name] = Noise(decibel(signal, own), decibel(signal, total))
    return result
