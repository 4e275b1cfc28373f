"""Downloads DeepMind's Kinetics weights, verifies every byte and imports them.

The files come from DeepMind's public repository at one commit. A download that is cut off goes on where it was, at once
or when the command is run again; no file is used before its git blob id is the one that the commit has.
`imagenet+kinetics` is also run on DeepMind's sample clip and held against the logits that it published. Those of the
other weights were never published (the repository's `no_imagenet` outputs are copies of the `imagenet` ones), so there
only the sample's top label can be looked at.

  factory fetch imagenet+kinetics                    rgb and flow into models/imagenet+kinetics
  factory fetch kinetics-600 --out models/kinetics   600 classes, rgb only
  factory fetch kinetics --from ~/kinetics-i3d       files that are here already; no network
"""

import argparse
import fcntl
import hashlib
import http.client
import importlib
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np
from tqdm import tqdm

from . import importer
from .build import read_labels
from .errors import BadInput, Failed
from .inception import CHANNELS
from .model import log_softmax, session, staged

COMMIT = "0667e889a5904b4dc122e0ded4c332f49f8df42c"
BASE = f"https://raw.githubusercontent.com/google-deepmind/kinetics-i3d/{COMMIT}"
VARIABLE = "ACTIOND_KINETICS_URL"
TIMEOUT = 60.0
"""seconds without a byte"""
TRIES = 6
"""in a row that brought nothing new"""
CHUNK = 1 << 16
TOLERANCE = 1e-3
"""between our logits and the published ones, and their norms"""
SAMPLE_LABEL = "playing cricket"
SAMPLE = {stream: f"data/v_CricketShot_g04_c01_{stream}.npy" for stream in ("rgb", "flow")}


@dataclass(frozen=True)
class Blob:
    """A file of the commit."""

    id: str
    """git's: sha1 of "blob LENGTH\\0" and the bytes"""
    size: int | None = None
    """bytes, where known before"""


# Ids and sizes as the commit's tree has them; the sizes of .data follow from the indices.
BLOBS = {
    "data/checkpoints/rgb_imagenet/model.ckpt.index": Blob("5ab1058b8f4f89a896c01f67c0a4c96a31548af7", 10_953),
    "data/checkpoints/flow_imagenet/model.ckpt.index": Blob("8217f9450d851d24782aaf1af01c5c3b35b81a35", 10_968),
    "data/checkpoints/rgb_scratch/model.ckpt.index": Blob("84dd4518e982d9ca6ce1ff02e95fca2e8cbb1f73", 10_953),
    "data/checkpoints/flow_scratch/model.ckpt.index": Blob("193bc425100f3978c793da66bd9eb54baea8dc6a", 10_968),
    "data/checkpoints/rgb_scratch_kin600/model.ckpt.index": Blob("d378d8f01215fe92a29cd170f040c284070e9cd5", 19_632),
    "data/checkpoints/rgb_imagenet/model.ckpt.data-00000-of-00001": Blob(
        "2958652e0c9c48a65010c0ebda5c9cfd4edc7c18", 50_818_176
    ),
    "data/checkpoints/flow_imagenet/model.ckpt.data-00000-of-00001": Blob(
        "bf56831f663abc3de0d35f193030b73a3df7fb61", 50_730_368
    ),
    "data/checkpoints/rgb_scratch/model.ckpt.data-00000-of-00001": Blob(
        "fa7df95674dbf3579e7fccd954e51e706b4734c1", 50_818_176
    ),
    "data/checkpoints/flow_scratch/model.ckpt.data-00000-of-00001": Blob(
        "1d6a0b68f32544af11111342857e47e30d13afa9", 50_730_368
    ),
    "data/checkpoints/rgb_scratch_kin600/model.ckpt.data-00000-of-00001": Blob(
        "6392a74c3180e706cabada39d8f40a50a48642e5", 103_218_112
    ),
    "data/label_map.txt": Blob("cdaafcb1415eee46483561e78cb4747cce76a933", 5_956),
    "data/label_map_600.txt": Blob("639e9c91fa8a941ea57942872fae55628d590b42", 9_209),
    "data/v_CricketShot_g04_c01_rgb.npy": Blob("d756c5020a6e0fb56a99b210e32f5865da712bba"),
    "data/v_CricketShot_g04_c01_flow.npy": Blob("ee00e78e6f380caa5463de878d7c85ad7a01e668"),
    "out/imagenet_rgb.txt": Blob("69af33e30c2a69faffad6475a041fe44f7a92f10", 821),
    "out/imagenet_flow.txt": Blob("b9d8fa609734fb4548d8fe14c56833e0479ccdd7", 850),
    "out/imagenet_joint.txt": Blob("81297d85aec86d6b126e37f52b5779fb671fcbf9", 851),
}


