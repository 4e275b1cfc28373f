"""Folders of clips as training examples: listed with their hashes, decoded once into a cache, cropped anywhere.

A clip is decoded as the daemon decodes it (25 frames a second, flow by the daemon's estimator; see `intake.py`), with
its short side scaled to 256/224 of the network's input, which is the paper's 256 for 224. The cache keeps it so, whole
and uncompressed: a second of 16:9 video at 224 pixels takes 9 MB of RGB and 6 MB of flow.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from . import intake
from .errors import BadInput
from .model import Stream

FLOW_LEVELS = 127
"""What the bound of the flow is stored as, in an i8."""
VERSION = 1
"""Of what the cache holds: one more whenever the same file would be decoded to something else."""


@dataclass(frozen=True)
class Clip:
    """A file of a class."""

    path: Path
    label: int
    sha256: str
    held: bool
    """whether it is for validation and never trained on"""


def file_hash(path: Path) -> str:
    """sha256 in hex, of a file of any size."""
    with path.open("rb") as file:
        # Not `hashlib.file_digest`, which Python 3.10 has not.
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def class_folders(root: Path) -> dict[str, list[Path]]:
    """Label -> its video files, of `root`/<label>/**."""
    if not root.is_dir():
        raise BadInput(f"{root}: there is no such folder; clips lie in a folder a class")
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    found = {
        folder.name: sorted(p for p in folder.rglob("*") if p.suffix[1:].lower() in intake.VIDEOS and p.is_file())
        for folder in folders
    }
    for name, files in found.items():
        if not files:
            raise BadInput(f"{root / name}: no clips in it; remove the folder or put video files there")
    if len(found) < 2:
        raise BadInput(f"{root}: {len(found)} folders in it; there must be one a class, of two classes or more")
    return found


def listing(data: Path, held: str | float) -> tuple[list[str], list[Clip]]:
    """Labels in order, and all clips.

    `held`: a folder with the same classes, or which share of each class is held out (at least one clip where it has
    two; which ones their hashes say, so that a copy of the folder is split alike).
    """
    train = class_folders(data)
    labels = list(train)
    clips = []
    share = held if isinstance(held, float | int) else 0.0
    for label, name in enumerate(labels):
        hashed = sorted((file_hash(path), path) for path in train[name])
        count = min(max(round(len(hashed) * share), 1), len(hashed) - 1) if share else 0
        clips += [Clip(path, label, digest, i < count) for i, (digest, path) in enumerate(hashed)]
    if isinstance(held, str) and held:
        others = class_folders(Path(held))
        if unknown := sorted(set(others) - set(labels)):
            raise BadInput(f"{held}: {', '.join(unknown)} are no classes of {data}")
        clips += [
            Clip(path, labels.index(name), file_hash(path), True) for name, files in others.items() for path in files
        ]
    trained = {clip.sha256: clip.path for clip in clips if not clip.held}
    for clip in clips:
        if clip.held and clip.sha256 in trained:
            raise BadInput(f"{clip.path} is held out and trained on, as {trained[clip.sha256]}: take one away")
    return labels, clips


@dataclass(frozen=True)
class Stored:
    """A decoded clip, memory-mapped."""

    rgb: np.ndarray | None
    """u8 [T, H, W, 3]"""
    flow: np.ndarray | None
    """i8 [T, H, W, 2]: +-127 are +- the stream's bound"""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, height, width."""
        return (self.flow if self.rgb is None else self.rgb).shape[:3]


class Cache:
    """Decoded clips below a folder, by the hash of their file and by how they were decoded."""

    def __init__(self, folder: Path, stream: Stream) -> None:
        self.folder = folder
        self.stream = stream
        self.short = round(min(stream.size) * 256 / 224)
        flow = stream.flow or {"algorithm": "dis", "preset": "fast", "finest_scale": 1}
        self.method = intake.Method(**flow)
        settings = [VERSION, self.short, stream.kind, stream.bound, flow if stream.kind != "rgb" else None]
        self.settings = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]

    def place(self, clip: Clip) -> Path:
        """The folder of a decoded clip."""
        return self.folder / f"{clip.sha256[:32]}-{self.settings}"

    def fill(self, clips: list[Clip], workers: int, progress: Callable[[], None] = lambda: None) -> dict[Path, str]:
        """Decodes what is not there yet; gives the files that could not be decoded, and why."""
        failed = {}

        def decode(clip: Clip) -> None:
            try:
                if not (self.place(clip) / "clip.json").exists():
                    self.decode(clip)
            except BadInput as error:
                failed[clip.path] = str(error)
            progress()

        self.folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(max(workers, 1)) as pool:
            list(pool.map(decode, clips))
        return failed

    def decode(self, clip: Clip) -> None:
        """Writes one clip; a folder with a clip.json is whole."""
        first = next(intake.pictures(clip.path)).planes[0]
        height, width = first.shape[:2]
        scale = self.short / min(height, width)
        size = (round(width * scale), round(height * scale))
        view = intake.Stream(
            name="clip",
            kind=self.stream.kind,
            frames=1,
            size=size,
            fit="squeeze",
            layout="NCTHW",
            input="",
            output="",
            files={},
            flow=self.method,
        )
        place = self.place(clip)
        part = place.with_name(f".{place.name}.part-{os.getpid()}-{id(clip)}")
        part.mkdir()
        try:
            count = 0
            with (part / "rgb.raw").open("wb") as pictures, (part / "flow.raw").open("wb") as fields:
                for ((rgb, flow),) in intake.frames(clip.path, [view]):
                    if rgb is not None:
                        pictures.write(np.ascontiguousarray(rgb).tobytes())
                    if flow is not None:
                        levels = np.clip(flow / np.float32(self.stream.bound), -1, 1) * np.float32(FLOW_LEVELS)
                        fields.write(np.rint(levels).astype(np.int8).tobytes())
                    count += 1
            (part / "clip.json").write_text(json.dumps({"frames": count, "height": size[1], "width": size[0]}))
            # Two workers may have met on copies of one file.
            if not place.exists():
                part.rename(place)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def read(self, clip: Clip) -> Stored:
        """A clip that `fill` decoded."""
        place = self.place(clip)
        sizes = json.loads((place / "clip.json").read_text())
        shape = (sizes["frames"], sizes["height"], sizes["width"])

        def raw(name: str, kind: type, channels: int) -> np.ndarray:
            return np.memmap(place / name, kind, "r", shape=(*shape, channels))

        return Stored(
            rgb=None if self.stream.kind == "flow" else raw("rgb.raw", np.uint8, 3),
            flow=None if self.stream.kind == "rgb" else raw("flow.raw", np.int8, 2),
        )


@dataclass(frozen=True)
class View:
    """Which part of a clip an example shows."""

    start: int
    """first frame that is looked at; a clip that ends before the example does is looped"""
    left: int
    top: int
    mirror: bool = False


def random_view(
    shape: tuple[int, int, int], span: int, size: tuple[int, int], flip: bool, rng: np.random.Generator
) -> View:
    """Anywhere in space and time; mirrored half of the time if `flip`."""
    frames, height, width = shape
    start = rng.integers(max(frames - span, 0) + 1)
    top, left = rng.integers(height - size[1] + 1), rng.integers(width - size[0] + 1)
    mirror = rng.random() < 0.5
    return View(int(start), int(left), int(top), bool(mirror and flip))


def centre_view(shape: tuple[int, int, int], span: int, size: tuple[int, int]) -> View:
    """The middle in space and time."""
    frames, height, width = shape
    return View(max(frames - span, 0) // 2, (width - size[0]) // 2, (height - size[1]) // 2)


def span(stream: Stream, positions: int) -> int:
    """Frames that an example of so many positions of the time axis reaches over."""
    return replace(stream, frames=positions).reach


def example(stored: Stored, stream: Stream, positions: int, view: View) -> np.ndarray:
    """f32 [C, positions, H, W] in [-1, 1]: as the daemon's `src/input.rs` fills it, all of RGB's channels first."""
    count = stored.shape[0]
    width, height = stream.size
    rows, columns = slice(view.top, view.top + height), slice(view.left, view.left + width)
    # A position's own frame is the last of its stack.
    own = view.start + stream.stack - 1 + np.arange(positions) * stream.step
    parts = []
    if stored.rgb is not None:
        rgb = np.stack([stored.rgb[i % count, rows, columns] for i in own])
        parts.append(rgb.astype(np.float32) / np.float32(127.5) - 1)
    if stored.flow is not None:
        for behind in range(stream.stack - 1, -1, -1):
            flow = np.stack([stored.flow[(i - behind) % count, rows, columns] for i in own])
            parts.append(flow.astype(np.float32) / np.float32(FLOW_LEVELS))
    x = np.concatenate(parts, -1)
    if view.mirror:
        x = x[:, :, ::-1].copy()
        first = 0 if stored.rgb is None else 3
        # What moved to the right moves to the left.
        x[..., first::2] *= -1 if stored.flow is not None else 1
    return np.ascontiguousarray(x.transpose(3, 0, 1, 2))
