"""A model's folder is replaced as a whole or not at all."""

from pathlib import Path

import pytest

from actiond_factory.errors import BadInput
from actiond_factory.model import staged


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that stands for a model."""
    out = tmp_path / "models" / "m"
    out.mkdir(parents=True)
    (out / "model.toml").write_text("old")
    return out


@pytest.mark.parametrize("error", [OSError("no room"), KeyboardInterrupt()])
def test_a_model_survives_when_the_new_one_cannot_take_its_place(model: Path, monkeypatch, error) -> None:
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if ".part-" in self.name:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(type(error)), staged(model) as folder:
        (folder / "model.toml").write_text("new")
    assert (model / "model.toml").read_text() == "old"
    assert [p.name for p in model.parent.iterdir()] == ["m"]


def test_what_a_link_leads_to_is_replaced(model: Path) -> None:
    link = model.parent / "current"
    link.symlink_to("m")
    with staged(link) as folder:
        (folder / "model.toml").write_text("new")
    assert link.is_symlink()
    assert (model / "model.toml").read_text() == "new"
    assert sorted(p.name for p in model.parent.iterdir()) == ["current", "m"]


def test_the_folder_that_one_stands_in(model: Path, monkeypatch) -> None:
    monkeypatch.chdir(model)
    with staged(Path(".")) as folder:
        (folder / "model.toml").write_text("new")
    assert Path("model.toml").read_text() == "new"
    assert [p.name for p in model.parent.iterdir()] == ["m"]


def test_a_model_that_is_only_to_be_read_has_a_copy_that_can_be_changed(model: Path) -> None:
    (model / "model.toml").chmod(0o444)
    model.chmod(0o555)
    with staged(model) as folder:
        assert folder.stat().st_mode & 0o200
        assert (folder / "model.toml").stat().st_mode & 0o200
    assert [p.name for p in model.parent.iterdir()] == ["m"]


def test_errors_name_the_folder_and_not_its_copy(model: Path) -> None:
    with pytest.raises(BadInput) as error, staged(model) as folder:
        raise BadInput(f"{folder / 'model.toml'}: wrong")
    assert str(error.value) == f"{model / 'model.toml'}: wrong"
    with pytest.raises(OSError) as error, staged(model) as folder:
        (folder / "nothing").read_text()
    assert error.value.filename == f"{model / 'nothing'}"
