"""Quantizes a model's f32 files to INT8 (QDQ), calibrated on your own clips, and measures what that costs.

CLIPS is a folder of recordings of what the cameras will see (video files, recursively); every other window of them
calibrates, the others measure. Writes `<file>.int8.onnx` beside each f32 file, lists it in model.toml, and puts the
report of every layer into int8.json. Layers that lose too much stay f32.

Example:
  factory quantize models/default recordings/
  factory quantize --check models/default
"""

import argparse
import json
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from tqdm import tqdm

from . import int8, intake
from .intake import BadInput, Stream
from .model import log_softmax, session, sha256, staged

MEMORY = 1 << 30
"""Bytes of input tensors that are held for the calibration, and again for the measurement."""
PROVIDERS = ("CPUExecutionProvider", "OpenVINOExecutionProvider")
Held = list[list[np.ndarray]]
"""Windows, each as one tensor a stream."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `quantize`."""
    parser.add_argument("folder", nargs="?", type=Path, metavar="MODEL", help="the model's folder")
    parser.add_argument(
        "recordings", nargs="?", type=Path, metavar="CLIPS", help="folder with video files, or one file"
    )
    parser.add_argument("--model", type=Path, help="the same as MODEL")
    parser.add_argument("--data", type=Path, help="instead of CLIPS: rendered shards, train/ (calibration) and held/")
    parser.add_argument("--check", action="store_true", help="only hold MODEL's int8 files against TensorRT's rules")
    parser.add_argument("--calibration", type=int, default=128, help="how many windows to calibrate on (default 128)")
    parser.add_argument("--clips", type=int, default=300, help="how many windows to compare on (default 300)")
    parser.add_argument("--method", choices=int8.METHODS, default="percentile", help="where values are clipped")
    parser.add_argument(
        "--min-sqnr",
        type=float,
        default=12.0,
        help="a layer whose own quantization leaves less than this many dB of signal to noise stays f32 (default 12)",
    )
    parser.add_argument("--keep", nargs="*", default=[], help="names of nodes that stay f32 whatever they lose")


def main(args: argparse.Namespace) -> int:
    """Runs `quantize`."""
    folder = args.model or args.folder
    try:
        if folder is None:
            raise BadInput("say which model: factory quantize MODEL CLIPS")
        if args.check:
            return check(folder)
        run(folder, args)
    except (BadInput, int8.Refused) as e:
        print(f"factory quantize: {e}", file=sys.stderr)
        return 2
    return 0


# ---------------------------------------------------------------------------------------------- windows


