"""`fetch` against a server that cuts, lies and forgets, and whole runs of the command on checkpoints made here."""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import pytest
from checkpoints import GOLDEN, TENSORFLOW, named, random_i3d, write_bundle

from actiond_factory import fetch, importer, intake
from actiond_factory.__main__ import main
from actiond_factory.errors import BadInput, Failed
from actiond_factory.fetch import BLOBS, RECIPES, TRIES, Blob, Recipe, blob_id, download
from actiond_factory.model import session
from actiond_factory.toml import tomllib

CONTENT = np.random.default_rng(0).bytes(300_000)


class Server(ThreadingHTTPServer):
    """Serves a folder, and misbehaves as told."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.length = True
        self.cut_after: list[int] = []
        """For the next answers, one each: close the connection after so many bytes of the body."""
        self.status: list[tuple[int, dict[str, str]]] = []
        """For the next answers, one each: this status instead."""
        self.slow = 0.0
        """seconds before each 10 kB"""
        self.silent: list[float] = []
        """For the next answers, one each: seconds before the body"""
        self.lie: dict[str, str] = {}
        """headers that are wrong"""
        self.asked: list[tuple[str, str | None]] = []
        """(path, Range) of every request"""

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def ranges_of(self, path: str) -> list[str | None]:
        """What was asked for of a file, in order."""
        return [part for asked, part in self.asked if asked == f"/{path}"]


class Handler(BaseHTTPRequestHandler):
    """GET with Range."""

    server: Server

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        """One file, or as much of it as the server is allowed to send."""
        server, part = self.server, self.headers.get("Range")
        server.asked.append((self.path, part))
        if server.status:
            code, headers = server.status.pop(0)
            self.send_response(code)
            for name, value in {"Content-Length": "0", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            return
        content = server.files.get(self.path.lstrip("/").replace("%2B", "+"))
        if content is None:
            self.send_error(404)
            return
        start = int(part.removeprefix("bytes=").rstrip("-")) if part and server.ranges else 0
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        body = content[start:]
        headers = {"Content-Length": str(len(body))} if server.length else {}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        for name, value in (headers | server.lie).items():
            self.send_header(name, value)
        self.end_headers()
        body = body[: server.cut_after.pop(0)] if server.cut_after else body
        if server.silent:
            time.sleep(server.silent.pop(0))
        for at in range(0, len(body), 10_000):
            time.sleep(server.slow)
            try:
                self.wfile.write(body[at : at + 10_000])
            except OSError:
                return


@pytest.fixture
def server() -> Iterator[Server]:
    """Running, with one file `data/it`."""
    running = Server()
    running.files["data/it"] = CONTENT
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


def blob_of(content: bytes, folder: Path, sized: bool = True) -> Blob:
    """What the table would have for a file."""
    path = folder / "for-its-id"
    path.write_bytes(content)
    found = Blob(blob_id(path), len(content) if sized else None)
    path.unlink()
    return found


@pytest.fixture
def blob(tmp_path: Path) -> Blob:
    """Of CONTENT."""
    return blob_of(CONTENT, tmp_path)


def fetched(server: Server, tmp_path: Path, blob: Blob) -> Path:
    """Downloads `data/it`."""
    target = tmp_path / "down" / "it"
    download(f"{server.url}/data/it", target, blob, pause=0)
    assert target.read_bytes() == CONTENT
    assert [p.name for p in target.parent.iterdir()] == ["it"]
    return target


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
        (b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"),
    ],
)
def test_blob_ids_are_git_s(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "a").write_bytes(content)
    assert blob_id(tmp_path / "a") == expected


@pytest.mark.skipif(not GOLDEN.exists(), reason="DeepMind's index files are not in ../shared/golden")
def test_the_table_has_deepmind_s_files() -> None:
    here = {f"data/checkpoints/{p.stem}/model.ckpt.index": p for p in (GOLDEN / "deepmind" / "index").iterdir()}
    here |= {
        f"out/imagenet_{s}.txt": GOLDEN / "deepmind" / f"published_imagenet_{s}.txt" for s in ("rgb", "flow", "joint")
    }
    here |= {f"data/{name}": GOLDEN / "deepmind" / name for name in ("label_map.txt", "label_map_600.txt")}
    for path, local in here.items():
        assert BLOBS[path] == Blob(blob_id(local), local.stat().st_size), path
    for stream, listing in (("rgb_imagenet", "rgb"), ("flow_scratch", "flow"), ("rgb_scratch_kin600", "real_rgb600")):
        last = (GOLDEN / f"tensors_{listing}.tsv").read_text().splitlines()[1:]
        size = max(int(row.split("\t")[4]) + int(row.split("\t")[5]) for row in last)
        assert BLOBS[f"data/checkpoints/{stream}/model.ckpt.data-00000-of-00001"].size == size


def test_every_recipe_s_files_are_in_the_table() -> None:
    for recipe in RECIPES.values():
        for folder in recipe.checkpoints.values():
            for part in ("index", "data-00000-of-00001"):
                assert f"data/checkpoints/{folder}/model.ckpt.{part}" in BLOBS
        assert {recipe.labels, *recipe.published.values(), *fetch.SAMPLE.values()} <= set(BLOBS)


@pytest.mark.parametrize("sized", [True, False])
def test_downloads_and_verifies(server: Server, tmp_path: Path, sized: bool) -> None:
    blob = blob_of(CONTENT, tmp_path, sized)
    fetched(server, tmp_path, blob)
    assert server.ranges_of("data/it") == [None]
    # What is here and right is not asked for again; what is here and wrong is.
    fetched(server, tmp_path, blob)
    assert len(server.asked) == 1
    (tmp_path / "down" / "it").write_bytes(b"spoilt")
    fetched(server, tmp_path, blob)
    assert len(server.asked) == 2


@pytest.mark.parametrize("sized", [True, False])
def test_goes_on_where_the_connection_was_cut(server: Server, tmp_path: Path, sized: bool, capsys) -> None:
    # More cuts than tries in vain are allowed: each brought something.
    server.cut_after = [30_000] * (TRIES + 2)
    fetched(server, tmp_path, blob_of(CONTENT, tmp_path, sized))
    asked = server.ranges_of("data/it")
    assert asked == [None, *(f"bytes={30_000 * n}-" for n in range(1, TRIES + 3))]
    assert "the connection was cut after 30000 of 300000 bytes" in capsys.readouterr().err


def test_a_server_without_ranges_sends_all_again(server: Server, tmp_path: Path, blob: Blob) -> None:
    server.ranges = False
    server.cut_after = [200_000, 250_000]
    fetched(server, tmp_path, blob)
    assert server.ranges_of("data/it") == [None, "bytes=200000-", "bytes=250000-"]


def test_a_server_that_says_no_length_is_believed_by_the_size(server: Server, tmp_path: Path, blob: Blob) -> None:
    server.length = False
    server.cut_after = [100_000]
    fetched(server, tmp_path, blob)
    assert server.ranges_of("data/it") == [None, "bytes=100000-"]


def test_gives_up_when_nothing_new_comes_and_keeps_what_came(server: Server, tmp_path: Path, blob: Blob) -> None:
    server.cut_after = [50_000] + [0] * 50
    with pytest.raises(Failed, match=rf"cut after 50000 of 300000 bytes; gave up after {TRIES} tries"):
        fetched(server, tmp_path, blob)
    assert (tmp_path / "down" / "it.part").read_bytes() == CONTENT[:50_000]
    server.cut_after = []
    fetched(server, tmp_path, blob)
    assert server.ranges_of("data/it")[-1] == "bytes=50000-"


def test_a_server_without_ranges_that_cuts_at_one_place_is_given_up(server: Server, tmp_path: Path, blob: Blob) -> None:
    server.ranges = False
    server.cut_after = [50_000] * 50
    with pytest.raises(Failed, match="gave up"):
        fetched(server, tmp_path, blob)
    assert len(server.asked) == TRIES


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path, blob: Blob, code: int) -> None:
    server.status = [(code, {"Retry-After": "0"}), (code, {})]
    fetched(server, tmp_path, blob)
    assert len(server.asked) == 3


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_what_is_not_there_is_told_at_once(server: Server, tmp_path: Path, blob: Blob, code: int) -> None:
    server.status = [(code, {})]
    with pytest.raises(Failed, match=f"{server.url}/data/it: the server says {code}"):
        fetched(server, tmp_path, blob)
    assert len(server.asked) == 1


def test_a_server_that_falls_silent_is_asked_again(
    server: Server, tmp_path: Path, blob: Blob, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(fetch, "TIMEOUT", 1.0)
    server.silent = [3.0]
    fetched(server, tmp_path, blob)
    assert "timed out" in capsys.readouterr().err


def test_nobody_there(tmp_path: Path, blob: Blob) -> None:
    with pytest.raises(Failed, match=r"Connection refused; gave up"):
        download("http://127.0.0.1:9/data/it", tmp_path / "it", blob, pause=0)


def test_wrong_bytes_are_thrown_away(server: Server, tmp_path: Path, blob: Blob) -> None:
    wrong = bytearray(CONTENT)
    wrong[1234] ^= 1
    server.files["data/it"] = bytes(wrong)
    with pytest.raises(Failed, match=rf"not the file that DeepMind published: .* expected {blob.id}"):
        fetched(server, tmp_path, blob)
    assert list((tmp_path / "down").iterdir()) == []
    assert len(server.asked) == 1


def test_wrong_bytes_that_came_in_pieces_are_fetched_once_more_and_no_more(
    server: Server, tmp_path: Path, blob: Blob
) -> None:
    wrong = bytearray(CONTENT)
    wrong[1234] ^= 1
    server.files["data/it"] = bytes(wrong)
    server.cut_after = [1000]
    with pytest.raises(Failed, match="not the file that DeepMind published"):
        fetched(server, tmp_path, blob)
    assert server.ranges_of("data/it") == [None, "bytes=1000-", None]


@pytest.mark.parametrize("size", [10, 299_999, 300_001, 400_000])
def test_a_file_of_another_size_is_no_waste_of_time(server: Server, tmp_path: Path, blob: Blob, size: int) -> None:
    server.files["data/it"] = (CONTENT * 2)[:size]
    with pytest.raises(Failed, match=f"has {size} bytes, DeepMind's 300000"):
        fetched(server, tmp_path, blob)
    server.length = False
    with pytest.raises(Failed, match="more comes than|not the file that"):
        fetched(server, tmp_path, blob)


@pytest.mark.parametrize(
    "left",
    [b"something else", CONTENT[:-1] + b"?", CONTENT + b"?", CONTENT * 2],
    ids=["short", "wrong", "long", "twice"],
)
def test_rubbish_of_an_earlier_run_is_replaced(server: Server, tmp_path: Path, blob: Blob, left: bytes) -> None:
    (tmp_path / "down").mkdir()
    (tmp_path / "down" / "it.part").write_bytes(left)
    fetched(server, tmp_path, blob)
    assert server.ranges_of("data/it") == [f"bytes={len(left)}-", None]


def test_a_download_that_only_lacked_its_name_is_taken(server: Server, tmp_path: Path, blob: Blob) -> None:
    (tmp_path / "down").mkdir()
    (tmp_path / "down" / "it.part").write_bytes(CONTENT)
    fetched(server, tmp_path, blob)
    assert server.ranges_of("data/it") == ["bytes=300000-"]


def test_another_part_than_asked_for_is_not_appended(server: Server, tmp_path: Path, blob: Blob) -> None:
    server.cut_after = [1000]
    server.lie = {"Content-Range": "bytes 7-299999/300000"}
    fetched(server, tmp_path, blob)
    assert server.ranges_of("data/it") == [None, "bytes=1000-", None]


def test_two_at_once_do_not_spoil_each_other(server: Server, tmp_path: Path, blob: Blob) -> None:
    server.slow = 0.02
    first = threading.Thread(target=fetched, args=(server, tmp_path, blob))
    first.start()
    while not server.asked:
        time.sleep(0.01)
    with pytest.raises(Failed, match="another fetch is writing it"):
        fetched(server, tmp_path, blob)
    first.join()
    assert (tmp_path / "down" / "it").read_bytes() == CONTENT


def test_a_killed_download_goes_on(server: Server, tmp_path: Path, blob: Blob) -> None:
    server.slow = 0.05
    target = tmp_path / "down" / "it"
    program = (
        "import sys; from pathlib import Path; from actiond_factory.fetch import Blob, download\n"
        "download(sys.argv[1], Path(sys.argv[2]), Blob(sys.argv[3], int(sys.argv[4])))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, f"{server.url}/data/it", target, blob.id, str(blob.size)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    part = target.with_name("it.part")
    for _ in range(1000):
        if part.exists() and part.stat().st_size > 65_536:
            break
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    had = part.stat().st_size
    assert 0 < had < len(CONTENT)
    server.slow = 0
    fetched(server, tmp_path, blob)
    assert server.ranges_of("data/it") == [None, f"bytes={had}-"]


# The whole command.

NAMES = ["archery", "hurling (sport)", "playing kickball", "ski jumping", "zumba"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As DeepMind's: two checkpoints of random weights, labels, a short sample clip, and what it gives."""
    root = tmp_path_factory.mktemp("repository")
    rng = np.random.default_rng(3)
    scopes = {"rgb": "RGB/inception_i3d/", "flow": "Flow/inception_i3d/"}
    logits = {}
    for stream, scope in scopes.items():
        numbers = random_i3d(stream, len(NAMES))
        prefix = root / "data" / "checkpoints" / f"{stream}_imagenet" / "model.ckpt"
        write_bundle(prefix, named(numbers, TENSORFLOW, scope))
        clip = rng.uniform(-1, 1, (1, 9, 224, 224, {"rgb": 3, "flow": 2}[stream])).astype(np.float32)
        np.save(root / "data" / f"v_CricketShot_g04_c01_{stream}.npy", clip)
        onnx.save(importer.network(prefix, stream).graph(), root / f"{stream}.onnx")
        sample = root / "data" / f"v_CricketShot_g04_c01_{stream}.npy"
        logits[stream] = fetch.sample_logits(root / f"{stream}.onnx", sample)
    names = NAMES.copy()
    names[int(logits["rgb"].argmax())] = fetch.SAMPLE_LABEL
    (root / "data" / "label_map.txt").write_text("".join(f"{name}\n" for name in names))
    for name, values in {**logits, "joint": logits["rgb"] + logits["flow"]}.items():
        write_published(root / "out" / f"imagenet_{name}.txt", values, names)
    return root


