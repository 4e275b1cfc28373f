"""Quantizes the exported streams to INT8 with ONNX Runtime's static quantization.

QDQ, weights per channel, activations symmetric (s8, zero point 0: what TensorRT asks for, and what lets OpenVINO run
the stem in INT8), calibrated on rendered training clips. The graph keeps its open time axis and its SAME padding.
Measures every file against f32 on held-out renders, and writes the manifest anew with the files' checksums.

  python -m actiond_factory quantize --model models/default --data build/factory/renders
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from .data import EVALUATION_FRAMES, Clips, held_out, plain
from .model import log_softmax, refresh_manifest, session

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}


class Reader(CalibrationDataReader):
    """Clips for the calibration, one at a time."""

    def __init__(self, clips: Clips, stream: str, count: int) -> None:
        self.inputs: Iterator[dict[str, np.ndarray]] = (
            {"input": picture_stack(clips, stream, int(i))} for i in held_out(clips, count)
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next input, None at the end."""
        return next(self.inputs, None)


def picture_stack(clips: Clips, stream: str, index: int) -> np.ndarray:
    """f32 [1, C, 64, 64, 64]: the middle of a clip."""
    return np.ascontiguousarray(plain(clips, stream, index, EVALUATION_FRAMES)[None].transpose(0, 4, 1, 2, 3))


def pinned(model: onnx.ModelProto, frames: int) -> onnx.ModelProto:
    """A copy whose time axis has `frames` pictures."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.input[0].type.tensor_type.shape.dim[2].dim_value = frames
    return onnx.shape_inference.infer_shapes(copy)


def quantize(source: Path, target: Path, reader: Reader, method: str, keep: list[str]) -> None:
    """Writes `target`; convolutions named in `keep` stay f32, and so does the head.

    A convolution's output is quantized behind its ReLU, by whoever reads it: in front of it half of the s8 range would
    go to values that the ReLU throws away.
    """
    with tempfile.TemporaryDirectory() as folder:
        fixed = Path(folder) / "fixed.onnx"
        model = pinned(onnx.load(source), EVALUATION_FRAMES)
        onnx.save(model, fixed)
        quantize_static(
            fixed,
            target,
            reader,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=METHODS[method],
            nodes_to_exclude=[*keep, *(node.name for node in model.graph.node if node.name.startswith("Logits/"))],
            op_types_to_quantize=["Conv"],
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "CalibTensorRangeSymmetric": True,
                "CalibPercentile": 99.99,
                "OpTypesToExcludeOutputQuantization": ["Conv"],
            },
        )
    quantized = onnx.load(target)
    separate_concatenations(quantized.graph)
    quantized.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "T"
    del quantized.graph.value_info[:]
    onnx.checker.check_model(quantized, full_check=True)
    onnx.save(quantized, target)


def separate_concatenations(graph: onnx.GraphProto) -> None:
    """Puts a max pool of one element, which changes nothing, between each concatenation and its quantization.

    OpenVINO 2025.4's provider computes wrong numbers (correlation 0.87) where s8 quantization reads a concatenation's
    output; behind a pool it is right to 3e-8.
    """
    concatenated = {node.output[0] for node in graph.node if node.op_type == "Concat"}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in concatenated:
            name = f"{node.input[0]}/Same"
            nodes.append(onnx.helper.make_node("MaxPool", [node.input[0]], [name], name=name, kernel_shape=[1, 1, 1]))
            node.input[0] = name
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def logits_of(path: Path, clips: Clips, stream: str, indices: np.ndarray, provider: str) -> tuple[np.ndarray, float]:
    """Logits [clips, classes], and the median of milliseconds a clip on one thread."""
    # OpenVINO wants shapes to plan with; the daemon pins the window's length too.
    loaded = session(pinned(onnx.load(path), EVALUATION_FRAMES), provider)
    rows, times = [], []
    for index in indices:
        x = picture_stack(clips, stream, int(index))
        began = time.perf_counter()
        rows.append(loaded.run(["logits"], {"input": x})[0][0])
        times.append(time.perf_counter() - began)
    return np.array(rows), float(np.median(times) * 1e3)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `quantize`."""
    parser.add_argument("--model", type=Path, required=True, help="the model's folder")
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ (calibration) and held/")
    parser.add_argument("--calibration", type=int, default=128, help="how many training clips to calibrate on")
    parser.add_argument("--clips", type=int, default=300, help="how many held-out clips to compare on")
    parser.add_argument("--method", choices=METHODS, default="minmax")
    parser.add_argument("--keep", nargs="*", default=[], help="names of nodes that stay f32")


def main(args: argparse.Namespace) -> int:
    """Runs `quantize`."""
    train, held = Clips(args.data / "train"), Clips(args.data / "held")
    train.rescan()
    held.rescan()
    indices = held_out(held, args.clips)
    labels = held.labels[indices]
    providers = [p for p in ("CPUExecutionProvider", "OpenVINOExecutionProvider") if p in available()]
    fused: dict[tuple[str, str], np.ndarray] = {}
    for stream in ("rgb", "flow"):
        source, target = args.model / f"{stream}.onnx", args.model / f"{stream}.int8.onnx"
        quantize(source, target, Reader(train, stream, args.calibration), args.method, args.keep)
        reference = None
        for provider in providers:
            for path in (source, target):
                logits, milliseconds = logits_of(path, held, stream, indices, provider)
                reference = logits if reference is None else reference
                agreement = (logits.argmax(1) == reference.argmax(1)).mean()
                accuracy = (logits.argmax(1) == labels).mean()
                key = (provider, path.name.removeprefix(stream))
                fused[key] = fused.get(key, 0) + np.exp(log_softmax(logits))
                print(
                    f"{path.name} {provider}: held-out {accuracy:.3f}, agrees with f32 {agreement:.3f}, "
                    f"mean difference {np.abs(logits - reference).mean():.3f}, {milliseconds:.1f} ms, "
                    f"{path.stat().st_size / 1e6:.2f} MB"
                )
    for (provider, name), scores in fused.items():
        print(f"fused, equal weights, {name} {provider}: {(scores.argmax(1) == labels).mean():.3f}")
    refresh_manifest(args.model)
    return 0


def available() -> list[str]:
    """ONNX Runtime's providers in this installation."""
    return onnxruntime.get_available_providers()
