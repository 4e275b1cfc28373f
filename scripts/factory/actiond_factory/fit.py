"""Trains one stream of any of the paper's architectures on folders of clips, as a config says. (`train --config` is the
same; `train` alone is the recipe of the default model, on renders.)

The config is a TOML file; what is left out has the default in brackets:

  architecture = "two-stream-i3d"   # or convnet-lstm, 3d-convnet, two-stream, 3d-fused
  stream = "rgb"                    # which of its streams; rgb+flow for 3d-fused
  data = "clips/train"              # a folder a class, of video files
  held = "clips/held"               # the same for validation, or which share of `data` is held out [0.1]
  mode = "scratch"                  # [scratch]; inflated: from 2D weights; fixed: last layer only; full-ft: all layers
  weights = "runs/flat"             # for all but scratch: a run of this command, a model's folder, an ONNX file
  size = 224                        # pixels [the paper's]
  width = 1.0                       # of the layers [1]
  steps = 5000                      # at most
  batch = 6
  rate = 0.01                       # divided by 10 when the validation loss saturates

and dropout, momentum, decay, patience, drops, evaluate_every, save_every, flip, flow, seed, precision, device, workers,
cache. The run's folder has the config with all of them, a list of the clips with their hashes, versions, the log,
curves.png, checkpoint.pt, from which the same command goes on, and in the end a model that actiond runs. `assemble`
makes one model of the runs of several streams.

  scripts/factory/factory fit i3d-rgb.toml --out build/factory/runs/i3d-rgb
"""

import argparse
import difflib
import hashlib
import json
import platform
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from . import clips as data
from . import intake
from .architectures import ARCHITECTURES
from .boring import graph_file
from .errors import BadInput
from .model import Manifest, Stream, staged
from .start import Layer, adopt, from_onnx, measure
from .toml import tomllib
from .train import append_record, kept_config, read_records, reading, save_checkpoint, write_toml
from .twins import TWINS, difference, export, units

MODES = ("scratch", "inflated", "fixed", "full-ft")
PRECISIONS = {"f32": None, "bf16": torch.bfloat16, "f16": torch.float16}
TOLERANCE = 1e-4
GAIN = 1e-3
"""A validation loss that falls by less than this share has not fallen."""


@dataclass(frozen=True)
class Config:
    """A run's settings, as written to its config.toml."""

    architecture: str
    stream: str
    data: str
    held: str | float = 0.1
    mode: str = "scratch"
    weights: str = ""
    size: int = 0
    """0: the paper's"""
    width: float = 1.0
    dropout: float = 0.5
    steps: int = 5000
    """the paper's for UCF-101 and HMDB-51; 110,000 for Kinetics"""
    batch: int = 6
    rate: float = 0.01
    momentum: float = 0.9
    decay: float = 1e-4
    """of the weights; the paper does not tell its own"""
    patience: int = 3
    """evaluations in a row without gain before the rate is divided by 10"""
    drops: int = 2
    """how often it is divided; when the loss saturates once more the run ends"""
    evaluate_every: int = 250
    save_every: int = 250
    flip: bool = True
    """left-right, half of the clips; not where a class is a direction"""
    flow: str = "dis"
    """or tv-l1, the paper's, far slower and not what a live camera gets"""
    seed: int = 1
    precision: str = "auto"
    """f32, or bf16 or f16 by autocast; auto: on a GPU bf16 or what it has, on a CPU f32"""
    device: str = "auto"
    workers: int = 2
    cache: str = "build/factory/cache"

    def input(self) -> Stream:
        """The stream that is trained, as a manifest describes it."""
        architecture = ARCHITECTURES[self.architecture]
        streams = {s.name: s for s in architecture.streams(self.size or architecture.size, self.width)}
        stream = streams[self.stream]
        if stream.kind == "rgb":
            return stream
        method = {key: value for key, value in asdict(intake.DEFAULT_METHOD).items() if value is not None}
        return replace(stream, flow=method if self.flow == "dis" else {"algorithm": "tv-l1"})