def write_published(path: Path, logits: np.ndarray, names: list[str]) -> None:
    """As DeepMind's evaluate_sample.py prints them."""
    path.parent.mkdir(exist_ok=True)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    rows = "".join(f"{shares[n]} {logits[n]} {names[n]}\n" for n in logits.argsort()[::-1])
    path.write_text(f"Norm of logits: {np.linalg.norm(logits):f}\n\nTop classes and probabilities\n{rows}")


TEST_RECIPES = {
    "imagenet+kinetics": RECIPES["imagenet+kinetics"],
    "kinetics": Recipe({"rgb": "rgb_imagenet"}, "data/label_map.txt", "like one whose logits nobody published"),
}


def blobs_of(root: Path) -> dict[str, Blob]:
    """The table that such a repository has."""
    paths = [p for p in root.rglob("*") if p.is_file()]
    return {p.relative_to(root).as_posix(): Blob(blob_id(p), p.stat().st_size) for p in paths}


def run(*arguments: object, root: Path) -> int:
    """`fetch` with the table of `root`, as the command line would call it."""
    parser = argparse.ArgumentParser()
    fetch.add_arguments(parser)
    return fetch.main(parser.parse_args([str(a) for a in arguments]), blobs_of(root), TEST_RECIPES)


def test_fetches_imports_and_checks(server: Server, repository: Path, tmp_path: Path, capsys) -> None:
    server.files = {p.relative_to(repository).as_posix(): p.read_bytes() for p in repository.rglob("*") if p.is_file()}
    # The big file is cut twice on its way.
    server.cut_after = [10**9, 10**9, 5_000_000, 20_000_000]
    out = tmp_path / "models" / "i3d"
    options = ("--base", server.url, "--downloads", tmp_path / "down", "--out", out)
    assert run("imagenet+kinetics", *options, root=repository) == 0
    said = capsys.readouterr()
    assert "bytes=5000000-" in [part for _, part in server.asked]
    for name in ("rgb", "flow", "joint"):
        assert f"{name}: as DeepMind published for its sample clip: 5 logits within" in said.out
    assert sorted(p.name for p in out.iterdir()) == ["flow.onnx", "labels.txt", "model.toml", "rgb.onnx"]
    text = (out / "model.toml").read_text()
    assert 'name = "i3d-imagenet-kinetics"' in text
    assert 'licence = "Apache-2.0' in text
    assert "0667e889a590" in text
    assert (out / "labels.txt").read_text() == (repository / "data" / "label_map.txt").read_text()
    # Once more: nothing is fetched, and one stream only is installed.
    before = len(server.asked)
    assert run("imagenet+kinetics", *options, "--streams", "rgb", root=repository) == 0
    assert len(server.asked) == before
    assert sorted(p.name for p in out.iterdir()) == ["labels.txt", "model.toml", "rgb.onnx"]


