"""A model's folder: its manifest, its checksums, and its graphs run by ONNX Runtime. Needs no torch."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from .classes import LABELS
from .data import BOUND, EVALUATION_FRAMES, SIZE


def session(model: onnx.ModelProto | Path, provider: str = "CPUExecutionProvider") -> onnxruntime.InferenceSession:
    """One thread, one provider, which fails instead of falling back to another."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    loaded = onnxruntime.InferenceSession(source, options, providers=[provider])
    if loaded.get_providers()[0] != provider:
        raise RuntimeError(f"{provider} did not register: {loaded.get_providers()}")
    return loaded


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def sha256(path: Path) -> str:
    """Of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files_toml(out: Path, stream: str) -> str:
    """The [[stream.file]] tables of the files of a stream that lie in `out`."""
    tables = ""
    for precision, name in (("f32", f"{stream}.onnx"), ("int8", f"{stream}.int8.onnx")):
        if (out / name).exists():
            digest = sha256(out / name)
            tables += f'\n[[stream.file]]\nprecision = "{precision}"\npath = "{name}"\nsha256 = "{digest}"\n'
    return tables


def stream_toml(out: Path, stream: str) -> str:
    """A [[stream]] table with every file of the stream that lies in `out`."""
    flow = f"""bound = {BOUND}
flow = {{ algorithm = "dis", preset = "fast", finest_scale = 1, refinement = 0, upscale = 2 }}
"""
    return f"""
[[stream]]
name = "{stream}"
kind = "{stream}"
frames = {EVALUATION_FRAMES}
step = 1
size = [{SIZE}, {SIZE}]
fit = "squeeze"
layout = "NCTHW"
input = "input"
output = "logits"
dtype = "f32"
range = [-1.0, 1.0]
{flow if stream == "flow" else ""}{files_toml(out, stream)}"""


# A fall is over in a second and drowns in a mean; walking goes on, and its mean is steadier than its peaks.
SHORT = ("jumping", "sitting down", "standing up", "picking up", "falling", "punching", "kicking", "pushing")


def write_manifest(out: Path, weights: dict[str, float], starts: dict[str, float]) -> None:
    """model.toml and labels.txt for the files that lie in `out`.

    `weights`: each stream's share of the fused probabilities; `starts`: start thresholds of labels that need another
    than the default.
    """
    (out / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    decisions = ""
    for label in LABELS[1:]:
        by = "peak" if label in SHORT else "mean"
        start = starts.get(label, 0.5)
        key = label if label.isidentifier() else f'"{label}"'
        decisions += f'\n[decision.label.{key}]\nby = "{by}"\nstart = {start:.2f}\n'
    (out / "model.toml").write_text(f"""name = "actiond-compact-i3d"
version = "1"
architecture = "two-stream-i3d"
licence = "MIT"
source = "trained by this project on rendered motion capture; see CARD.md"
fps = 25
labels = "labels.txt"
background = "nothing"

[fusion]
rule = "probabilities"
weights = {{ rgb = {weights["rgb"]:.2f}, flow = {weights["flow"]:.2f} }}
{stream_toml(out, "rgb")}{stream_toml(out, "flow")}
[decision]
start = 0.5
end = 0.3
smooth_hops = 2
min_hops = 1
{decisions}""")


def refresh_manifest(out: Path) -> None:
    """Lists the files that lie in `out` now, with their checksums, in its model.toml."""
    parts = (out / "model.toml").read_text().split("\n[[stream]]\n")
    for number, stream in enumerate(("rgb", "flow"), 1):
        head, decision, rest = parts[number].partition("\n[decision]")
        head = head.partition("\n[[stream.file]]")[0].rstrip("\n") + "\n"
        parts[number] = head + files_toml(out, stream) + decision + rest
    (out / "model.toml").write_text("\n[[stream]]\n".join(parts))
