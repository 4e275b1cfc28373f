"""Holds a QDQ graph against what TensorRT has written about explicit quantization, where TensorRT itself can't be had.

The rules are from NVIDIA's TensorRT documentation, "Working with Quantized Types" and "Explicit Quantization"
(symmetric INT8, per-tensor activations, per-channel weights; Q/DQ layer-placement recommendations), and from its ONNX
parser (onnx-tensorrt, `QuantDequantLinearHelper`: three inputs, no u8, zero points of zero and as many as scales,
positive scales, as many scales as the axis is long; an s32 bias behind DequantizeLinear is "only activation types
allowed").
"""

from collections import defaultdict

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from .int8 import SAME_SCALE, attribute

WEIGHTED = {"Conv": 0, "ConvTranspose": 1, "Gemm": None, "MatMul": None}
"""Operators with weights, and the axis of the weights' output channels; None where it depends on the node."""
CARRIERS = {
    *WEIGHTED,
    *SAME_SCALE,
    "Add",
    "AveragePool",
    "GlobalAveragePool",
    "Relu",
    "ReduceMean",
    "Resize",
    "Identity",
}
"""Operators that TensorRT can run on s8 when DequantizeLinear stands in front of them."""
FUSED_BEHIND = {"Relu", "BatchNormalization", "Clip", "LeakyRelu"}
"""What TensorRT makes one with the convolution before it, unless quantization stands between them."""


def check(model: onnx.ModelProto) -> list[str]:
    """What is against the rules, a sentence each with the node's name; empty for a good graph."""
    return Rules(model.graph, {o.domain: o.version for o in model.opset_import}.get("", 0)).broken


