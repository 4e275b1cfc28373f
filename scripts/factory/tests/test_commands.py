"""What holds for every command of the factory."""

import importlib.util

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
