"""A model's folder is replaced as a whole or not at all."""

from pathlib import Path

import pytest

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