class Rules:
    """A graph being held against the rules."""

    def __init__(self, graph: onnx.GraphProto, opset: int) -> None:
        self.broken: list[str] = []
        self.constants = {w.name: w for w in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and (value := attribute(node, "value", None)) is not None:
                self.constants[node.output[0]] = value
        self.types = {i.name: i.type.tensor_type.elem_type for i in graph.input}
        self.producer = {o: node for node in graph.node for o in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.readers[name].append(node)
        self.outputs = {o.name for o in graph.output}
        quantizers = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
        if not quantizers:
            self.say("the graph", "has no QuantizeLinear and DequantizeLinear: it is not quantized")
        if opset < 13:
            self.say("the graph", f"has opset {opset}; scales per channel need 13")
        for node in quantizers:
            self.quantizer(node)
        for node in graph.node:
            if node.op_type in WEIGHTED:
                self.weighted(node)
            if node.op_type in SAME_SCALE:
                self.same_scale(node)

    def say(self, where: onnx.NodeProto | str, what: str) -> None:
        """Notes what is broken."""
        name = where if isinstance(where, str) else f"{where.op_type} {where.name or where.output[0]}"
        self.broken.append(f"{name} {what}")

    def array(self, name: str) -> np.ndarray | None:
        """A constant's value."""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def made_by(self, name: str, kind: str) -> onnx.NodeProto | None:
        """The node of this kind that makes a tensor."""
        node = self.producer.get(name)
        return node if node is not None and node.op_type == kind else None

    def quantizer(self, node: onnx.NodeProto) -> None:
        """Types, scales and zero points of a QuantizeLinear or DequantizeLinear, and where it stands."""
        if len(node.input) != 3 or not node.input[2]:
            self.say(node, "has no zero point; TensorRT wants it, of s8 zeros")
            return
        zero, scale = self.array(node.input[2]), self.array(node.input[1])
        if scale is None or zero is None:
            self.say(node, "has a scale or zero point that is not a constant")
            return
        if zero.dtype != np.int8:
            self.say(node, f"is {zero.dtype}; TensorRT takes int8 only" + self.bias_hint(node))
        if zero.any():
            self.say(node, "has a zero point other than 0; TensorRT is symmetric only")
        if scale.dtype not in (np.float32, np.float16) or not (np.isfinite(scale).all() and (scale > 0).all()):
            self.say(node, "has a scale that is not a positive finite number")
        if zero.size != scale.size:
            self.say(node, f"has {scale.size} scales and {zero.size} zero points")
        if node.op_type == "QuantizeLinear":
            constant = node.input[0] in self.constants
            for reader in self.readers[node.output[0]]:
                if reader.op_type != "DequantizeLinear":
                    self.say(reader, f"reads the s8 of {node.name} without a DequantizeLinear")
            self.between_fused(node)
        else:
            source = self.made_by(node.input[0], "QuantizeLinear")
            constant = node.input[0] in self.constants or (source is not None and source.input[0] in self.constants)
            if source is not None and len(source.input) > 1:
                other = self.array(source.input[1])
                if other is not None and not np.array_equal(other.reshape(-1), scale.reshape(-1)):
                    self.say(node, f"has another scale than {source.name}, whose s8 it reads")
            self.reader_of_s8(node)
        if not constant and scale.size != 1:
            self.say(node, f"has {scale.size} scales on an activation; TensorRT takes one for the whole tensor")

    def bias_hint(self, node: onnx.NodeProto) -> str:
        """More words where the node makes a bias."""
        for reader in self.readers[node.output[0]]:
            if reader.op_type in WEIGHTED and node.output[0] in list(reader.input)[2:]:
                return f" (the bias of {reader.name} must stay f32)"
        return ""

    def between_fused(self, node: onnx.NodeProto) -> None:
        """Quantization between a convolution and its ReLU keeps the two from being one."""
        before = self.producer.get(node.input[0])
        if before is None or before.op_type not in WEIGHTED:
            return
        for dequantize in self.readers[node.output[0]]:
            for reader in self.readers[dequantize.output[0]]:
                if reader.op_type in FUSED_BEHIND:
                    self.say(
                        node, f"stands between {before.name} and {reader.op_type} {reader.name}: put it behind that"
                    )

    def reader_of_s8(self, node: onnx.NodeProto) -> None:
        """Only some operators run on what a DequantizeLinear gives."""
        for reader in self.readers[node.output[0]]:
            if reader.op_type == "QuantizeLinear":
                self.say(reader, f"quantizes again what {node.name} has just made f32")
            elif reader.op_type not in CARRIERS:
                self.say(reader, f"reads {node.name}, but TensorRT has no s8 {reader.op_type}: let it read f32")

    def weighted(self, node: onnx.NodeProto) -> None:
        """A convolution or matrix product: data and weights both in s8 or neither, the weights' scales per channel."""
        data = self.made_by(node.input[0], "DequantizeLinear")
        weights = self.made_by(node.input[1], "DequantizeLinear")
        if data is None and weights is None:
            return
        if weights is None:
            self.say(node, "reads s8 data, but its weights are not quantized")
            return
        if data is None:
            self.say(node, "has s8 weights, but its data is not quantized")
        for name in list(node.input)[2:]:
            if name and name not in self.constants:
                producer = self.producer.get(name)
                if producer is not None and producer.op_type == "DequantizeLinear":
                    self.say(node, "has a quantized bias; TensorRT takes f32 only")
        source = self.made_by(weights.input[0], "QuantizeLinear")
        values = self.array(source.input[0] if source is not None else weights.input[0])
        scale = self.array(weights.input[1]) if len(weights.input) > 1 else None
        if values is None or scale is None:
            # A product of two activations has no channels.
            if node.op_type != "MatMul":
                self.say(node, "has weights that are not constant")
            return
        if source is None and values.dtype != np.int8:
            self.say(node, f"has weights of {values.dtype}; TensorRT takes int8")
        if values.ndim < 2:
            return
        axis = WEIGHTED[node.op_type]
        if axis is None:
            axis = 0 if node.op_type == "Gemm" and attribute(node, "transB", 0) else values.ndim - 1
        if scale.size == 1 and values.shape[axis] != 1:
            self.say(node, "has one scale for all its weights; give each output channel its own")
            return
        for quantizer in (weights, source):
            if quantizer is None or scale.size == 1:
                continue
            found = int(attribute(quantizer, "axis", 1)) % values.ndim
            if found != axis:
                self.say(quantizer, f"has its scales along axis {found} of {node.name}'s weights, not {axis}")
        if scale.size != values.shape[axis]:
            self.say(node, f"has {scale.size} scales for {values.shape[axis]} output channels")

    def scale_of(self, name: str, behind: bool) -> float | None:
        """The scale of the pair that makes a tensor, or (behind) of the one that reads it."""
        if behind:
            pairs = [n for n in self.readers[name] if n.op_type == "QuantizeLinear"]
        else:
            made = self.made_by(name, "DequantizeLinear")
            pairs = [] if made is None else [made]
        values = [self.array(n.input[1]) for n in pairs]
        values = [float(v.reshape(-1)[0]) for v in values if v is not None and v.size == 1]
        return values[0] if values else None

    def same_scale(self, node: onnx.NodeProto) -> None:
        """Concatenations and pools run in s8, without requantizing, if their scales are all equal."""
        data = list(node.input) if node.op_type == "Concat" else [node.input[0]]
        before = [self.scale_of(name, False) for name in data]
        after = self.scale_of(node.output[0], True)
        if all(s is None for s in before):
            return
        if any(s is None for s in before):
            self.say(node, "has inputs in s8 and others in f32")
        known = {s for s in (*before, after) if s is not None}
        if len(known) > 1:
            self.say(node, f"has {len(known)} different scales on its inputs and output: {sorted(known)}")


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether a graph is in QDQ already."""
    types = (TensorProto.INT8, TensorProto.UINT8)
    return any(n.op_type == "QuantizeLinear" for n in model.graph.node) or any(
        w.data_type in types for w in model.graph.initializer
    )
