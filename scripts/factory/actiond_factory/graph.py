"""ONNX graphs written node by node, so that their nodes carry the architecture's own names and their padding is said in
words. Needs no torch."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
DTYPES = {"f32": TensorProto.FLOAT, "u8": TensorProto.UINT8}
Shape = Sequence[int | str]
"""A string is a symbol: an axis of any length."""


class Graph:
    """An ONNX graph that grows at its end; every method adds a node and returns the name of its output."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: Shape, dtype: str = "f32") -> str:
        """An input of the graph."""
        self.inputs.append(helper.make_tensor_value_info(name, DTYPES[dtype], list(shape)))
        return name

    def output(self, name: str, shape: Shape) -> str:
        """An f32 output of the graph; `name` is a node's."""
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))
        return name

    def node(self, kind: str, name: str, inputs: list[str], **attributes: object) -> str:
        """Any node of one output, which is called as the node is."""
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def weight(self, name: str, value: np.ndarray) -> str:
        """An f32 initializer; anything else than floats keeps its type."""
        value = np.ascontiguousarray(value, np.float32 if np.issubdtype(value.dtype, np.floating) else None)
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def convolution(
        self,
        name: str,
        x: str,
        weight: np.ndarray,
        bias: np.ndarray,
        strides: Sequence[int],
        pads: Sequence[int] | None = None,
    ) -> str:
        """A convolution of any rank; `pads` (all fronts, then all backs), or TensorFlow's SAME where left out."""
        padding = {"auto_pad": "SAME_UPPER"} if pads is None else {"pads": list(pads)}
        return self.node(
            "Conv",
            name,
            [x, self.weight(f"{name}/weight", weight), self.weight(f"{name}/bias", bias)],
            kernel_shape=list(weight.shape[2:]),
            strides=list(strides),
            **padding,
        )

    def max_pool(
        self, name: str, x: str, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int] | None = None
    ) -> str:
        """A max pool; its padding, SAME where `pads` are left out, is never the maximum."""
        padding = {"auto_pad": "SAME_UPPER"} if pads is None else {"pads": list(pads)}
        return self.node("MaxPool", name, [x], kernel_shape=list(kernel), strides=list(strides), **padding)

    def model(self) -> onnx.ModelProto:
        """The graph, checked."""
        model = helper.make_model(
            helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, self.weights),
            opset_imports=[helper.make_opsetid("", OPSET)],
            producer_name="actiond_factory",
            ir_version=8,
        )
        onnx.checker.check_model(model, full_check=True)
        return model
