"""The user's own clips as a model's input tensors, computed as the daemon computes them. Needs no torch.

Video files are decoded with FFmpeg's libraries (PyAV) to the planes that the decoder wrote; the rest follows the
daemon's `src/cadence.rs` (25 frames a second by timestamp), `src/scale.rs` (planes averaged down, then RGB),
`src/flow/cpu.rs` (OpenCV's DIS or TV-L1 on the scaled luma, averaged down) and `src/input.rs` (range, layout, stack,
step). Its tests hold it against logits of the binary.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from .errors import BadInput
from .toml import tomllib

FPS = 25
SECOND = 1_000_000_000
"""in nanoseconds, in which the daemon counts: a picture that lies between two ticks must fall to the same one here"""
WINDOW = 64
"""Frames that the daemon holds."""
LONGEST_STEP = SECOND
"""between two pictures; more than this is a cut"""
VIDEOS = frozenset("3gp avi flv gif m2ts m4v mkv mov mp4 mpeg mpg mts ogv ts webm wmv y4m".split())
"""Extensions of files that are taken for clips."""
PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}


@dataclass(frozen=True)
class Method:
    """How flow is estimated: a stream's `flow` table."""

    algorithm: str = "dis"
    preset: str = "fast"
    finest_scale: int | None = None
    patch_stride: int | None = None
    descents: int | None = None
    refinement: int | None = None
    upscale: int = 1


DEFAULT_METHOD = Method(finest_scale=1, patch_stride=5, descents=5, refinement=1)
"""Where a manifest has no `flow` table."""


@dataclass(frozen=True)
class Stream:
    """A [[stream]] table of a manifest, with the daemon's defaults; see `src/model/mod.rs`."""

    name: str
    kind: str
    frames: int
    size: tuple[int, int]
    """width, height"""
    fit: str
    layout: str
    input: str
    output: str
    files: dict[str, str]
    """precision to path"""
    step: int = 1
    stack: int = 1
    dtype: str = "f32"
    range: tuple[float, float] = (-1.0, 1.0)
    bound: float = 20.0
    flow: Method = DEFAULT_METHOD
    state: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """(input, shape) of each carried tensor"""

    @property
    def reach(self) -> int:
        """Frames from the first that the stream looks at to its last."""
        return (self.frames - 1) * self.step + self.stack

    @property
    def channels(self) -> int:
        """Of the input."""
        return {"rgb": 3, "flow": 2 * self.stack, "rgb+flow": 3 + 2 * self.stack}[self.kind]


def is_whole(value: object, least: int = 1) -> bool:
    """Of TOML's values: an integer of at least `least`, and no boolean."""
    return type(value) is int and value >= least


def is_number(value: object) -> bool:
    """A finite one, and no boolean."""
    return type(value) in (int, float) and math.isfinite(value)


def is_inside(value: object) -> bool:
    """Names something in the model's folder: what lies elsewhere is no part of the model, and is not to be written."""
    return (
        isinstance(value, str)
        and bool(Path(value).parts)
        and not Path(value).is_absolute()
        and ".." not in Path(value).parts
    )


def is_text(value: object) -> bool:
    """A string with something in it."""
    return isinstance(value, str) and bool(value)


def one_of(*choices: str) -> tuple[Callable[[object], bool], str]:
    """A check and its words."""
    return (lambda value: value in choices), f"it is one of {', '.join(choices)}"


def numbers(value: object, check: Callable[[object], bool], count: int) -> bool:
    """A list of `count` such numbers."""
    return isinstance(value, list) and len(value) == count and all(map(check, value))