@dataclass(frozen=True)
class Recipe:
    """One set of weights."""

    checkpoints: dict[str, str]
    """stream to folder below data/checkpoints"""
    labels: str
    trained: str
    published: dict[str, str] = field(default_factory=dict)
    """stream, or `joint`, to what DeepMind's code printed for the sample clip"""


RECIPES = {
    "kinetics": Recipe(
        {"rgb": "rgb_scratch", "flow": "flow_scratch"}, "data/label_map.txt", "trained on Kinetics-400 from scratch"
    ),
    "imagenet+kinetics": Recipe(
        {"rgb": "rgb_imagenet", "flow": "flow_imagenet"},
        "data/label_map.txt",
        "inflated from ImageNet, trained on Kinetics-400",
        {stream: f"out/imagenet_{stream}.txt" for stream in ("rgb", "flow", "joint")},
    ),
    "kinetics-600": Recipe(
        {"rgb": "rgb_scratch_kin600"}, "data/label_map_600.txt", "trained on Kinetics-600 from scratch"
    ),
}


def blob_id(path: Path) -> str:
    """Git's name for a file's bytes."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def alone(part: Path) -> Iterator[None]:
    """Holds a download's lock: two that write one file would spoil it. The lock goes with the process."""
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Failed(f"{part}: another fetch is writing it; wait for it, or use another --downloads") from None
        yield


class _Again(Exception):
    """Worth another try: what happened, and the seconds that the server asked to wait."""

    def __init__(self, what: str, wait: float | None = None) -> None:
        super().__init__(what)
        self.wait = wait


