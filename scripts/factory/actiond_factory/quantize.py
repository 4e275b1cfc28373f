"""Quantizes a model's f32 files to INT8 (QDQ), calibrated on your own clips, and measures what that costs.

CLIPS is a folder of recordings of what the cameras will see (video files, recursively); every other window of them
calibrates, the others measure. Writes `<file>.int8.onnx` beside each f32 file, lists it in model.toml, and puts the
report of every layer into int8.json. Layers that lose too much stay f32.

Example:
  factory quantize models/default recordings/
  factory quantize models/default recordings/ --keep Conv3d_2b_1x1 'Mixed_3*1x1'
  factory quantize --measure models/default other-recordings/
  factory quantize --check models/default
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from tqdm import tqdm

from . import int8, intake, qdq
from .data import EVALUATION_FRAMES, SIZE, Clips, held_out, plain
from .errors import BadInput
from .intake import Stream
from .model import log_softmax, session, sha256, staged
from .toml import tomllib

MEMORY = 1 << 30
"""Bytes of clips' input tensors that are held for the calibration, and again for the measurement."""
CALIBRATION = 102_000_000
"""Values of input on which is calibrated, at most: 10 windows of a full-size I3D, which runs five times on each."""
BEST = 40_000_000
"""Values of input on which candidates are compared, and layers are measured, at most (but 4 windows at the least)."""
PROVIDERS = ("CPUExecutionProvider", "OpenVINOExecutionProvider")
Window = Callable[[int], np.ndarray]
"""Gives the input tensor of a stream by its number in the manifest."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `quantize`."""
    parser.add_argument("folder", nargs="?", type=Path, metavar="MODEL", help="the model's folder")
    parser.add_argument(
        "recordings", nargs="?", type=Path, metavar="CLIPS", help="folder with video files, or one file"
    )
    parser.add_argument("--model", type=Path, help="the same as MODEL")
    parser.add_argument("--data", type=Path, help="instead of CLIPS: rendered shards, train/ (calibration) and held/")
    parser.add_argument("--check", action="store_true", help="only hold MODEL's int8 files against TensorRT's rules")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="only measure MODEL's int8 files, on all of CLIPS or on --data's held/; nothing is written",
    )
    parser.add_argument("--calibration", type=int, default=128, help="how many windows to calibrate on (default 128)")
    parser.add_argument("--clips", type=int, default=300, help="how many windows to compare on (default 300)")
    parser.add_argument("--method", choices=("best", *int8.METHODS), default="best", help="where values are clipped")
    parser.add_argument(
        "--equalize",
        choices=("best", "yes", "no"),
        default="best",
        help="make the ranges of a tensor's channels more equal first, which changes no result in f32",
    )
    parser.add_argument(
        "--min-sqnr",
        type=float,
        default=12.0,
        help="a layer whose own quantization leaves less than this many dB of signal to noise stays f32 (default 12)",
    )
    parser.add_argument(
        "--keep",
        nargs="*",
        default=[],
        metavar="NODE",
        help="names of nodes that stay f32 whatever they lose; * stands for any part of a name",
    )


def main(args: argparse.Namespace) -> int:
    """Runs `quantize`."""
    if args.model is not None and args.recordings is None:
        # The model has its own option, so what stands alone are the clips.
        args.recordings, args.folder = args.folder, None
    if args.model is not None and args.folder is not None:
        raise BadInput(f"--model {args.model} and {args.folder}: say once which model")
    folder = args.model or args.folder
    if folder is None:
        raise BadInput("say which model: factory quantize MODEL CLIPS")
    for name in ("calibration", "clips"):
        if getattr(args, name) < 1:
            raise BadInput(f"--{name} {getattr(args, name)}: must be 1 or more")
    if math.isnan(args.min_sqnr):
        raise BadInput("--min-sqnr nan: must be a number of dB")
    if args.check:
        return check(folder)
    if args.measure:
        measure(folder, args)
    else:
        quantize(folder, args)
    return 0


# ---------------------------------------------------------------------------------------------- windows