def linked(repository: Path, folder: Path, **instead: str) -> Path:
    """A folder with the repository's files, some with another text."""
    for path in (p for p in repository.glob("*/**/*") if p.is_file()):
        target = folder / path.relative_to(repository)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.name in instead:
            target.write_text(instead[path.name])
        else:
            target.symlink_to(path)
    return folder


def test_logits_that_differ_from_the_published_ones_install_nothing(repository: Path, tmp_path: Path) -> None:
    norm, best = fetch.published(repository / "out" / "imagenet_joint.txt")
    rows = "".join(f"0.1 {logit + 0.005 * (label == fetch.SAMPLE_LABEL)} {label}\n" for label, logit in best.items())
    text = f"Norm of logits: {norm}\n\nTop classes and probabilities\n{rows}"
    given = linked(repository, tmp_path / "given", **{"imagenet_joint.txt": text})
    out = tmp_path / "model"
    with pytest.raises(Failed, match=r"joint: not what DeepMind published .*`playing cricket`.*nothing was installed"):
        run("imagenet+kinetics", "--from", given, "--out", out, root=given)
    given = linked(repository, tmp_path / "other", **{"imagenet_flow.txt": "Norm of logits: 1.0\n\n0.1 1e9 zumba\n"})
    with pytest.raises(Failed, match=r"flow: not what DeepMind published"):
        run("imagenet+kinetics", "--from", given, "--out", out, root=given)
    assert not out.exists()
    assert not list(tmp_path.glob(".model*"))