def attempt(url: str, part: Path, size: int | None, bar: tqdm) -> None:
    """Appends to `part` what is missing of `url`; returns once all is there that the server has."""
    have = part.stat().st_size
    headers = {"User-Agent": "actiond-factory", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with part.open("r+b") as file, response_of(url, headers) as response:
        if response is None:
            # Nothing is behind what is here; its id will tell.
            return
        goes_on = bool(have) and response.status == 206
        if not goes_on:
            # No ranges here, or nothing to go on from: all of it.
            have = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            file.truncate(0)
            raise _Again("the server sent another part of the file than it was asked for")
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else None
        if None not in (size, total) and total != size:
            raise Failed(f"{url}: the file there has {total} bytes, DeepMind's {size}: another file, or a web page")
        bar.total, bar.n = size or total, have
        bar.refresh()
        file.truncate(have)
        file.seek(have)
        while chunk := received(response):
            have += len(chunk)
            if size is not None and have > size:
                raise Failed(f"{url}: more comes than the {size} bytes of DeepMind's file: another file")
            file.write(chunk)
            bar.update(len(chunk))
    # A body that was cut off simply ends.
    whole = size or total
    if whole is not None and have < whole:
        raise _Again(f"the connection was cut after {have} of {whole} bytes")


@contextmanager
def response_of(url: str, headers: dict[str, str]) -> Iterator[http.client.HTTPResponse | None]:
    """The server's answer; None where it has no byte from the asked one on."""
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as e:
        if e.code == 416:
            yield None
            return
        if e.code in (408, 425, 429) or e.code >= 500:
            wait = e.headers.get("Retry-After") or ""
            raise _Again(f"the server says {e.code} {e.reason}", float(wait) if wait.isdigit() else None) from None
        raise Failed(f"{url}: the server says {e.code} {e.reason}") from None
    except (OSError, http.client.HTTPException) as e:
        reason = getattr(e, "reason", e)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise Failed(f"{url}: the server's certificate is not trusted: {reason.verify_message}") from None
        raise _Again(str(reason) or type(e).__name__) from None
    with response:
        yield response


def received(response: http.client.HTTPResponse) -> bytes:
    """The next bytes of a body."""
    try:
        return response.read(CHUNK)
    except (OSError, http.client.HTTPException) as e:
        raise _Again(f"the connection broke: {str(e) or type(e).__name__}") from None


def download(url: str, target: Path, blob: Blob, pause: float = 1.0) -> None:
    """`url` as `target`, resumed, retried and verified; `pause`: seconds before the second try, doubled each time."""
    label = "/".join(target.parts[-2:])
    if target.exists():
        if blob_id(target) == blob.id:
            print(f"{label}: already here, verified", file=sys.stderr)
            return
        target.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    # The bar is for a terminal only; a log gets the lines.
    with alone(part), tqdm(desc=label, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        if bar.disable:
            print(f"{label}: fetching{f' {blob.size:,} bytes' if blob.size else ''}", file=sys.stderr)
        best = part.stat().st_size
        # Bytes of an earlier run, or of a file that the server changed between two tries, may spoil the sum: then once
        # more from the first byte.
        pieced, again, tries = best > 0, False, 0
        while True:
            try:
                attempt(url, part, blob.size, bar)
                found = blob_id(part)
                if found == blob.id:
                    break
                if again or not pieced:
                    size = part.stat().st_size
                    part.unlink()
                    raise Failed(
                        f"{url}: not the file that DeepMind published: blob id {found} ({size} bytes), expected "
                        f"{blob.id}; it was thrown away"
                    )
                again, best = True, 0
                os.truncate(part, 0)
                tqdm.write(f"{label}: its pieces don't make the file; once more from the first byte", file=sys.stderr)
            except _Again as e:
                now = part.stat().st_size
                pieced = pieced or now > 0
                tries = 1 if now > best else tries + 1
                best = max(best, now)
                if tries >= TRIES:
                    raise Failed(
                        f"{url}: {e}; gave up after {tries} tries that brought nothing new. What came is kept: run it "
                        "again to go on"
                    ) from None
                wait = min(e.wait if e.wait is not None else pause * 2 ** (tries - 1), 60.0)
                tqdm.write(f"{label}: {e}; trying again in {wait:.0f} s", file=sys.stderr)
                time.sleep(wait)
        part.rename(target)
    print(f"{label}: {target.stat().st_size:,} bytes, verified", file=sys.stderr)


@dataclass(frozen=True)
class Files:
    """Where a recipe's files are taken from: a server, or a folder of the user's."""

    blobs: dict[str, Blob]
    base: str
    downloads: Path
    given: Path | None = None
    pause: float = 1.0

    def get(self, path: str) -> Path:
        """A verified file, by its path in DeepMind's repository."""
        blob = self.blobs[path]
        if self.given is None:
            target = self.downloads / path
            try:
                download(f"{self.base}/{quote(path)}", target, blob, self.pause)
            except OSError as e:
                raise Failed(f"{target}: cannot be written ({e.strerror or e})") from e
            return target
        # Wherever below the folder it lies: its id says that it is the one.
        found = sorted(self.given.rglob(Path(path).name), key=lambda p: not p.as_posix().endswith(path))
        for candidate in found:
            if candidate.is_file() and blob_id(candidate) == blob.id:
                print(f"{candidate}: verified", file=sys.stderr)
                return candidate
        name = Path(path).name
        if not found:
            raise BadInput(f"{self.given}: no file {name} in it; {path} of DeepMind's repository is needed")
        several = f", nor is any of {len(found) - 1} other files of this name" if len(found) > 1 else ""
        raise BadInput(
            f"{found[0]}: not {path} of DeepMind's repository{several}: blob id {blob_id(found[0])}, expected {blob.id}"
        )

    def checkpoint(self, folder: str) -> Path:
        """Both files of a checkpoint, which must lie side by side; gives its prefix."""
        index, data = (
            self.get(f"data/checkpoints/{folder}/model.ckpt.{part}") for part in ("index", "data-00000-of-00001")
        )
        if index.parent != data.parent:
            raise BadInput(f"{index} and {data} belong together; put them into one folder")
        return index.with_name("model.ckpt")


def published(path: Path) -> tuple[float, dict[str, float]]:
    """The norm of all logits, and the logits of the best 20 labels, of what DeepMind's evaluate_sample.py printed."""
    lines = path.read_text().splitlines()
    norm = float(next(line for line in lines if line.startswith("Norm of logits:")).split(":")[1])
    rows = (line.split(" ", 2) for line in lines if line[:1].isdigit())
    return norm, {label: float(logit) for _, logit, label in rows}


def sample_logits(model: Path, sample: Path) -> np.ndarray:
    """Logits [classes] of the whole sample clip, stored as [1, T, 224, 224, C] in the range that the network takes."""
    clip = np.load(sample, allow_pickle=False)
    x = np.ascontiguousarray(clip.astype(np.float32).transpose(0, 4, 1, 2, 3))
    return session(model).run(["logits"], {"input": x})[0][0]


def compare(name: str, logits: np.ndarray, labels: list[str], path: Path) -> None:
    """Holds logits against what DeepMind published; `Failed` where they differ."""
    norm, best = published(path)
    by_label = dict(zip(labels, logits.tolist(), strict=True))
    worst = max(best, key=lambda label: abs(by_label.get(label, np.inf) - best[label]))
    difference = abs(by_label.get(worst, np.inf) - best[worst])
    ours = float(np.linalg.norm(logits))
    if not (difference <= TOLERANCE and abs(ours - norm) <= TOLERANCE):
        raise Failed(
            f"{name}: not what DeepMind published for its sample clip: `{worst}` {by_label.get(worst, np.nan):.6f} "
            f"against {best[worst]:.6f}, norm {ours:.6f} against {norm:.6f}. The files are DeepMind's, so the "
            "computation is at fault; nothing was installed"
        )
    print(
        f"{name}: as DeepMind published for its sample clip: {len(best)} logits within {difference:.1e}, norm "
        f"{ours:.6f} ({norm:.6f}), {labels[int(logits.argmax())]} {logits.max():.6f}"
    )


def check_sample(folder: Path, recipe: Recipe, streams: list[str], labels: list[str], files: Files) -> None:
    """Runs the sample clip: against the published logits where there are any, else only its top label is looked at."""
    try:
        logits = {s: sample_logits(folder / f"{s}.onnx", files.get(SAMPLE[s])) for s in streams}
        texts = {name: files.get(path) for name, path in recipe.published.items() if name in (*streams, "joint")}
    except BadInput as e:
        if files.given is None:
            raise
        print(f"not held against DeepMind's sample clip, which --from doesn't have: {e}", file=sys.stderr)
        return
    if len(streams) == 2:
        logits["joint"] = logits["rgb"] + logits["flow"]
    for name, values in logits.items():
        if name in texts:
            compare(name, values, labels, texts[name])
            continue
        top = labels[int(values.argmax())]
        share = float(np.exp(log_softmax(values).max()))
        print(f"{name}: the sample clip, a cricket shot, is `{top}` ({share:.3f}, logit {values.max():.3f})")
        if top != SAMPLE_LABEL:
            raise Failed(f"{name}: the sample clip shows {SAMPLE_LABEL}, not {top}; nothing was installed")
    if not texts:
        print(
            "DeepMind published no logits of these weights: that the files are its own, by their blob ids, and this "
            "top label are all that can be checked"
        )


def install(name: str, out: Path, streams: list[str], files: Files, flow: str, rule: str, recipe: Recipe) -> None:
    """Fetches, imports and checks; `out` is written at the end or not at all."""
    labels_file = files.get(recipe.labels)
    prefixes = {stream: files.checkpoint(recipe.checkpoints[stream]) for stream in streams}
    networks = list(importer.networks_of(prefixes))
    labels = read_labels(labels_file, networks[0].classes)
    about = importer.About(
        name=f"i3d-{name.replace('+', '-')}",
        licence="Apache-2.0 (DeepMind)",
        source=f"DeepMind's kinetics-i3d at commit {COMMIT[:12]}: {', '.join(recipe.checkpoints[s] for s in streams)}; "
        f"{recipe.trained}",
        flow=flow,
        rule=rule,
    )
    with staged(out) as folder:
        importer.write(folder, networks, labels, about)
        check_sample(folder, recipe, streams, labels, files)
    print(f"{out}: {' and '.join(streams)}, {len(labels)} classes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `fetch`."""
    parser.add_argument("weights", choices=RECIPES, help="kinetics-600 has no flow stream")
    parser.add_argument("--out", type=Path, help="the model's folder; models/WEIGHTS where left out")
    parser.add_argument(
        "--streams", choices=("both", *CHANNELS), help="which streams; all that there are where left out"
    )
    parser.add_argument(
        "--from", dest="given", type=Path, help="a folder that has the files already; no network is used"
    )
    parser.add_argument(
        "--downloads",
        type=Path,
        default=Path("build/factory/kinetics-i3d"),
        help="where downloads are kept, so that they go on where they were cut off (default: %(default)s)",
    )
    parser.add_argument(
        "--base",
        default=os.environ.get(VARIABLE, BASE),
        help=f"where the repository's files are served, for a mirror; also {VARIABLE} (default: %(default)s)",
    )
    parser.add_argument("--quantize", type=Path, metavar="CLIPS", help="quantize to int8 on these clips afterwards")
    importer.add_shared_arguments(parser)


def quantize(model: Path, clips: Path) -> int:
    """`factory quantize MODEL CLIPS`, with its own defaults."""
    module = importlib.import_module(".quantize", __package__)
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return module.main(parser.parse_args([str(model), str(clips)])) or 0


def main(args: argparse.Namespace, blobs: dict[str, Blob] = BLOBS, recipes: dict[str, Recipe] = RECIPES) -> int:
    """Runs `fetch`."""
    recipe = recipes[args.weights]
    streams = list(recipe.checkpoints) if args.streams in (None, "both") else [args.streams]
    if args.streams == "both" or not set(streams) <= set(recipe.checkpoints):
        lacking = [stream for stream in CHANNELS if stream not in recipe.checkpoints]
        if lacking:
            raise BadInput(f"{args.weights} has no {lacking[0]} stream: DeepMind published none")
    try:
        base = urlsplit(args.base)
        # Raises ValueError where it is no number from 0 to 65535.
        known = base.scheme in ("http", "https") and base.hostname and (base.port is None or base.port)
    except ValueError:
        known = False
    if not known:
        raise BadInput(f"--base {args.base}: an http or https address is needed; for files that are here use --from")
    if args.given is not None and not args.given.is_dir():
        raise BadInput(f"--from {args.given}: no such folder")
    if args.quantize is not None and not args.quantize.exists():
        raise BadInput(f"--quantize {args.quantize}: no such clips")
    out = importer.check_out(args.out or Path("models") / args.weights)
    files = Files(blobs, args.base.rstrip("/"), args.downloads, args.given)
    try:
        install(args.weights, out, streams, files, args.flow_algorithm, args.fusion, recipe)
    except KeyboardInterrupt:
        raise Failed("interrupted; what was downloaded is kept: run it again to go on") from None
    if args.quantize is None:
        print(f"f32 only; for int8: factory quantize {out} CLIPS")
        return 0
    print(f"quantizing on {args.quantize}; the f32 model is installed whatever comes of it")
    return quantize(out, args.quantize)