def from_clips(clips: Path, streams: list[Stream], calibration: int, compare: int) -> tuple[list[Window], list[Window]]:
    """Windows of the user's recordings, for the calibration (none where that is 0) and for the comparison."""
    paths = intake.find_clips(clips)
    values = [s.frames * s.channels * s.size[0] * s.size[1] for s in streams]
    most = max(2, MEMORY // (4 * sum(values)))
    calibration, compare = min(calibration, most, max(4, CALIBRATION // max(values))), min(compare, most)
    wanted = calibration + compare
    each = max(2, -(-wanted // len(paths)))
    # In a drawn order, the same at each run: where there are more files than are needed, any of them will do.
    order = np.random.default_rng(0).permutation(len(paths))
    held: list[Window] = []
    failed = []
    with tqdm(total=len(paths), desc="clips", unit="clip", disable=None) as bar:
        for i in order:
            try:
                held += [tensors.__getitem__ for tensors in intake.windows(paths[i], streams, each)]
            except BadInput as e:
                failed.append(e)
                print(f"left out: {e}", file=sys.stderr)
            bar.update()
            if len(held) >= wanted:
                break
    if not held:
        raise failed[0] if len(failed) == 1 else BadInput(f"{clips}: none of its {len(paths)} clips can be decoded")
    if not calibration:
        return [], held[:compare]
    if len(held) == 1:
        print("one window only: it calibrates and measures; give more or longer clips")
        return held, held
    return held[::2][:calibration], held[1::2][:compare]


def from_shards(
    data: Path, streams: list[Stream], calibration: int, compare: int
) -> tuple[list[Window], list[Window], np.ndarray]:
    """Windows of rendered shards (none for a calibration of 0), and the labels of those that are compared on."""
    for s in streams:
        shape = (s.layout, s.size, s.frames)
        if s.kind not in ("rgb", "flow") or shape != ("NCTHW", (SIZE, SIZE), EVALUATION_FRAMES):
            raise BadInput(f"stream {s.name}: rendered shards fit the default model's streams only; give CLIPS instead")

    def windows(name: str, count: int) -> tuple[list[Window], np.ndarray]:
        clips = Clips(data / name)
        clips.rescan()
        if not len(clips):
            raise BadInput(f"{data / name}: no shards in it")

        def picture_stack(index: int, stream: int) -> np.ndarray:
            return np.ascontiguousarray(
                plain(clips, streams[stream].kind, index, EVALUATION_FRAMES)[None].transpose(0, 4, 1, 2, 3)
            )

        chosen = held_out(clips, count)
        return [partial(picture_stack, int(i)) for i in chosen], clips.labels[chosen]

    measured, labels = windows("held", compare)
    return windows("train", calibration)[0] if calibration else [], measured, labels


# ---------------------------------------------------------------------------------------------- one stream


@dataclass
class Run:
    """One stream's graph and the windows that it is quantized with."""

    source: Path
    stream: Stream
    model: onnx.ModelProto
    windows: Sequence[Callable[[], np.ndarray]]

    def inputs(self, x: np.ndarray) -> int8.Inputs:
        """A window's tensor, with the state that a recurrent network begins with."""
        return {self.stream.input: x} | {name: np.zeros(shape, np.float32) for name, shape in self.stream.state}

    def first(self, most: int, text: str) -> int8.Windows:
        """At most so many windows, spread over all."""
        chosen = np.unique(np.linspace(0, len(self.windows) - 1, min(most, len(self.windows))).astype(int))

        def each() -> Iterator[int8.Inputs]:
            for i in bar(chosen, f"{self.stream.name}: {text}"):
                yield self.inputs(self.windows[i]())

        return each


def bar(values: Sequence, text: str) -> Iterator:
    """The values, with progress on a terminal."""
    return iter(tqdm(values, desc=text, unit="window", leave=False, disable=None))


def check_fit(run: Run, model: onnx.ModelProto, source: Path) -> None:
    """A graph must take what model.toml says that it takes: giving it other sizes would make another graph of it."""
    stream = run.stream
    fed = run.inputs(run.windows[0]())
    inputs = {i.name: i.type.tensor_type for i in model.graph.input}
    for name, x in fed.items():
        if name not in inputs:
            raise BadInput(f"{source}: no input `{name}`; it has {', '.join(sorted(inputs))}")
        sizes = [d.dim_value if d.HasField("dim_value") else None for d in inputs[name].shape.dim]
        if len(sizes) != x.ndim or any(n is not None and n != m for n, m in zip(sizes, x.shape, strict=True)):
            own = " x ".join("any" if n is None else str(n) for n in sizes)
            raise BadInput(f"{source}: input `{name}` is {own}; model.toml makes it {' x '.join(map(str, x.shape))}")
        if inputs[name].elem_type != onnx.helper.np_dtype_to_tensor_dtype(x.dtype):
            own = onnx.TensorProto.DataType.Name(inputs[name].elem_type).lower()
            raise BadInput(f"{source}: input `{name}` is of {own}; model.toml makes it {x.dtype}")
    # Old graphs list their weights as inputs too.
    if odd := inputs.keys() - fed.keys() - {w.name for w in model.graph.initializer}:
        raise BadInput(f"{source}: input `{min(odd)}` is not in model.toml")
    outputs = [o.name for o in model.graph.output]
    if stream.output not in outputs:
        raise BadInput(f"{source}: no output `{stream.output}`; it has {', '.join(outputs)}")


def quantize_stream(run: Run, args: argparse.Namespace) -> tuple[onnx.ModelProto, str, list[dict]]:
    """The s8 graph of an f32 file, the method that chose its ranges, and its layers' report."""
    source, stream = run.source, run.stream
    model = int8.named(run.model)
    if qdq.is_quantized(model):
        raise BadInput(f"{source}: is quantized already, though model.toml calls it f32")
    check_fit(run, model, source)
    fixed = int8.pinned(model, {name: x.shape for name, x in run.inputs(run.windows[0]()).items()})
    every = {layer.name: layer for layer in int8.layers_of(model.graph)}
    for pattern in args.keep:
        if not any(fnmatchcase(node.name, pattern) for node in model.graph.node):
            raise BadInput(f"{source}: --keep names no node of it: {pattern}")
    why = dict.fromkeys(int8.last_layers(model.graph), "classifier")
    why |= {name: "--keep" for name in every if any(fnmatchcase(name, pattern) for pattern in args.keep)}
    what = int8.plan(fixed.graph, set(why))
    if not what.layers:
        raise BadInput(f"{source}: no f32 convolution or matrix product in it to quantize")
    every_window = run.first(len(run.windows), "calibration")
    bases = {"as it is": fixed}
    if args.equalize != "no":
        bases["equalized"] = int8.equalized(fixed, every_window)
    if args.equalize == "yes":
        del bases["as it is"]
    tried: list[Candidate] = []
    for text, base in bases.items():
        methods = int8.METHODS if args.method == "best" else [args.method]
        for method, ranges in int8.ranges_of(base, what.reads, methods, every_window).items():
            # The ends of the input are known, and zero is one of its values.
            if stream.input in ranges:
                ranges[stream.input] = max(abs(v) for v in stream.range)
            tried.append(Candidate(f"{method}, {text}", base, ranges))
    chosen = tried[0] if len(tried) == 1 else best(run, fixed, what, tried)
    fixed = chosen.base
    size = run.windows[0]().size
    few = run.first(max(4, min(16, BEST // size)), "layers")
    while True:
        scales = int8.scales_of(what, chosen.ranges)
        s8 = int8.quantized(fixed, what, scales)
        noise = int8.layer_noise(fixed, s8, what, scales, few)
        lossy = {name: n for name, n in noise.items() if n.own < args.min_sqnr}
        if not lossy:
            break
        why |= {name: f"{n.own:.1f} dB" for name, n in lossy.items()}
        what = int8.plan(fixed.graph, set(why))
        if not what.layers:
            raise BadInput(f"{source}: every layer loses more than --min-sqnr {args.min_sqnr} allows")
    layers = []
    for name, layer in every.items():
        entry: dict = {"layer": name, "precision": "f32" if name in why else "int8"}
        if name in why:
            entry["because"] = why[name]
        else:
            entry |= {"own_db": round(noise[name].own, 2), "total_db": round(noise[name].total, 2)}
            entry["input_scale"] = scales[what.group[layer.x]]
        layers.append(entry)
    return restored(s8, model), chosen.name, layers


@dataclass
class Candidate:
    """A graph and where its values would be clipped."""

    name: str
    base: onnx.ModelProto
    ranges: dict[str, float]


def best(run: Run, fixed: onnx.ModelProto, what: int8.Plan, tried: list[Candidate]) -> Candidate:
    """The candidate that leaves the logits with the least error, on some of the calibration's windows."""
    size = run.windows[0]().size
    some = run.first(max(4, min(32, BEST // size)), "choosing the ranges")
    output = [run.stream.output]

    def logits(model: onnx.ModelProto) -> np.ndarray:
        loaded = session(model)
        return np.array([loaded.run(output, x)[0].reshape(-1) for x in some()])

    reference = logits(fixed)
    errors = []
    for candidate in tried:
        s8 = int8.quantized(candidate.base, what, int8.scales_of(what, candidate.ranges))
        # The mean of lengths, not of squares: one window far out must not choose for all.
        errors.append(float(np.linalg.norm(logits(s8) - reference, axis=1).mean()))
    return tried[int(np.argmin(errors))]


def restored(s8: onnx.ModelProto, source: onnx.ModelProto) -> onnx.ModelProto:
    """With the open axes of the source's inputs and outputs, checked."""
    for values, originals in ((s8.graph.input, source.graph.input), (s8.graph.output, source.graph.output)):
        for value, original in zip(values, originals, strict=True):
            value.CopyFrom(original)
    onnx.checker.check_model(s8, full_check=True)
    return s8


def logits_of(run: Run, model: onnx.ModelProto, provider: str) -> tuple[np.ndarray, float]:
    """Logits [windows, classes], and the median of milliseconds a window on one thread."""
    # OpenVINO wants shapes to plan with; the daemon pins the window's length too.
    check_fit(run, model, run.source)
    shapes = {name: x.shape for name, x in run.inputs(run.windows[0]()).items()}
    loaded = session(int8.pinned(model, shapes), provider)
    rows, times = [], []
    for window in bar(run.windows, f"{run.stream.name}: {provider}"):
        x = run.inputs(window())
        began = time.perf_counter()
        rows.append(loaded.run([run.stream.output], x)[0].reshape(-1))
        times.append(time.perf_counter() - began)
    return np.array(rows), float(np.median(times) * 1e3)


# ---------------------------------------------------------------------------------------------- the whole model


def windows_of(
    args: argparse.Namespace, streams: list[Stream], calibration: int
) -> tuple[list[Window], list[Window], np.ndarray | None]:
    """What the command line names: windows for the calibration and for the comparison, and labels where known."""
    if (args.data is None) == (args.recordings is None):
        purpose = "calibrate" if calibration else "measure"
        raise BadInput(
            f"say what to {purpose} on: CLIPS, a folder of recordings, or --data, rendered shards; one of them"
        )
    if args.data is None:
        return *from_clips(args.recordings, streams, calibration, args.clips), None
    return from_shards(args.data, streams, calibration, args.clips)


def measure(folder: Path, args: argparse.Namespace) -> None:
    """Says how far the int8 files that a model has are from its f32 files."""
    manifest, streams = intake.read_manifest(folder)
    for s in streams:
        if not {"f32", "int8"} <= set(s.files):
            raise BadInput(f"{folder}: stream {s.name} has only {', '.join(s.files)}; f32 and int8 are compared")
    _, windows, labels = windows_of(args, streams, 0)
    print(f"{len(windows)} windows measure")
    fused: dict[tuple[str, str], np.ndarray] = {}
    for i, stream in enumerate(streams):
        source = folder / stream.files["f32"]
        run = Run(source, stream, load(source), [partial(w, i) for w in windows])
        entry = measured(run, load(folder / stream.files["int8"]), fused, labels)
        print(f"{stream.name}: {stream.files['int8']}")
        providers(entry, False)
    print(f"fused by the manifest's rule: {sentence(fusion(manifest, streams, fused, labels))}")


def quantize(folder: Path, args: argparse.Namespace) -> None:
    """Quantizes every stream of a model."""
    manifest, streams = intake.read_manifest(folder)
    for s in streams:
        if "f32" not in s.files:
            raise BadInput(
                f"{folder}: stream {s.name} has no f32 file (only {', '.join(s.files)}); quantization needs it"
            )
        if not (folder / s.files["f32"]).is_file():
            raise BadInput(f"{folder / s.files['f32']}: no such file, though model.toml lists it")
    learn, measure, labels = windows_of(args, streams, args.calibration)
    print(f"{len(learn)} windows calibrate, {len(measure)} measure")
    report: dict = {
        "model": manifest.get("name"),
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
            f32 = load(source)
            learning, measuring = ([partial(w, i) for w in windows] for windows in (learn, measure))
            s8, method, layers = quantize_stream(Run(source, stream, f32, learning), args)
            onnx.save(s8, out / path)
            list_file(out, stream.name, "int8", path)
            entry = measured(Run(source, stream, f32, measuring), s8, fused, labels)
            size = (out / path).stat().st_size
            entry = {"file": path, "bytes": size, "method": method, **entry, "layers": layers}
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
    run: Run,
    s8: onnx.ModelProto,
    fused: dict[tuple[str, str], np.ndarray],
    labels: np.ndarray | None,
) -> dict:
    """How far logits are from those of f32 on ONNX Runtime's CPU provider, in both precisions on every provider."""
    reference, entry = None, {"providers": {}}
    for provider in (p for p in PROVIDERS if p in onnxruntime.get_available_providers()):
        for precision, model in (("f32", run.model), ("int8", s8)):
            logits, milliseconds = logits_of(run, model, provider)
            reference = logits if reference is None else reference
            if provider == PROVIDERS[0]:
                fused[run.stream.name, precision] = logits
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
            # A stream that is not named counts whole, as in the daemon.
            share = weights.get(s.name, 1.0)
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
    print(f"\n{stream.name}: {entry['file']}, {entry['bytes'] / 1e6:.2f} MB, ranges by {entry['method']}")
    print(f"  {'layer':<{width}}  own dB  total dB")
    inside = [e for e in layers if e["precision"] == "int8"]
    worst = {e["layer"] for e in sorted(inside, key=lambda e: e["own_db"])[:5]}
    for e in layers:
        if e["precision"] == "f32":
            print(f"  {e['layer']:<{width}}  stays f32: {e['because']}")
        else:
            mark = "  <- hurts most" if e["layer"] in worst else ""
            print(f"  {e['layer']:<{width}}  {e['own_db']:6.1f}  {e['total_db']:8.1f}{mark}")
    providers(entry, random)


def providers(entry: dict, random: bool) -> None:
    """Prints what came of a stream on each provider."""
    for provider, both in entry["providers"].items():
        for precision, found in both.items():
            text = f"signal to noise {found['sqnr_db']:.1f} dB" if random else sentence(found)
            print(f"  {provider} {precision}: {text}, {found['ms']:.1f} ms a window")


def list_file(folder: Path, stream: str, precision: str, path: str, alone: bool = False) -> None:
    """Lists a file of a stream in model.toml with its checksum, in place of one of the same precision, or of all."""
    manifest = folder / "model.toml"
    text = manifest.read_text(encoding="utf-8")
    expected = tomllib.loads(text)
    digest = sha256(folder / path)
    table = next(s for s in expected["stream"] if s["name"] == stream)
    table["file"] = [f for f in table["file"] if f["precision"] != precision and not alone]
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
            if alone or tomllib.loads(body)["precision"] == precision:
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
    manifest.write_text(text, encoding="utf-8")


def check(model: Path) -> int:
    """Holds every int8 file of a model, or one ONNX file, against TensorRT's rules."""
    if model.suffix == ".onnx":
        paths = [model]
    else:
        _, streams = intake.read_manifest(model)
        paths = [model / s.files["int8"] for s in streams if "int8" in s.files]
        if not paths:
            raise BadInput(f"{model}: no int8 file in its model.toml; factory quantize makes them")
    bad = 0
    for path in paths:
        broken = qdq.check(load(path))
        bad += bool(broken)
        for text in broken:
            print(f"{path}: {text}")
        if not broken:
            print(f"{path}: keeps TensorRT's rules for explicit quantization")
    return 1 if bad else 0


def load(path: Path) -> onnx.ModelProto:
    """An ONNX file."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        return onnx.load(path)
    except Exception as e:
        raise BadInput(f"{path}: not an ONNX file ({str(e).splitlines()[0] if str(e) else type(e).__name__})") from e
