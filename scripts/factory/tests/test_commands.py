"""What holds for every command of the factory."""

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
