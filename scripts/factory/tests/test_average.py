"""`factory average`: the arithmetic, what is left out of the new folder, and what does not fit together."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from actiond_factory import __main__ as command
from actiond_factory.model import session
from actiond_factory.quantize import list_file
from actiond_factory.toml import tomllib


def factory(*arguments: object) -> int:
    """Exit code of a command."""
    return command.main([str(a) for a in arguments])


def build(out: Path, *more: object, architecture: str = "two-stream") -> Path:
    """A small model with random weights."""
    options = ("--classes", 3, "--size", 32, "--width", 0.1, "--out", out, *more)
    assert factory("build", architecture, *options) == 0
    return out


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two of one graph and other weights. B lists int8 files too, as if it had been quantized."""
    root = tmp_path_factory.mktemp("models")
    a, b = build(root / "a", "--seed", 1), build(root / "b", "--seed", 2)
    for stream in ("rgb", "flow"):
        (b / f"{stream}.int8.onnx").write_bytes(b"of B's own weights")
        list_file(b, stream, "int8", f"{stream}.int8.onnx")
    (b / "int8.json").write_text("{}")
    (b / "model.toml").write_text("# a comment of B's\n" + (b / "model.toml").read_text())
    return a, b


@pytest.fixture
def a(models: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of A to spoil."""
    return Path(shutil.copytree(models[0], tmp_path / "a"))


def weights(path: Path) -> dict[str, np.ndarray]:
    """By name."""
    return {w.name: numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer}


def test_named_streams_are_the_weighted_mean_and_the_rest_is_b(models: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = models
    out = tmp_path / "mixed"
    assert factory("average", a, b, "--share", "rgb=0.65", "--out", out) == 0
    first, second, mixed = (weights(folder / "rgb.onnx") for folder in (a, b, out))
    assert list(mixed) == list(second)
    floats = [name for name, value in mixed.items() if value.dtype == np.float32]
    assert len(floats) > 100
    for name in floats:
        np.testing.assert_allclose(mixed[name], 0.65 * first[name] + 0.35 * second[name], rtol=1e-5, atol=1e-7)
    assert any(not np.allclose(mixed[name], second[name]) for name in floats)
    onnx.checker.check_model(onnx.load(out / "rgb.onnx"), full_check=True)
    assert (out / "flow.onnx").read_bytes() == (b / "flow.onnx").read_bytes()
    # No file that was quantized from other weights, in the folder or in the manifest; all else is B's.
    assert sorted(p.name for p in out.iterdir()) == ["flow.onnx", "labels.txt", "model.toml", "rgb.onnx"]
    text = (out / "model.toml").read_text()
    assert text.startswith("# a comment of B's\n")
    manifest, theirs = tomllib.loads(text), tomllib.loads((b / "model.toml").read_text())
    for stream in (*manifest["stream"], *theirs["stream"]):
        files = stream.pop("file")
        if len(files) == 1:
            digest = hashlib.sha256((out / f"{stream['name']}.onnx").read_bytes()).hexdigest()
            assert files == [{"precision": "f32", "path": f"{stream['name']}.onnx", "sha256": digest}]
    assert manifest == theirs


def test_models_of_two_picture_sizes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    small = build(tmp_path / "a", "--seed", 1, architecture="two-stream-i3d")
    large = build(tmp_path / "b", "--seed", 2, "--size", 64, architecture="two-stream-i3d")
    shares = ("--share", "rgb=0.3", "--share", "flow=0.5")
    assert factory("average", small, large, *shares, "--out", tmp_path / "both") == 0
    # A bound that is another share of the picture is flow of another scale.
    manifest = large / "model.toml"
    bound = tomllib.loads(manifest.read_text())["stream"][1]["bound"]
    manifest.write_text(manifest.read_text().replace(f"bound = {bound}", f"bound = {bound + 1}"))
    assert factory("average", small, large, *shares, "--out", tmp_path / "neither") == 2
    assert "stream flow: size is" in capsys.readouterr().err
    assert factory("average", small, large, *shares[:2], "--out", tmp_path / "rgb") == 0
    first, second, mixed = (weights(folder / "rgb.onnx") for folder in (small, large, tmp_path / "rgb"))
    name = "Mixed_4c/Branch_0/Conv3d_0a_1x1/weight"
    np.testing.assert_allclose(mixed[name], 0.3 * first[name] + 0.7 * second[name], rtol=1e-5, atol=1e-7)
    x = np.random.default_rng(1).uniform(-1, 1, (1, 3, 64, 64, 64)).astype(np.float32)
    made, theirs = (session(folder / "rgb.onnx").run(None, {"input": x})[0] for folder in (tmp_path / "rgb", large))
    assert made.shape == theirs.shape and not np.allclose(made, theirs), "it runs, at B's size"


def test_the_whole_of_one_is_that_one(models: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = models
    assert factory("average", a, b, "--share", "rgb=1", "--share", "flow=0", "--out", tmp_path / "mixed") == 0
    for stream, source in (("rgb", a), ("flow", b)):
        mixed, whole = weights(tmp_path / "mixed" / f"{stream}.onnx"), weights(source / f"{stream}.onnx")
        assert all(np.array_equal(mixed[name], whole[name]) for name in whole)


def spoil_labels(a: Path) -> None:
    (a / "labels.txt").write_text("class 0\nsomething else\nclass 2\n")


def fewer_labels(a: Path) -> None:
    (a / "labels.txt").write_text("class 0\nclass 1\n")


def another_bound(a: Path) -> None:
    text = (a / "model.toml").read_text()
    (a / "model.toml").write_text(text.replace("range = [-1.0, 1.0]", "range = [0.0, 1.0]"))


def another_node(a: Path) -> None:
    graph = onnx.load(a / "rgb.onnx")
    next(n for n in graph.graph.node if n.op_type == "Relu").op_type = "Sigmoid"
    onnx.save(graph, a / "rgb.onnx")


def a_node_more(a: Path) -> None:
    graph = onnx.load(a / "rgb.onnx")
    graph.graph.node.append(onnx.helper.make_node("Identity", ["input"], ["more"]))
    onnx.save(graph, a / "rgb.onnx")


def another_shape(a: Path) -> None:
    graph = onnx.load(a / "rgb.onnx")
    w = next(w for w in graph.graph.initializer if w.data_type == onnx.TensorProto.FLOAT)
    w.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(w)[:1], w.name))
    onnx.save(graph, a / "rgb.onnx")


def a_weight_less(a: Path) -> None:
    graph = onnx.load(a / "rgb.onnx")
    del graph.graph.initializer[0]
    onnx.save(graph, a / "rgb.onnx")


def no_f32(a: Path) -> None:
    text = (a / "model.toml").read_text()
    (a / "model.toml").write_text(text.replace('precision = "f32"', 'precision = "f16"', 1))


def no_onnx(a: Path) -> None:
    (a / "rgb.onnx").write_bytes(b"\x00garbage")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (spoil_labels, "label 2 is `something else` in "),
        (fewer_labels, "labels.txt has 2 labels, "),
        (another_bound, "stream rgb: range is (0.0, 1.0) in "),
        (another_node, "are not the same graph: node "),
        (a_node_more, "are not the same graph: "),
        (another_shape, "of float in "),
        (a_weight_less, "is in one of them only"),
        (no_f32, "stream rgb has no f32 file (only f16)"),
        (no_onnx, "not an ONNX file"),
    ],
)
def test_what_does_not_fit_is_one_sentence(spoil, sentence: str, a: Path, models, tmp_path: Path, capsys) -> None:
    spoil(a)
    capsys.readouterr()
    assert factory("average", a, models[1], "--share", "rgb=0.5", "--out", tmp_path / "mixed") == 2
    text = capsys.readouterr().err
    assert sentence in text
    assert len(text.strip().splitlines()) == 1
    assert not (tmp_path / "mixed").exists()


@pytest.mark.parametrize(
    ("shares", "sentence"),
    [
        (("rgb=1.5",), "--share rgb=1.5: write a stream and a share from 0 to 1"),
        (("rgb",), "--share rgb: write a stream"),
        (("rgb=nan",), "--share rgb=nan: write"),
        (("rgb=0.5", "rgb=0.6"), "`rgb` is named twice"),
        (("depth=0.5",), "no stream `depth`; it has rgb, flow"),
    ],
)
def test_wrong_shares(shares: tuple[str, ...], sentence: str, models, tmp_path: Path, capsys) -> None:
    options = [part for share in shares for part in ("--share", share)]
    assert factory("average", *models, *options, "--out", tmp_path / "mixed") == 2
    assert sentence in capsys.readouterr().err


def test_other_architectures_and_folders_that_exist(models: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    other = build(tmp_path / "other", architecture="two-stream-i3d")
    assert factory("average", other, models[1], "--share", "rgb=0.5", "--out", tmp_path / "mixed") == 2
    assert "stream rgb: layout is" in capsys.readouterr().err
    assert factory("average", *models, "--share", "rgb=0.5", "--out", other) == 2
    assert "exists already" in capsys.readouterr().err


def test_labels_that_are_no_text_or_lie_elsewhere(models: tuple[Path, Path], a: Path, tmp_path: Path, capsys) -> None:
    options = ("--share", "rgb=0.5", "--out", tmp_path / "mixed")
    (a / "labels.txt").write_bytes(b"caf\xe9\n")
    assert factory("average", a, models[1], *options) == 2
    assert f"{a / 'labels.txt'}: labels are UTF-8 text" in capsys.readouterr().err
    (tmp_path / "escaped.txt").write_text("class 0\nclass 1\nclass 2\n")
    text = (a / "model.toml").read_text()
    (a / "model.toml").write_text(text.replace("labels.txt", "../escaped.txt"))
    assert factory("average", models[0], a, *options) == 2
    assert "labels = '../escaped.txt'; it is the path of a file in the model's folder" in capsys.readouterr().err
    (a / "model.toml").write_text(text.replace('labels = "labels.txt"\n', ""))
    assert factory("average", models[0], a, *options) == 2
    assert "labels is missing" in capsys.readouterr().err
    assert not (tmp_path / "mixed").exists()
