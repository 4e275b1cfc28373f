"""What holds for every command of the factory."""

import importlib.machinery
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from actiond_factory import __main__ as command

NEED_TORCH = {"train", "fit", "assemble", "export"}


@pytest.mark.parametrize("name", command.COMMANDS)
def test_help_has_an_example(name: str, capsys: pytest.CaptureFixture) -> None:
    if name in NEED_TORCH and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed: only the commands that train need it")
    with pytest.raises(SystemExit) as end:
        command.main([name, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: factory {name}" in text
    examples = [line for line in text.splitlines() if line.startswith("  ") and f"factory {name} " in line]
    assert examples, text
    # Only the script has the environment that the module needs.
    assert "python -m" not in text


def test_nothing_needs_more_than_python_3_10() -> None:
    """`toml.py` alone knows of `tomllib`, which came with 3.11, as did `file_digest`."""
    for path in Path(command.__file__).parent.glob("*.py"):
        text = path.read_text()
        assert path.name == "toml.py" or "import tomllib" not in text.replace("from .toml import tomllib", ""), path
        assert "hashlib.file_digest(" not in text, path


def test_a_python_that_is_too_old_is_named(tmp_path: Path) -> None:
    shutil.copy(Path(command.__file__).parents[1] / "factory", tmp_path)
    old = tmp_path / "bin" / "python3"
    old.parent.mkdir()
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.10 && exit\n[ "$1" != -c ]\n')
    old.chmod(0o755)
    environment = {**os.environ, "PATH": f"{old.parent}:{os.environ['PATH']}"}
    done = subprocess.run([tmp_path / "factory", "build"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "factory: python3 is Python 3.8.10; the factory needs Python 3.10 or newer\n"
    assert not (tmp_path / ".venv").exists()


BUILD = ["build", "two-stream", "--classes", "3", "--size", "32", "--width", "0.1"]


def test_what_the_system_refuses_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert command.main([*BUILD, "--out", str(tmp_path / "file" / "x" / "y")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"factory build: {tmp_path / 'file'}") and said.count("\n") == 1


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    from actiond_factory import inflate

    assert command.main([*BUILD, "--out", str(tmp_path / "m")]) == 0

    def full(_: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(inflate.onnx, "save", full)
    capsys.readouterr()
    flat = tmp_path / "m" / "rgb.onnx"
    assert command.main(["inflate", str(flat), "--out", str(tmp_path / "y.onnx")]) == 2
    assert capsys.readouterr().err == "factory inflate: No space left on device\n"
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_an_interruption_is_130(monkeypatch, capsys: pytest.CaptureFixture) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    module = SimpleNamespace(__doc__="", add_arguments=lambda parser: None, main=interrupted)
    monkeypatch.setattr(command.importlib, "import_module", lambda _: module)
    assert command.main(["build"]) == 130
    assert capsys.readouterr().err == "factory build: interrupted\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_in_order(tmp_path: Path, number: int) -> None:
    code = (
        "import os, sys, types; from pathlib import Path; from actiond_factory import __main__ as c\n"
        "from actiond_factory.model import staged\n"
        "def main(_):\n"
        f" with staged(Path('m')): os.kill(os.getpid(), {int(number)}); import time; time.sleep(60)\n"
        "c.importlib.import_module = lambda _: types.SimpleNamespace("
        "__doc__='', add_arguments=lambda p: None, main=main)\n"
        "sys.exit(c.main(['build']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(command.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (128 + number, "")
    assert list(tmp_path.iterdir()) == []


SCRIPTS = Path(command.__file__).parents[2]


def test_fuzz_takes_no_mistyped_file_for_seconds(tmp_path: Path) -> None:
    run = [SCRIPTS / "fuzz", "manifest", "fuzz/artifacts/typo"]
    done = subprocess.run(run, env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "scripts/fuzz: there is no file `fuzz/artifacts/typo`, and it is no number of seconds\n"


def test_peers_takes_paths_from_where_it_is_called(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = importlib.machinery.SourceFileLoader("peers", str(SCRIPTS / "peers"))
    peers = importlib.util.module_from_spec(importlib.util.spec_from_loader("peers", loader))
    loader.exec_module(peers)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.toml").write_text('[[stream]]\nfile = [{ precision = "f32" }]\n')
    (tmp_path / "actiond").touch()
    given = []

    def ours(*paths: object) -> dict:
        given.extend(paths[:3])
        return {"backend": "cpu", "precision": "f32", "mode": "dense", "stages": {"inference": {"rgb": {"p50_ms": 1}}}}

    monkeypatch.setattr(peers, "environment", lambda: None)
    monkeypatch.setattr(peers, "Peer", lambda name, *_: SimpleNamespace(name=name, hop=lambda: 1.0))
    monkeypatch.setattr(peers, "ours", ours)
    monkeypatch.chdir(tmp_path)
    options = ["--clip", "clip.mp4", "--actiond", "actiond", "--rounds", "1", "--modes", "dense", "--backends", "cpu"]
    monkeypatch.setattr(sys, "argv", ["peers", "model", *options, "--json"])
    assert peers.main() == 0
    assert given == [tmp_path / "actiond", tmp_path / "model", tmp_path / "clip.mp4"]


@pytest.mark.parametrize("base", ["http://[bad", "http://host:99999", "http://host:x", "ftp://host", "http://"])
def test_an_address_that_is_none(base: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command.main(["fetch", "kinetics", "--base", base, "--out", str(tmp_path / "m")]) == 2
    assert capsys.readouterr().err.startswith(f"factory fetch: --base {base}: an http or https address is needed")