# Another machine may want other values of these; they are no part of what a run is.
FREE = ("data", "held", "weights", "steps", "save_every", "device", "workers", "cache")


def read_config(path: Path) -> Config:
    """A config file, checked."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInput(f"{path}: cannot read the config: {error}") from error
    known = {f.name: f for f in fields(Config)}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise BadInput(f"{path}: there is no setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        wanted = known[key].type
        if wanted is float or (wanted == str | float and not isinstance(value, str)):
            value = values[key] = float(value) if type(value) is int else value
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise BadInput(f"{path}: {key} = {json.dumps(value)} is no {getattr(wanted, '__name__', 'text or number')}")
    for key in ("architecture", "stream", "data"):
        if key not in values:
            raise BadInput(f"{path}: {key} is missing")
    config = Config(**values)

    def one_of(key: str, choices: list[str]) -> None:
        if getattr(config, key) not in choices:
            raise BadInput(f"{path}: {key} = {getattr(config, key)!r}; there are {', '.join(choices)}")

    one_of("architecture", list(ARCHITECTURES))
    one_of("mode", list(MODES))
    one_of("precision", ["auto", *PRECISIONS])
    one_of("flow", ["dis", "tv-l1"])
    limits = {
        "width": (0.01, 4),
        "dropout": (0, 0.99),
        "steps": (1, 10**9),
        "batch": (1, 4096),
        "rate": (1e-9, 100),
        "momentum": (0, 0.9999),
        "decay": (0, 1),
        "patience": (1, 10**6),
        "drops": (0, 20),
        "evaluate_every": (1, 10**9),
        "save_every": (1, 10**9),
        "workers": (1, 256),
        "seed": (0, 2**31),
    }
    for key, (least, most) in limits.items():
        if not least <= getattr(config, key) <= most:
            raise BadInput(f"{path}: {key} = {getattr(config, key)} is not within {least} and {most}")
    if config.size and not 16 <= config.size <= 1024:
        raise BadInput(f"{path}: size = {config.size} is not within 16 and 1024")
    if isinstance(config.held, float) and not 0 <= config.held < 1:
        raise BadInput(f"{path}: held = {config.held} is no share of the clips")
    streams = [s.name for s in ARCHITECTURES[config.architecture].streams(64, 1.0)]
    one_of("stream", streams)
    if (config.mode == "scratch") != (not config.weights):
        raise BadInput(f"{path}: mode {config.mode!r} {'takes no' if config.weights else 'needs'} weights")
    if config.batch < 2 and config.mode != "fixed":
        raise BadInput(f"{path}: batch norm needs a batch of 2 or more")
    return config


def pick_device(config: Config) -> tuple[torch.device, torch.dtype | None]:
    """Where to compute, and what in: None is f32 throughout."""
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"device = {config.device!r} is not there: {str(error).splitlines()[0]}") from error
    if config.precision != "auto":
        return device, PRECISIONS[config.precision]
    if device.type != "cuda":
        return device, None
    return device, torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def versions() -> dict[str, str]:
    """What the run was made with."""
    import cv2

    package = Path(__file__).parent
    code = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        code.update(path.read_bytes())
    commit = subprocess.run(
        ["git", "-C", str(package), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    found = {"python": platform.python_version(), "machine": platform.machine(), "torch": torch.__version__}
    found |= {"numpy": np.__version__, "opencv": cv2.__version__, "onnx": onnx.__version__}
    return found | {"commit": commit or "unknown", "factory_sha256": code.hexdigest()}


class Fit:
    """The state of a run."""

    def __init__(self, config: Config, out: Path, labels: list[str], clips: list[data.Clip]) -> None:
        self.config = config
        self.out = out
        self.labels = labels
        self.train = [clip for clip in clips if not clip.held]
        self.held = [clip for clip in clips if clip.held]
        self.stream = config.input()
        self.positions = self.stream.frames * ARCHITECTURES[config.architecture].steps
        self.span = data.span(self.stream, self.positions)
        self.cache = data.Cache(Path(config.cache), self.stream)
        self.device, self.dtype = pick_device(config)
        torch.manual_seed(config.seed)
        self.net = TWINS[config.architecture](self.stream, len(labels), config.width, config.dropout)
        self.step = 0
        self.rate = config.rate
        self.best = float("inf")
        self.bad = 0
        self.dropped = 0
        self.saturated = False
        self.losses: list[float] = []

    def begin(self) -> None:
        """Takes the checkpoint, or else the weights to start from, and makes the optimizer."""
        path = self.out / "checkpoint.pt"
        state = None
        if path.exists():
            with reading(path):
                state = torch.load(path, weights_only=True, map_location="cpu")
                self.net.load_state_dict(state["net"])
        elif self.config.mode != "scratch":
            self.start()
        self.net.to(self.device)
        for parameter in self.net.parameters():
            # Channels last, which is faster on CPUs and on tensor cores.
            layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(parameter.ndim)
            if layout:
                parameter.data = parameter.data.contiguous(memory_format=layout)
        if self.config.mode == "fixed":
            for name, parameter in self.net.named_parameters():
                parameter.requires_grad_(name.startswith("logits."))
        trained = [p for p in self.net.parameters() if p.requires_grad]
        config = self.config
        self.optimizer = torch.optim.SGD(
            [
                {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.decay},
                {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
            ],
            lr=config.rate,
            momentum=config.momentum,
        )
        # Gradients of f16 underflow; bf16 has f32's range.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        if state:
            with reading(path):
                self.optimizer.load_state_dict(state["optimizer"])
                self.scaler.load_state_dict(state["scaler"])
                for key in ("step", "rate", "best", "bad", "dropped", "saturated", "losses"):
                    setattr(self, key, state[key])

    def start(self) -> None:
        """Takes the weights that the config names; the last layer stays new."""
        config, path = self.config, Path(self.config.weights)
        if (path / "checkpoint.pt").exists():
            other, _, net = load_run(path)
            if other.architecture == config.architecture and config.mode != "inflated":
                state = {k: v for k, v in net.state_dict().items() if not k.startswith("logits.")}
                own = self.net.state_dict()
                for name, value in state.items():
                    if own[name].shape != value.shape:
                        raise BadInput(f"{path}: {name} is {list(value.shape)}, not {list(own[name].shape)}")
                self.net.load_state_dict(state, strict=False)
                return
            layers = {name: Layer.of(unit) for name, unit in units(net)}
        elif path.exists():
            if config.architecture in ("convnet-lstm", "3d-convnet") and config.mode != "inflated":
                raise BadInput(
                    f"{path}: {config.architecture} has layers that only a run's checkpoint.pt gives back; name a run"
                )
            layers = from_onnx(graph_file(path, config.stream if path.is_dir() else None))
        else:
            raise BadInput(f"weights = {str(path)!r}: there is no such run, model or ONNX file")
        if config.mode == "inflated" and not all(layer.weight.ndim == 4 for layer in layers.values()):
            raise BadInput(f'{path}: not a 2D network; mode = "full-ft" goes on from 3D weights')
        folded = adopt(self.net, layers, str(path))
        if folded and config.mode != "fixed":
            chosen = [self.example(clip, 0, i) for i, clip in enumerate(self.drawn(0, max(config.batch, 8)))]
            measure(self.net, torch.from_numpy(np.stack(chosen)))

    def drawn(self, step: int, count: int) -> list[data.Clip]:
        """The clips of a step: every clip once an epoch, in an order that seed and epoch say."""
        chosen = []
        for place in range(step * count, (step + 1) * count):
            epoch, number = divmod(place, len(self.train))
            order = np.random.default_rng([self.config.seed, 1, epoch]).permutation(len(self.train))
            chosen.append(self.train[order[number]])
        return chosen

    def example(self, clip: data.Clip, step: int, number: int) -> np.ndarray:
        """f32 [C, T, H, W], at random."""
        rng = np.random.default_rng([self.config.seed, 2, step, number])
        stored = self.cache.read(clip)
        view = data.random_view(stored.shape, self.span, self.stream.size, self.config.flip, rng)
        return data.example(stored, self.stream, self.positions, view)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """What a step trains on, which depends on seed and step only."""
        chosen = self.drawn(step, self.config.batch)
        x = np.stack([self.example(clip, step, number) for number, clip in enumerate(chosen)])
        return torch.from_numpy(x), torch.tensor([clip.label for clip in chosen])

    def autocast(self) -> torch.autocast:
        """Mixed precision, if there is to be any."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    @staticmethod
    def loss(logits: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy; of all steps where there are several."""
        if logits.ndim == 3:
            label = label[:, None].expand(logits.shape[:2])
        return F.cross_entropy(logits.flatten(0, -2).float(), label.flatten())

    def train_step(self, x: Tensor, label: Tensor) -> float:
        """One step of the optimizer; the loss before it."""
        self.net.train()
        if self.config.mode == "fixed":
            for module in self.net.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        # Dropout too depends on seed and step alone.
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        with self.autocast():
            loss = self.loss(self.net(x.to(self.device)), label.to(self.device))
        if not torch.isfinite(loss):
            raise BadInput(f"the loss is {loss.item()} at step {self.step}: try a smaller rate than {self.rate:g}")
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        return loss.item()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss and top-1 on the middle of the held-out clips; top-1 by the last step where there are several."""
        self.net.eval()
        losses, right = [], 0
        for clip in self.held:
            stored = self.cache.read(clip)
            view = data.centre_view(stored.shape, self.span, self.stream.size)
            x = torch.from_numpy(data.example(stored, self.stream, self.positions, view)[None])
            with self.autocast():
                logits = self.net(x.to(self.device)).float().cpu()
            losses.append(self.loss(logits, torch.tensor([clip.label])).item())
            right += int(logits.flatten(0, -2)[-1].argmax() == clip.label)
        return {"held_loss": float(np.mean(losses)), "top1": right / len(self.held)}

    def judge(self, loss: float) -> None:
        """Divides the rate by 10 when the loss no longer falls, as the paper does by hand."""
        if loss < self.best * (1 - GAIN):
            self.best, self.bad = loss, 0
            return
        self.bad += 1
        if self.bad >= self.config.patience:
            self.saturated = self.dropped == self.config.drops
            self.dropped += 1
            self.rate /= 10
            self.bad = 0

    def save(self) -> None:
        """Writes checkpoint.pt whole or not at all."""
        state = {key: getattr(self, key) for key in ("step", "rate", "best", "bad", "dropped", "saturated", "losses")}
        state |= {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"scaler": self.scaler.state_dict(), "labels": self.labels, "config": asdict(self.config)}
        save_checkpoint(self.out / "checkpoint.pt", state)

    def run(self, stop_after: int | None = None) -> None:
        """Trains to the end, or for `stop_after` steps."""
        config, first = self.config, self.step
        end = config.steps if stop_after is None else min(config.steps, self.step + stop_after)
        bar = tqdm(total=config.steps, initial=self.step, unit="step")
        with ThreadPoolExecutor(config.workers) as pool:
            ahead: list[Future] = []
            while self.step < end and not self.saturated:
                while len(ahead) <= config.workers and self.step + len(ahead) < end:
                    ahead.append(pool.submit(self.batch, self.step + len(ahead)))
                self.losses.append(self.train_step(*ahead.pop(0).result()))
                bar.update()
                if self.step % config.evaluate_every == 0 or self.step == config.steps:
                    self.look(bar)
                if self.step % config.save_every == 0:
                    self.save()
            for future in ahead:
                future.cancel()
        bar.close()
        if self.step > first:
            self.save()

    def look(self, bar: tqdm) -> None:
        """Evaluates, logs, draws, and lowers the rate if that is due."""
        record = {"step": self.step, "loss": float(np.mean(self.losses)), "rate": self.rate}
        self.losses = []
        record |= self.evaluate() if self.held else {}
        # Without held-out clips the training loss has to tell.
        self.judge(record.get("held_loss", record["loss"]))
        append_record(self.out / "log.jsonl", record)
        bar.set_postfix_str(", ".join(f"{key} {record[key]:.3g}" for key in record if key != "step"))
        curves(self.out, self.step)


def records(out: Path, until: int) -> list[dict[str, float]]:
    """The log up to a step, in order: a run that was cut off logs again what it had not yet saved."""
    found = {record["step"]: record for record in read_records(out / "log.jsonl") if record["step"] <= until}
    return [found[step] for step in sorted(found)]


def curves(out: Path, until: int) -> None:
    """Draws log.jsonl as curves.png."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    log = records(out, until)
    steps = [r["step"] for r in log]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for key, name in (("loss", "training"), ("held_loss", "held out")):
        left.plot(steps, [r.get(key, float("nan")) for r in log], label=name)
    left.set(xlabel="step", ylabel="cross-entropy")
    left.legend()
    right.plot(steps, [r.get("top1", float("nan")) for r in log], "k")
    right.set(xlabel="step", ylabel="held-out top-1", ylim=(0, 1))
    rates = right.twinx()
    rates.plot(steps, [r["rate"] for r in log], lw=0.8)
    rates.set(ylabel="learning rate", yscale="log")
    figure.savefig(out / "curves.png", dpi=110)
    plt.close(figure)


def load_run(run: Path) -> tuple[Config, list[str], nn.Module]:
    """A run's config, labels and network."""
    try:
        state = torch.load(run / "checkpoint.pt", weights_only=True, map_location="cpu")
        config = Config(**state["config"])
        net = TWINS[config.architecture](config.input(), len(state["labels"]), config.width, config.dropout)
        net.load_state_dict(state["net"])
    except FileNotFoundError as error:
        raise BadInput(f"{run}: no checkpoint.pt in it; a run's folder is what `fit --out` made") from error
    except Exception as error:  # torch.load has many ways to fail on a damaged file
        raise BadInput(f"{run / 'checkpoint.pt'}: not a checkpoint of this command: {error}") from error
    return config, state["labels"], net.eval()


def write_model(runs: list[Path], out: Path) -> None:
    """A model's folder of the runs of an architecture's streams."""
    loaded = [load_run(run) for run in runs]
    first, labels, _ = loaded[0]
    streams, graphs = [], {}
    for run, (config, own, net) in zip(runs, loaded, strict=True):
        if own != labels:
            raise BadInput(f"{run} was trained on other classes than {runs[0]}")
        if config.architecture != first.architecture:
            raise BadInput(f"{run} is a {config.architecture} and {runs[0]} a {first.architecture}")
        stream = config.input()
        if stream.name in graphs:
            raise BadInput(f"{run} is a second {stream.name} stream")
        streams.append(stream)
        graphs[stream.name] = export(config.architecture, stream, net).model()
        worst = difference(config.architecture, stream, net, graphs[stream.name])
        if worst > TOLERANCE:
            raise RuntimeError(f"{run}: ONNX Runtime differs from torch by {worst:.1e}")
    order = [s.name for s in ARCHITECTURES[first.architecture].streams(64, 1.0)]
    streams.sort(key=lambda s: order.index(s.name))
    manifest = Manifest(
        name=out.resolve().name if out.name != "model" else out.resolve().parent.name,
        architecture=first.architecture,
        licence="that of the clips it was trained on",
        source="trained by factory fit",
        labels=labels,
        streams=streams,
        hop=ARCHITECTURES[first.architecture].hop,
        samples=ARCHITECTURES[first.architecture].samples,
        decision=ARCHITECTURES[first.architecture].decision(streams),
    )
    with staged(out) as folder:
        for stream in streams:
            ARCHITECTURES[first.architecture].save(graphs[stream.name], stream, folder)
        manifest.write(folder)


def prepare(config: Config, out: Path) -> Fit:
    """A new run, or the one that lies in `out`, with its clips decoded."""
    path = out / "config.toml"
    if path.exists():
        kept = kept_config(path, Config)
        for key in (f.name for f in fields(Config)):
            if key not in FREE and getattr(kept, key) != getattr(config, key):
                raise BadInput(
                    f"{out} is a run with {key} = {getattr(kept, key)!r}, not {getattr(config, key)!r}: "
                    "choose another folder for another run"
                )
    elif out.exists() and not out.is_dir():
        raise BadInput(f"{out}: is a file; a run is a folder")
    elif out.exists() and any(out.iterdir()):
        raise BadInput(f"{out}: holds something else than a run; choose another folder")
    if config.weights and not Path(config.weights).exists():
        raise BadInput(f"weights = {config.weights!r}: there is no such run, model or ONNX file")
    pick_device(config)
    labels, clips = data.listing(Path(config.data), config.held)
    held = [Path(config.held)] if isinstance(config.held, str) else []

    def listed(clip: data.Clip) -> str:
        root = next((r for r in [*held, Path(config.data)] if clip.path.is_relative_to(r)), clip.path.parent)
        part = "held" if clip.held else "train"
        return f"{clip.sha256}\t{part}\t{labels[clip.label]}\t{clip.path.relative_to(root)}"

    table = "".join(f"{listed(clip)}\n" for clip in clips)
    before = out / "clips.tsv"
    if before.exists() and before.read_text() != table:
        changed = sorted(set(before.read_text().splitlines()) ^ set(table.splitlines()))
        raise BadInput(f"the clips are not those that {out} began with; see its clips.tsv: {changed[0]!r}")
    fit = Fit(config, out, labels, clips)
    bar = tqdm(total=len(clips), unit="clip", desc="decoding")
    failed = fit.cache.fill(clips, config.workers, bar.update)
    bar.close()
    if failed:
        clip, why = next(iter(failed.items()))
        raise BadInput(f"{len(failed)} of {len(clips)} clips cannot be decoded; take them away: {clip}: {why}")
    fit.begin()
    with staged(out) if not path.exists() else nullcontext(out) as folder:
        write_toml(folder / "config.toml", asdict(config))
        (folder / "clips.tsv").write_text(table)
        made_with = versions()
        if config.weights:
            source = Path(config.weights)
            files = (
                [source] if source.is_file() else sorted(p for p in source.iterdir() if p.suffix in (".pt", ".onnx"))
            )
            made_with |= {f"weights {p.name}": data.file_hash(p) for p in files}
        with (folder / "versions.jsonl").open("a") as file:
            file.write(json.dumps(made_with) + "\n")
    return fit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `fit`."""
    parser.add_argument("config", type=Path, metavar="RUN.toml")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder; an interrupted run goes on")


def main(args: argparse.Namespace) -> int:
    """Runs `fit`."""
    fit = prepare(read_config(args.config), args.out)
    where = f"{fit.device}, {fit.config.precision if fit.dtype else 'f32'}"
    print(f"{args.out}: {len(fit.train)} clips, {len(fit.held)} held out, {len(fit.labels)} classes, on {where}")
    if fit.step:
        print(f"going on from step {fit.step}")
    fit.run()
    write_model([args.out], args.out / "model")
    print(f"{args.out / 'model'}: what was trained, as actiond takes it")
    return 0