REQUIRED = {
    "name": (is_text, "it is a name"),
    "kind": one_of("rgb", "flow", "rgb+flow"),
    "frames": (is_whole, "it is a whole number from 1 up"),
    "size": (
        lambda v: numbers(v, is_whole, 2) and max(v) <= 1024,
        "it is the width and the height, each from 1 to 1024",
    ),
    "fit": one_of("squeeze", "letterbox", "crop"),
    "layout": one_of("NCTHW", "NTCHW", "NTHWC", "NCHW"),
    "input": (is_text, "it is the name of the graph's input"),
    "output": (is_text, "it is the name of the graph's output"),
}
OPTIONAL = {
    "step": REQUIRED["frames"],
    "stack": REQUIRED["frames"],
    "dtype": one_of("f32", "u8"),
    "range": (lambda v: numbers(v, is_number, 2) and v[0] != v[1], "it is two different numbers"),
    "bound": (lambda v: is_number(v) and v > 0, "it is a number of pixels above 0"),
}
FLOW = {
    "algorithm": one_of("dis", "tv-l1"),
    "preset": one_of(*PRESETS),
    "finest_scale": (lambda v: is_whole(v, 0) and v < 256, "it is a whole number from 0 up"),
    "patch_stride": (lambda v: is_whole(v) and v <= 8, "it is a whole number from 1 to 8, the size of a patch"),
    "descents": (lambda v: is_whole(v) and v < 256, "it is a whole number from 1 up"),
    "refinement": (lambda v: is_whole(v, 0) and v < 256, "it is a whole number from 0 up"),
    "upscale": (lambda v: is_whole(v) and v <= 4, "it is a whole number from 1 to 4"),
}
STATE = {
    "input": REQUIRED["input"],
    "output": REQUIRED["output"],
    "shape": (lambda v: isinstance(v, list) and numbers(v, is_whole, len(v)), "it is a list of sizes from 1 up"),
}
FILE = {
    "precision": one_of("f32", "f16", "int8"),
    "path": (is_inside, "it is the path of a file in the model's folder"),
}
FUSION = {
    "rule": one_of("probabilities", "logits"),
    "weights": (
        lambda v: isinstance(v, dict) and all(is_number(w) and w >= 0 for w in v.values()),
        "it is a table of numbers from 0 up",
    ),
}
Checks = dict[str, tuple[Callable[[object], bool], str]]


def check_table(where: str, table: object, required: Checks, optional: Checks | None = None) -> None:
    """BadInput that says which key of a table is wrong, and what it should be."""
    if not isinstance(table, dict):
        raise BadInput(f"{where}: is {table!r} and should be a table")
    for key in required:
        if key not in table:
            raise BadInput(f"{where}: {key} is missing")
    for key, (check, should) in (required | (optional or {})).items():
        if key in table and not check(table[key]):
            raise BadInput(f"{where}: {key} = {table[key]!r}; {should}")


def tables(where: str, table: dict, key: str) -> list:
    """An array of tables, which may be left out."""
    value = table.get(key, [])
    if not isinstance(value, list):
        raise BadInput(f"{where}: {key} is {value!r} and should be [[tables]]")
    return value


