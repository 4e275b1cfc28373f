"""`factory build`: models of the paper's architectures with random weights."""

import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest

from actiond_factory import __main__ as command
from actiond_factory.model import session, sha256


def build(*arguments: object) -> int:
    """Exit code of `factory build`."""
    return command.main(["build", *map(str, arguments)])


def test_a_model_s_folder_is_whole_and_its_activations_stay_in_range(tmp_path: Path) -> None:
    out = tmp_path / "new" / "i3d"
    assert build("two-stream-i3d", "--classes", 7, "--size", 32, "--width", 0.1, "--out", out) == 0
    manifest = tomllib.loads((out / "model.toml").read_text())
    assert (out / "labels.txt").read_text().splitlines() == [f"class {n}" for n in range(7)]
    assert [s["kind"] for s in manifest["stream"]] == ["rgb", "flow"]
    for stream in manifest["stream"]:
        assert (stream["frames"], stream["size"], stream["fit"]) == (64, [32, 32], "crop")
        (file,) = stream["file"]
        assert file["sha256"] == sha256(out / file["path"])
        model = onnx.load(out / file["path"])
        for node in [n for n in model.graph.node if n.op_type == "Concat"]:
            model.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], 1, None))
        channels = {"rgb": 3, "flow": 2}[stream["kind"]]
        x = np.random.default_rng(1).uniform(-1, 1, (1, channels, 16, 32, 32)).astype(np.float32)
        logits, *maps = session(model).run(None, {"input": x})
        assert logits.shape == (1, 7)
        assert all(0.1 < np.sqrt((m**2).mean()) < 10 for m in [logits, *maps])
    assert manifest["stream"][1]["bound"] == pytest.approx(20 * 32 / 224, abs=1e-3)


def test_the_seed_says_the_weights(tmp_path: Path) -> None:
    sums = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(number)
        build("two-stream-i3d", "--classes", 3, "--size", 32, "--width", 0.1, "--seed", seed, "--out", out)
        sums.append(sha256(out / "rgb.onnx"))
    assert sums[0] == sums[1] != sums[2]


def test_labels_are_the_file_s(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("sit\n\n run \n")
    common = ("two-stream-i3d", "--size", 32, "--width", 0.1, "--labels", labels)
    assert build(*common, "--out", tmp_path / "model") == 0
    assert (tmp_path / "model" / "labels.txt").read_text() == "sit\nrun\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--labels", "twice.txt"), "label 'a' stands twice"),
        (("--labels", "none.txt"), "no labels in it"),
        (("--labels", "lost.txt"), "cannot read the labels"),
        (("--labels", "two.txt", "--classes", "3"), "2 labels for 3 classes"),
        (("--size", "8"), "16 to 1024"),
        (("--width", "0"), "--width"),
        (("--classes", "0"), "--classes"),
        (("--out", "full"), "exists already"),
    ],
)
def test_mistakes_are_told_in_a_sentence_and_leave_nothing(
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("twice.txt").write_text("a\nb\na\n")
    Path("two.txt").write_text("a\nb\n")
    Path("none.txt").write_text(" \n")
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert build("two-stream-i3d", "--out", "model", *arguments) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert sorted(tmp_path.rglob("*")) == before