def from_clips(clips: Path, streams: list[Stream], calibration: int, compare: int) -> tuple[Held, Held]:
    """Windows of the user's recordings, for the calibration and for the comparison."""
    paths = intake.find_clips(clips)
    # Files in a drawn order, the same at each run: where there are more than are needed, any of them will do.
    order = np.random.default_rng(0).permutation(len(paths))
    wanted = calibration + compare
    each = max(2, -(-wanted // len(paths)))
    held: Held = []
    failed = []
    with tqdm(total=len(paths), desc="clips", unit="clip", disable=None) as bar:
        for i in order:
            try:
                held += intake.windows(paths[i], streams, each)
            except BadInput as e:
                failed.append(e)
                bar.write(f"left out: {e}")
            bar.update()
            if len(held) >= wanted:
                break
    if not held:
        raise failed[0] if len(failed) == 1 else BadInput(f"{clips}: none of its {len(paths)} clips can be decoded")
    if len(held) == 1:
        print("one window only: it calibrates and measures; give more or longer clips")
        return held, held
    return held[::2][:calibration], held[1::2][:compare]


def from_shards(data: Path, streams: list[Stream], calibration: int, compare: int) -> tuple[Held, Held, np.ndarray]:
    """Windows of rendered shards, and the labels of those that are compared on."""
    from .data import EVALUATION_FRAMES, SIZE, Clips, held_out, plain

    for s in streams:
        if (
            s.kind not in ("rgb", "flow")
            or s.layout != "NCTHW"
            or s.size != (SIZE, SIZE)
            or s.frames != EVALUATION_FRAMES
        ):
            raise BadInput(f"stream {s.name}: rendered shards fit the default model's streams only; give CLIPS instead")

    def windows(name: str, count: int) -> tuple[Held, np.ndarray]:
        clips = Clips(data / name)
        clips.rescan()
        if not len(clips):
            raise BadInput(f"{data / name}: no shards in it")
        chosen = held_out(clips, count)
        made = [
            [
                np.ascontiguousarray(plain(clips, s.kind, int(i), s.frames)[None].transpose(0, 4, 1, 2, 3))
                for s in streams
            ]
            for i in chosen
        ]
        return made, clips.labels[chosen]

    measured, labels = windows("held", compare)
    return windows("train", calibration)[0], measured, labels


# ---------------------------------------------------------------------------------------------- one stream


def quantize_stream(
    source: Path, stream: Stream, calibration: list[np.ndarray], args: argparse.Namespace
) -> tuple[onnx.ModelProto, list[dict]]:
    """The s8 graph of an f32 file, and its layers' report."""
    model = int8.named(onnx.load(source))
    names = {i.name for i in model.graph.input}
    if stream.input not in names:
        raise BadInput(f"{source}: no input `{stream.input}`; it has {', '.join(sorted(names))}")
    zeros = {name: np.zeros(shape, np.float32) for name, shape in stream.state}
    shapes = {stream.input: calibration[0].shape, **{name: x.shape for name, x in zeros.items()}}
    fixed = int8.pinned(model, shapes)
    every = {layer.name: layer for layer in int8.layers_of(model.graph)}
    unknown = set(args.keep) - {node.name for node in model.graph.node}
    if unknown:
        raise BadInput(f"{source}: --keep names no node of it: {', '.join(sorted(unknown))}")
    why = dict.fromkeys(int8.last_layers(model.graph), "classifier")
    why |= {name: "--keep" for name in args.keep if name in every}
    what = int8.plan(fixed.graph, set(why))
    if not what.layers:
        raise BadInput(f"{source}: no f32 convolution or matrix product in it to quantize")

    def windows(most: int, text: str) -> int8.Windows:
        def inputs() -> Iterator[int8.Inputs]:
            for x in tqdm(calibration[:most], desc=f"{stream.name}: {text}", unit="window", leave=False, disable=None):
                yield {stream.input: x, **zeros}

        return inputs

    ranges = int8.ranges_of(fixed, what.reads, args.method, windows(len(calibration), "calibration"))
    # The ends of the input are known, and zero is one of its values.
    if stream.input in ranges:
        ranges[stream.input] = max(abs(v) for v in stream.range)
    few = windows(16, "layers")
    while True:
        scales = int8.scales_of(what, ranges)
        s8 = int8.quantized(fixed, what, scales)
        noise = int8.layer_noise(fixed, s8, what, scales, few)
        lossy = {name: n for name, n in noise.items() if n.own < args.min_sqnr}
        if not lossy:
            break
        why |= {name: f"{n.own:.1f} dB" for name, n in lossy.items()}
        what = int8.plan(fixed.graph, set(why))
        if not what.layers:
            raise int8.Refused(f"{source}: every layer loses more than --min-sqnr {args.min_sqnr} allows")
    layers = []
    for name, layer in every.items():
        entry = {"layer": name, "precision": "f32" if name in why else "int8"}
        if name in why:
            entry["because"] = why[name]
        else:
            entry |= {"own_db": round(noise[name].own, 2), "total_db": round(noise[name].total, 2)}
            entry["input_scale"] = scales[what.group[layer.x]]
        layers.append(entry)
    return restored(s8, model), layers


def restored(s8: onnx.ModelProto, source: onnx.ModelProto) -> onnx.ModelProto:
    """With the open axes of the source's inputs and outputs, checked."""
    for values, originals in ((s8.graph.input, source.graph.input), (s8.graph.output, source.graph.output)):
        for value, original in zip(values, originals, strict=True):
            value.CopyFrom(original)
    onnx.checker.check_model(s8, full_check=True)
    return s8


def logits_of(
    model: onnx.ModelProto, stream: Stream, windows: list[np.ndarray], provider: str
) -> tuple[np.ndarray, float]:
    """Logits [windows, classes], and the median of milliseconds a window on one thread."""
    # OpenVINO wants shapes to plan with; the daemon pins the window's length too.
    zeros = {name: np.zeros(shape, np.float32) for name, shape in stream.state}
    shapes = {stream.input: windows[0].shape, **{name: x.shape for name, x in zeros.items()}}
    loaded = session(int8.pinned(model, shapes), provider)
    rows, times = [], []
    for x in tqdm(windows, desc=f"{stream.name}: {provider}", unit="window", leave=False, disable=None):
        began = time.perf_counter()
        rows.append(loaded.run([stream.output], {stream.input: x, **zeros})[0].reshape(-1))
        times.append(time.perf_counter() - began)
    return np.array(rows), float(np.median(times) * 1e3)


# ---------------------------------------------------------------------------------------------- the whole model


def run(folder: Path, args: argparse.Namespace) -> None:
    """Quantizes every stream of a model."""
    manifest, streams = intake.read_manifest(folder)
    for s in streams:
        if "f32" not in s.files:
            raise BadInput(
                f"{folder}: stream {s.name} has no f32 file (only {', '.join(s.files)}); quantization needs it"
            )
        if not (folder / s.files["f32"]).is_file():
            raise BadInput(f"{folder / s.files['f32']}: no such file, though model.toml lists it")
    if (args.data is None) == (args.recordings is None):
        raise BadInput(
            "say what to calibrate on: CLIPS, a folder of recordings, or --data, rendered shards; one of them"
        )
    largest = max(4 * s.frames * s.channels * s.size[0] * s.size[1] for s in streams) * len(streams)
    most = max(2, MEMORY // largest)
    calibration, compare = min(args.calibration, most), min(args.clips, most)
    labels = None
    if args.data is None:
        learn, measure = from_clips(args.recordings, streams, calibration, compare)
    else:
        learn, measure, labels = from_shards(args.data, streams, calibration, compare)
    print(f"{len(learn)} windows calibrate ({args.method}), {len(measure)} measure")
    report: dict = {
        "model": manifest.get("name"),
        "method": args.method,
        "min_sqnr_db": args.min_sqnr,
        "calibration_windows": len(learn),
        "measured_windows": len(measure),
        "streams": {},
    }
    random = "random" in f"{manifest.get('name')} {manifest.get('source')}".lower()
    fused: dict[tuple[str, str], np.ndarray] = {}
    with staged(folder) as out:
        for i, stream in enumerate(streams):
            source = out / stream.files["f32"]
            path = f"{source.relative_to(out).with_suffix('')}.int8.onnx"
            s8, layers = quantize_stream(source, stream, [w[i] for w in learn], args)
            onnx.save(s8, out / path)
            list_file(out, stream.name, "int8", path)
            entry = measured(onnx.load(source), s8, stream, [w[i] for w in measure], fused, labels)
            entry = {"file": path, "bytes": (out / path).stat().st_size, **entry, "layers": layers}
            report["streams"][stream.name] = entry
            show(stream, entry, random)
        report["fused"] = fusion(manifest, streams, fused, labels)
        print(f"fused by the manifest's rule: {sentence(report['fused'])}")
        if random:
            report["note"] = "random weights: agreement of the first labels means nothing, signal to noise does"
            print(report["note"])
        (out / "int8.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {', '.join(e['file'] for e in report['streams'].values())}, model.toml and int8.json in {folder}")


def measured(
    f32: onnx.ModelProto,
    s8: onnx.ModelProto,
    stream: Stream,
    windows: list[np.ndarray],
    fused: dict[tuple[str, str], np.ndarray],
    labels: np.ndarray | None,
) -> dict:
    """How far logits are from those of f32 on ONNX Runtime's CPU provider, in both precisions on every provider."""
    reference, entry = None, {"providers": {}}
    for provider in (p for p in PROVIDERS if p in onnxruntime.get_available_providers()):
        for precision, model in (("f32", f32), ("int8", s8)):
            logits, milliseconds = logits_of(model, stream, windows, provider)
            reference = logits if reference is None else reference
            if provider == PROVIDERS[0]:
                fused[stream.name, precision] = logits
            found = {"ms": round(milliseconds, 2)} | compared(reference, logits, labels)
            entry["providers"].setdefault(provider, {})[precision] = found
    return entry | entry["providers"][PROVIDERS[0]]["int8"]


def compared(reference: np.ndarray, scores: np.ndarray, labels: np.ndarray | None) -> dict:
    """Agreement of the first label, and signal to noise, of logits [windows, classes]."""
    noise = float(((reference - scores) ** 2).sum())
    found = {
        "agreement": round(float((reference.argmax(1) == scores.argmax(1)).mean()), 4),
        "sqnr_db": round(int8.decibel(float((reference**2).sum()), noise), 2),
    }
    if labels is not None:
        found["top1"] = round(float((scores.argmax(1) == labels).mean()), 4)
    return found


def fusion(
    manifest: dict, streams: list[Stream], logits: dict[tuple[str, str], np.ndarray], labels: np.ndarray | None
) -> dict:
    """The same of the fused scores, by the manifest's rule and weights."""
    rule = manifest.get("fusion", {})
    weights = rule.get("weights", {})
    scores = []
    for precision in ("f32", "int8"):
        total = 0
        for s in streams:
            values = logits[s.name, precision]
            share = weights.get(s.name, 0.0) if weights else 1.0
            total = total + share * (values if rule.get("rule") == "logits" else np.exp(log_softmax(values)))
        scores.append(total)
    return compared(*scores, labels) | (
        {} if labels is None else {"top1_f32": compared(*scores[:1] * 2, labels)["top1"]}
    )


def sentence(found: dict) -> str:
    """A line for a person."""
    text = f"first label agrees with f32 in {found['agreement'] * 100:.1f} %, signal to noise {found['sqnr_db']:.1f} dB"
    return text + (f", right {found['top1'] * 100:.1f} %" if "top1" in found else "")


def show(stream: Stream, entry: dict, random: bool) -> None:
    """Prints a stream's layers, worst first in the last column's words, and its totals."""
    layers = entry["layers"]
    width = max(len(e["layer"]) for e in layers)
    print(f"\n{stream.name}: {entry['file']}, {entry['bytes'] / 1e6:.2f} MB")
    print(f"  {'layer':<{width}}  own dB  total dB")
    inside = [e for e in layers if e["precision"] == "int8"]
    worst = {e["layer"] for e in sorted(inside, key=lambda e: e["own_db"])[:5]}
    for e in layers:
        if e["precision"] == "f32":
            print(f"  {e['layer']:<{width}}  stays f32: {e['because']}")
        else:
            mark = "  <- hurts most" if e["layer"] in worst else ""
            print(f"  {e['layer']:<{width}}  {e['own_db']:6.1f}  {e['total_db']:8.1f}{mark}")
    for provider, both in entry["providers"].items():
        for precision, found in both.items():
            text = f"signal to noise {found['sqnr_db']:.1f} dB" if random else sentence(found)
            print(f"  {provider} {precision}: {text}, {found['ms']:.1f} ms a window")


def list_file(folder: Path, stream: str, precision: str, path: str) -> None:
    """Lists a file of a stream in model.toml with its checksum, in place of one of the same precision."""
    manifest = folder / "model.toml"
    text = manifest.read_text()
    expected = tomllib.loads(text)
    digest = sha256(folder / path)
    table = next(s for s in expected["stream"] if s["name"] == stream)
    table["file"] = [f for f in table["file"] if f["precision"] != precision]
    table["file"].append({"precision": precision, "path": path, "sha256": digest})
    lines = text.splitlines()
    # Tables of the text: where each begins, and its name.
    begins = [i for i, line in enumerate(lines) if line.lstrip().startswith("[")] + [len(lines)]
    name = number = None
    drop: list[tuple[int, int]] = []
    place = None
    for begin, end in zip(begins, begins[1:], strict=False):
        header = lines[begin].strip()
        body = "\n".join(lines[begin + 1 : end])
        if header == "[[stream]]":
            number = 0 if number is None else number + 1
            name = expected["stream"][number]["name"]
        elif header == "[[stream.file]]" and name == stream:
            if tomllib.loads(body)["precision"] == precision:
                drop.append((begin, end))
            place = end
    if place is not None:
        added = [
            "[[stream.file]]",
            f'precision = "{precision}"',
            f"path = {json.dumps(path)}",
            f'sha256 = "{digest}"',
            "",
        ]
        before = lines[:place]
        while before and not before[-1].strip():
            before.pop()
        kept_before = [line for i, line in enumerate(before) if not any(b <= i < e for b, e in drop)]
        while kept_before and not kept_before[-1].strip():
            kept_before.pop()
        text = "\n".join([*kept_before, "", *added, *lines[place:]]).rstrip() + "\n"
    if place is None or tomllib.loads(text) != expected:
        raise BadInput(f"{manifest}: its files are not listed as [[stream.file]] tables; write them so")
    manifest.write_text(text)


def check(folder: Path) -> int:
    """Holds every int8 file of a model against TensorRT's rules."""
    from . import qdq

    _, streams = intake.read_manifest(folder)
    paths = [folder / s.files["int8"] for s in streams if "int8" in s.files]
    if not paths:
        raise BadInput(f"{folder}: no int8 file in its model.toml")
    bad = 0
    for path in paths:
        if not path.is_file():
            raise BadInput(f"{path}: no such file, though model.toml lists it")
        broken = qdq.check(onnx.load(path))
        bad += len(broken)
        for text in broken:
            print(f"{path}: {text}")
        if not broken:
            print(f"{path}: keeps TensorRT's rules for explicit quantization")
    return 1 if bad else 0