def read_manifest(folder: Path) -> tuple[dict, list[Stream]]:
    """A model folder's model.toml, checked as the daemon checks it, and its streams."""
    path = folder / "model.toml"
    if not path.is_file():
        raise BadInput(f"{folder}: no model.toml in it; a model is a folder with a model.toml and ONNX files")
    try:
        manifest = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise BadInput(f"{path}: {e}") from e
    check_table(f"{path}", manifest, {}, {"labels": FILE["path"]})
    if "fusion" in manifest:
        check_table(f"{path}: fusion", manifest["fusion"], {}, FUSION)
    streams: list[Stream] = []
    for number, table in enumerate(tables(f"{path}", manifest, "stream"), 1):
        name = table.get("name") if isinstance(table, dict) else None
        where = f"{path}: stream {name if is_text(name) else number}"
        check_table(where, table, REQUIRED, OPTIONAL)
        keys = {k: table[k] for k in (*REQUIRED, *OPTIONAL) if k in table}
        keys |= {k: tuple(keys[k]) for k in ("size", "range") if k in keys}
        if "flow" in table:
            check_table(f"{where}: flow", table["flow"], {"algorithm": FLOW["algorithm"]}, FLOW)
            if unknown := table["flow"].keys() - FLOW.keys():
                raise BadInput(f"{where}: flow: there is no {min(unknown)}")
            keys["flow"] = Method(**table["flow"])
        files, states = tables(where, table, "file"), tables(where, table, "state")
        for file in files:
            check_table(f"{where}: file", file, FILE)
        for state in states:
            check_table(f"{where}: state", state, STATE)
        stream = Stream(
            **keys,
            files={f["precision"]: f["path"] for f in files},
            state=tuple((s["input"], tuple(s["shape"])) for s in states),
        )
        if len(stream.files) < max(len(files), 1):
            raise BadInput(f"{where}: {'two files of one precision' if files else 'no [[stream.file]] in it'}")
        if stream.reach > WINDOW:
            raise BadInput(f"{where}: reaches over {stream.reach} frames; the daemon's window holds {WINDOW}")
        if stream.layout == "NCHW" and stream.frames != 1:
            raise BadInput(f"{where}: layout NCHW has no time axis, yet frames = {stream.frames}")
        if stream.dtype == "u8" and stream.kind != "rgb":
            raise BadInput(f'{where}: dtype = "u8", which only an RGB stream can take')
        if any(stream.name == other.name for other in streams):
            raise BadInput(f"{where}: a second stream of this name")
        streams.append(stream)
    if not streams:
        raise BadInput(f"{path}: no [[stream]] in it")
    return manifest, streams


# ---------------------------------------------------------------------------------------------- pictures from files


@dataclass(frozen=True)
class Picture:
    """A decoded picture in the planes of its codec."""

    time: int
    """ns since the clip's first picture"""
    planes: tuple[np.ndarray, ...]
    """u8: one [H, W, 3] of RGB, or Y [H, W], U and V [(H+1)/2, (W+1)/2]"""
    bt709: bool = False
    full_range: bool = False


def find_clips(folder: Path) -> list[Path]:
    """Every video file below a folder, or the one file that it is, in order."""
    if folder.is_file():
        # FFmpeg makes pictures of much that is no video, of a text too.
        if folder.suffix[1:].lower() not in VIDEOS:
            raise BadInput(f"{folder}: no video file by its name (those end in {', '.join(sorted(VIDEOS))})")
        return [folder]
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such file or folder")
    clips = sorted(p for p in folder.rglob("*") if p.suffix[1:].lower() in VIDEOS and p.is_file())
    if not clips:
        raise BadInput(
            f"{folder}: no clips in it or below; clips are video files ({', '.join(sorted(VIDEOS))}), "
            "a few of what the cameras will see"
        )
    return clips


def pictures(path: Path) -> Iterator[Picture]:
    """Decodes a file; what could be decoded of a damaged file still counts."""
    import av

    given = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise BadInput(f"{path}: no video stream in it")
            video = container.streams.video[0]
            video.codec_context.thread_count = 1
            rate = video.average_rate or video.guessed_rate or Fraction(FPS)
            first, last = None, 0
            for frame in container.decode(video):
                if frame.pts is None:
                    time = last + int(SECOND / rate) if given else 0
                else:
                    now = int(frame.pts * frame.time_base * SECOND)
                    first = now if first is None else first
                    time = max(now - first, last)
                last = time
                given += 1
                yield picture_of(frame, time)
    except (av.FFmpegError, ValueError) as e:
        if not given:
            raise BadInput(f"{path}: can't be decoded ({e})") from e
    if not given:
        raise BadInput(f"{path}: no pictures in it")