def test_without_published_logits_the_top_label_is_all(repository: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "model"
    assert run("kinetics", "--from", repository, "--out", out, root=repository) == 0
    said = capsys.readouterr().out
    assert "rgb: the sample clip, a cricket shot, is `playing cricket`" in said
    assert "this top label are all that can be checked" in said
    kept = {p: p.read_bytes() for p in out.iterdir()}
    given = linked(repository, tmp_path / "given", **{"label_map.txt": "".join(f"{n}\n" for n in NAMES)})
    with pytest.raises(Failed, match="the sample clip shows playing cricket, not"):
        run("kinetics", "--from", given, "--out", out, root=given)
    assert {p: p.read_bytes() for p in out.iterdir()} == kept


def test_the_command_s_exit_codes(server: Server, tmp_path: Path, capsys) -> None:
    options = ["--downloads", str(tmp_path / "down"), "--out", str(tmp_path / "model")]
    assert main(["fetch", "kinetics", "--base", server.url, *options]) == 1
    said = capsys.readouterr().err
    assert f"factory fetch: {server.url}/data/label_map.txt: the server says 404" in said
    assert "Traceback" not in said
    assert main(["fetch", "kinetics", "--from", str(tmp_path), *options]) == 2
    assert "no file label_map.txt in it" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_from_takes_files_wherever_they_lie_and_verifies_them(repository: Path, tmp_path: Path, capsys) -> None:
    given = tmp_path / "given"
    for stream in ("rgb", "flow"):
        (given / "weights" / stream).mkdir(parents=True)
        for part in ("index", "data-00000-of-00001"):
            name = f"model.ckpt.{part}"
            (given / "weights" / stream / name).symlink_to(
                repository / "data/checkpoints" / f"{stream}_imagenet" / name
            )
    options = ("--from", given, "--out", tmp_path / "model")
    with pytest.raises(BadInput, match=r"no file label_map.txt in it; data/label_map.txt of DeepMind's repository"):
        run("imagenet+kinetics", *options, root=repository)
    (given / "label_map.txt").write_bytes((repository / "data" / "label_map.txt").read_bytes())
    assert run("imagenet+kinetics", *options, root=repository) == 0
    assert "not held against DeepMind's sample clip, which --from doesn't have" in capsys.readouterr().err
    assert (tmp_path / "model" / "flow.onnx").exists()
    # A file of the right name and size that is another one.
    data = given / "weights" / "rgb" / "model.ckpt.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[1_000_000] ^= 1
    data.unlink()
    data.write_bytes(content)
    with pytest.raises(BadInput, match=r"not data/checkpoints/rgb_imagenet/model.ckpt.data-00000-of-00001 .*expected"):
        run("imagenet+kinetics", *options, root=repository)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("kinetics-600", "--streams", "both"), "kinetics-600 has no flow stream"),
        (("kinetics-600", "--streams", "flow"), "kinetics-600 has no flow stream"),
        (("kinetics", "--base", "ftp://somewhere/"), "an http or https address"),
        (("kinetics", "--base", "https:///x"), "an http or https address"),
        (("kinetics", "--from", "nowhere"), "--from nowhere: no such folder"),
        (("kinetics", "--quantize", "nowhere"), "--quantize nowhere: no such clips"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    fetch.add_arguments(parser)
    with pytest.raises(BadInput, match=said):
        fetch.main(parser.parse_args([*arguments, "--out", str(tmp_path / "out")]))


def test_quantizes_what_was_installed(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    called: list[list[Path]] = []
    # The command's own tests are elsewhere; here it counts that it is called as on the command line, and its exit code.
    module = types.ModuleType("actiond_factory.quantize")
    module.add_arguments = lambda parser: parser.add_argument("paths", type=Path, nargs=2)
    module.main = lambda args: called.append(args.paths) or 3
    monkeypatch.setitem(sys.modules, module.__name__, module)
    out, clips = tmp_path / "model", tmp_path / "clips"
    clips.mkdir()
    assert run("kinetics", "--from", repository, "--out", out, "--quantize", clips, root=repository) == 3
    assert called == [[out, clips]]
    assert (out / "model.toml").exists()


def test_fetches_and_quantizes_to_the_end(
    server: Server, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    from test_quantize import make_clip

    # All of it at full size but the window, which is a quarter as long: the whole takes seconds instead of minutes.
    full = importer.ARCHITECTURES["two-stream-i3d"]
    shorter = replace(full, streams=lambda size, width: [replace(s, frames=16) for s in full.streams(size, width)])
    monkeypatch.setitem(importer.ARCHITECTURES, "two-stream-i3d", shorter)
    server.files = {p.relative_to(repository).as_posix(): p.read_bytes() for p in repository.rglob("*") if p.is_file()}
    clips, out = tmp_path / "clips", tmp_path / "model"
    make_clip(clips / "short.mp4", 0.7, size=(320, 240))
    options = ("--base", server.url, "--downloads", tmp_path / "down", "--out", out, "--quantize", clips)
    assert run("kinetics", *options, root=repository) == 0
    said = capsys.readouterr().out
    assert f"quantizing on {clips}" in said
    assert "fused by the manifest's rule: first label agrees with f32" in said
    (stream,) = tomllib.loads((out / "model.toml").read_text())["stream"]
    assert [f["precision"] for f in stream["file"]] == ["f32", "int8"]
    assert main(["quantize", "--check", str(out)]) == 0
    # It is the network that was fetched: what it sees in the clip, it sees in s8 too.
    x = {"input": intake.windows(clips / "short.mp4", intake.read_manifest(out)[1], 1)[0][0]}
    assert x["input"].shape == (1, 3, 16, 224, 224)
    f32, s8 = (session(out / f["path"]).run(None, x)[0].astype(np.float64) for f in stream["file"])
    assert 10 * np.log10((f32**2).sum() / ((f32 - s8) ** 2).sum()) > 15
    assert (out / "rgb.int8.onnx").stat().st_size < 0.27 * (out / "rgb.onnx").stat().st_size


@pytest.mark.skipif(not GOLDEN.exists(), reason="DeepMind's published outputs are not in ../shared/golden")
def test_what_deepmind_published_is_read() -> None:
    norm, best = fetch.published(GOLDEN / "deepmind" / "published_imagenet_joint.txt")
    assert norm == 138.468658
    assert len(best) == 20
    assert best["playing cricket"] == 41.813675
    assert best["hurling (sport)"] == 21.493977
    assert best["catching or throwing baseball"] == 20.134108
