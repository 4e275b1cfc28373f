"""What holds for every command of the factory."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

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