def picture_of(frame, time: int) -> Picture:
    """A decoded frame's planes, turned as its file says."""
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    if frame.format.is_rgb or frame.format.name == "pal8":
        return Picture(time, (np.rot90(frame.to_ndarray(format="rgb24"), turns),))
    full = frame.format.name.startswith("yuvj") or frame.color_range == 2
    if frame.format.name not in ("yuv420p", "yuvj420p"):
        frame = frame.reformat(format="yuvj420p" if full else "yuv420p")
    planes = []
    for plane in frame.planes[:3]:
        rows = np.frombuffer(plane, np.uint8)[: plane.line_size * plane.height].reshape(plane.height, plane.line_size)
        planes.append(np.rot90(rows[:, : plane.width], turns))
    # As the daemon: 5, 6 and 4 are the BT.601 family, 1, 7 and 9 the BT.709 one; else the height tells.
    space = int(frame.colorspace)
    bt709 = frame.height > 576 if space not in (1, 4, 5, 6, 7, 9) else space in (1, 7, 9)
    return Picture(time, tuple(planes), bt709, full)


# ---------------------------------------------------------------------------------------------- 25 frames a second


class Cadence:
    """Which picture becomes which tick: `src/cadence.rs`."""

    def __init__(self) -> None:
        self.last: tuple[int, int] | None = None

    def admit(self, time: int) -> tuple[int, int, float] | None:
        """(ticks, repeats, factor on the flow) for a picture at `time` ns; None drops it, a factor of 0 is a start."""
        tick = (time * FPS + SECOND // 2) // SECOND
        if self.last is None or time < self.last[0]:
            self.last = (time, tick)
            return 1, 0, 0.0
        before, last = self.last
        if tick == last:
            return None
        self.last = (time, tick)
        if time - before > LONGEST_STEP:
            return 1, 0, 0.0
        instants = (k * (SECOND // FPS) for k in range(last + 1, tick))
        repeats = sum(max(t - before, 0) < max(time - t, 0) for t in instants)
        return tick - last, repeats, SECOND / FPS / (time - before)


# ---------------------------------------------------------------------------------------------- scale


Rect = tuple[int, int, int, int]
"""x, y, width, height in samples."""


def rounded(x: float) -> int:
    """Half away from zero, as Rust rounds."""
    return math.floor(x + 0.5)


def geometry(width: int, height: int, fit: str, size: tuple[int, int]) -> tuple[Rect, Rect]:
    """Which part of a picture goes to which part of a view of `size`: `src/scale.rs`."""
    whole = (0, 0, *size)
    if fit == "squeeze":
        return (0, 0, width, height), whole
    if fit == "crop":
        scale = min(width / size[0], height / size[1]) * 224 / 256
        w, h = (min(max(rounded(s * scale), 1), n) for s, n in zip(size, (width, height), strict=True))
        return ((width - w) // 2, (height - h) // 2, w, h), whole
    scale = min(size[0] / width, size[1] / height)
    w, h = (min(max(rounded(n * scale), 1), s) for s, n in zip(size, (width, height), strict=True))
    return (0, 0, width, height), ((size[0] - w) // 2, (size[1] - h) // 2, w, h)


def resized(plane: np.ndarray, part: Rect, width: int, height: int) -> np.ndarray:
    """A part of a plane, averaged to `width` x `height`."""
    x, y, w, h = part
    return cv2.resize(np.ascontiguousarray(plane[y : y + h, x : x + w]), (width, height), interpolation=cv2.INTER_AREA)


def half(r: Rect) -> Rect:
    """The same rectangle on a plane of half the size, its border rounded outwards."""
    x, y = r[0] // 2, r[1] // 2
    return x, y, -(-(r[0] + r[2]) // 2) - x, -(-(r[1] + r[3]) // 2) - y


def on_black(view: np.ndarray, to: Rect, size: tuple[int, int]) -> np.ndarray:
    """A view, at its place in a black one of `size`."""
    if to[2:] == size:
        return view
    out = np.zeros((size[1], size[0], *view.shape[2:]), np.uint8)
    out[to[1] : to[1] + to[3], to[0] : to[0] + to[2]] = view
    return out


def view_rgb(picture: Picture, fit: str, size: tuple[int, int]) -> np.ndarray:
    """u8 [H, W, 3]"""
    rows, columns = picture.planes[0].shape[:2]
    part, to = geometry(columns, rows, fit, size)
    if len(picture.planes) == 1:
        return on_black(resized(picture.planes[0], part, to[2], to[3]), to, size)
    y, u, v = (
        resized(plane, r, to[2], to[3]).astype(np.int32)
        for plane, r in zip(picture.planes, (part, half(part), half(part)), strict=True)
    )
    # ITU-R BT.601 / BT.709 in 16-bit fixed point.
    kr, kb = (0.2126, 0.0722) if picture.bt709 else (0.299, 0.114)
    kg = 1 - kr - kb
    luma, chroma = (1, 1) if picture.full_range else (255 / 219, 255 / 224)
    fixed = [
        rounded(f * 65536) if f >= 0 else -rounded(-f * 65536)
        for f in (
            luma,
            2 * (1 - kr) * chroma,
            -2 * (1 - kb) * kb / kg * chroma,
            -2 * (1 - kr) * kr / kg * chroma,
            2 * (1 - kb) * chroma,
        )
    ]
    y = (y - (0 if picture.full_range else 16)) * fixed[0] + 32768
    u, v = u - 128, v - 128
    rgb = np.stack([y + fixed[1] * v, y + fixed[2] * u + fixed[3] * v, y + fixed[4] * u], -1) >> 16
    return on_black(np.clip(rgb, 0, 255).astype(np.uint8), to, size)


def view_luma(picture: Picture, fit: str, size: tuple[int, int]) -> np.ndarray:
    """u8 [H, W], full range"""
    rows, columns = picture.planes[0].shape[:2]
    part, to = geometry(columns, rows, fit, size)
    small = resized(picture.planes[0], part, to[2], to[3]).astype(np.int32)
    if len(picture.planes) == 1:
        small = (19595 * small[..., 0] + 38470 * small[..., 1] + 7471 * small[..., 2] + 32768) >> 16
    elif not picture.full_range:
        # Rust divides towards zero, which the clip makes the same as downwards.
        small = np.clip((small - 16) * 255 // 219, 0, 255)
    return on_black(small.astype(np.uint8), to, size)


# ---------------------------------------------------------------------------------------------- flow


class Flow:
    """Flow between pairs of luma pictures: `src/flow/cpu.rs`."""

    def __init__(self, method: Method) -> None:
        self.upscale = method.upscale
        if method.algorithm == "dis":
            self.estimator = cv2.DISOpticalFlow.create(PRESETS[method.preset])
            if method.finest_scale is not None:
                self.estimator.setFinestScale(method.finest_scale)
            if method.patch_stride is not None:
                self.estimator.setPatchStride(method.patch_stride)
            if method.descents is not None:
                self.estimator.setGradientDescentIterations(method.descents)
            if method.refinement is not None:
                self.estimator.setVariationalRefinementIterations(method.refinement)
        elif hasattr(cv2, "optflow"):
            self.estimator = cv2.optflow.createOptFlow_DualTVL1()
        else:
            raise BadInput(
                f"flow by {method.algorithm} needs OpenCV's contrib modules: install opencv-contrib-python-headless "
                "in the factory's virtual environment"
            )

    def between(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """f32 [H, W, 2] in pixels of the view, from luma of `upscale` times its size."""
        # The daemon hands zeros as a first guess, which DIS does not take for the same as none.
        flow = self.estimator.calc(before, after, np.zeros((*before.shape, 2), np.float32))
        n = self.upscale
        rows, columns = flow.shape[0] // n, flow.shape[1] // n
        return flow.reshape(rows, n, columns, n, 2).sum((1, 3), dtype=np.float32) / np.float32(n**3)


# ---------------------------------------------------------------------------------------------- frames and tensors


Frames = list[tuple[np.ndarray | None, np.ndarray | None]]
"""One tick as each stream sees it: RGB u8 [H, W, 3], flow f32 [H, W, 2] in pixels of the view per 1/25 s."""


def frames(path: Path, streams: list[Stream]) -> Iterator[Frames]:
    """Decodes a file once for all streams, tick by tick."""
    # As one camera is one thread: what OpenCV's threads split changes DIS's result a little.
    cv2.setNumThreads(1)
    cadence = Cadence()
    estimators = [None if s.kind == "rgb" else Flow(s.flow) for s in streams]
    before: list[tuple] = []
    for picture in pictures(path):
        admitted = cadence.admit(picture.time)
        if admitted is None:
            continue
        ticks, repeats, factor = admitted
        now, flows = [], []
        for i, stream in enumerate(streams):
            large = (stream.size[0] * stream.flow.upscale, stream.size[1] * stream.flow.upscale)
            rgb = None if stream.kind == "flow" else view_rgb(picture, stream.fit, stream.size)
            luma = None if stream.kind == "rgb" else view_luma(picture, stream.fit, large)
            flow = None
            if luma is not None:
                flow = np.zeros((stream.size[1], stream.size[0], 2), np.float32)
                if factor:
                    flow = estimators[i].between(before[i][1], luma) * np.float32(factor)
            now.append((rgb, luma))
            flows.append(flow)
        for tick in range(ticks):
            shown = before if tick < repeats else now
            yield [(rgb, flow) for (rgb, _), flow in zip(shown, flows, strict=True)]
        before = now


def tensor(stream: Stream, number: int, shown: Sequence[Frames], length: int) -> np.ndarray:
    """The input of stream `number` for a window of `length` frames whose last ones were `shown`: `src/input.rs`.

    Layouts NCTHW, NTCHW, NTHWC, NCHW; f32 in the manifest's range, or u8 as it is. A clip shorter than the window is
    looped to its length, as the daemon's `src/clip.rs` does.
    """
    behind = np.arange(stream.frames - 1, -1, -1) * stream.step
    low, high = np.float32(stream.range)
    real = min(len(shown), length)

    def at(back: np.ndarray, part: int) -> np.ndarray:
        places = len(shown) - real + np.maximum(length - 1 - back, 0) % real
        return np.stack([shown[int(i)][number][part] for i in places])

    parts = []
    if stream.kind != "flow":
        rgb = at(behind, 0)
        if stream.dtype != "u8":
            rgb = (low + (high - low) * np.arange(256, dtype=np.float32) / np.float32(255))[rgb]
        parts.append(rgb)
    if stream.kind != "rgb":
        for stacked in range(stream.stack - 1, -1, -1):
            share = np.clip(at(behind + stacked, 1) / np.float32(stream.bound), -1, 1)
            parts.append((low + high) / 2 + (high - low) / 2 * share)
    x = np.concatenate(parts, -1)[None]
    order = {"NCTHW": (0, 4, 1, 2, 3), "NTCHW": (0, 1, 4, 2, 3), "NTHWC": (0, 1, 2, 3, 4), "NCHW": (0, 4, 1, 2, 3)}
    x = np.ascontiguousarray(x.transpose(order[stream.layout]))
    return x[:, :, 0] if stream.layout == "NCHW" else x


def windows(path: Path, streams: list[Stream], most: int) -> list[list[np.ndarray]]:
    """At most `most` windows spread over a recording, each as one input tensor a stream.

    Of a recording of any length no more than twice as many are held at a time. One shorter than a window is looped.
    """
    length = max(s.reach for s in streams)
    last: deque[Frames] = deque(maxlen=length)
    kept: list[list[np.ndarray]] = []
    seen, every = 0, 1
    for frame in frames(path, streams):
        last.append(frame)
        seen += 1
        if seen < length or (seen - length) % max(length // 2, 1):
            continue
        # Windows overlap by half; once there are too many, every other one goes.
        if ((seen - length) // max(length // 2, 1)) % every == 0:
            kept.append([tensor(s, i, last, length) for i, s in enumerate(streams)])
        if len(kept) >= 2 * most:
            kept, every = kept[::2], 2 * every
    if not kept:
        kept.append([tensor(s, i, last, length) for i, s in enumerate(streams)])
    chosen = np.unique(np.linspace(0, len(kept) - 1, min(most, len(kept))).astype(int))
    return [kept[i] for i in chosen]
