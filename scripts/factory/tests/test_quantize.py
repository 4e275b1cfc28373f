"""`factory quantize`: the graph in s8, its report, TensorRT's rules, and clips seen as the daemon sees them."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from actiond_factory import __main__ as command
from actiond_factory import int8, intake, qdq, quantize
from actiond_factory.data import SIZE
from actiond_factory.graph import Graph
from actiond_factory.model import session, sha256
from actiond_factory.toml import tomllib

av = pytest.importorskip("av", reason="PyAV is not installed: it decodes clips")
ROOT = Path(__file__).parents[3]


def make_clip(path: Path, seconds: float = 4.0, rate: int = 25, size: tuple[int, int] = (96, 72)) -> Path:
    """A bright square that circles over a gradient."""
    width, height = size
    path.parent.mkdir(parents=True, exist_ok=True)
    back = np.add.outer(np.arange(height) * 90 // height, np.arange(width) * 90 // width).astype(np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 2_000_000
        for i in range(round(seconds * rate)):
            picture = np.repeat(back[:, :, None], 3, 2)
            angle = 2.5 * i / rate
            x, y = int(width * (0.4 + 0.3 * np.cos(angle))), int(height * (0.4 + 0.3 * np.sin(angle)))
            picture[y : y + height // 4, x : x + width // 5] = (230, 200, 40)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return path


def factory(*arguments: object) -> int:
    """Exit code of a command."""
    return command.main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips, one of them in a folder below, and what is no clip."""
    root = tmp_path_factory.mktemp("clips")
    make_clip(root / "a.mp4", 6.0)
    make_clip(root / "below" / "b.avi", 4.0, rate=15, size=(80, 80))
    (root / "notes.txt").write_text("not a clip")
    return root


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow I3D of 32 pixels with random weights."""
    out = tmp_path_factory.mktemp("built") / "i3d"
    assert factory("build", "two-stream-i3d", "--classes", 5, "--size", 32, "--width", 0.1, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def model(built: Path, clips: Path) -> Path:
    """The same, quantized."""
    arguments = ("--calibration", 2, "--clips", 2, "--method", "minmax", "--equalize", "no")
    assert factory("quantize", built, clips, *arguments) == 0
    return built


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    out = tmp_path / "copy"
    out.mkdir()
    for file in model.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    return out


def test_the_folder_lists_its_int8_files_once(model: Path) -> None:
    manifest = tomllib.loads((model / "model.toml").read_text())
    for stream in manifest["stream"]:
        f32, s8 = stream["file"]
        assert (f32["precision"], s8["precision"]) == ("f32", "int8")
        assert s8["path"] == f"{stream['name']}.int8.onnx"
        assert s8["sha256"] == sha256(model / s8["path"])
    # Random weights are said to be so, and the report is whole.
    report = json.loads((model / "int8.json").read_text())
    assert "agreement" in report["note"]
    assert list(report["streams"]) == ["rgb", "flow"]


def test_the_graph_stays_open_in_time_and_its_trunk_is_s8(model: Path) -> None:
    for name in ("rgb", "flow"):
        graph = onnx.load(model / f"{name}.int8.onnx")
        onnx.checker.check_model(graph, full_check=True)
        assert graph.opset_import[0].version == 17
        assert graph.graph.input[0].type.tensor_type.shape.dim[2].dim_param == "T"
        assert qdq.check(graph) == []
        producer = {o: n for n in graph.graph.node for o in n.output}
        stored = {w.name: numpy_helper.to_array(w) for w in graph.graph.initializer}
        inside = [n for n in graph.graph.node if n.op_type in ("Conv", "MaxPool", "Concat", "AveragePool")]
        assert len(inside) == 58 + 13 + 9 + 1
        for node in inside:
            if node.name.startswith("Logits/Conv"):
                continue
            data = list(node.input) if node.op_type == "Concat" else [node.input[0]]
            assert all(producer[d].op_type == "DequantizeLinear" for d in data), node.name
            if node.op_type == "Concat":
                assert len({producer[d].input[1] for d in data}) == 1, "one scale, by name"
        (first,) = (n for n in graph.graph.node if n.input[0] == "input")
        assert stored[first.input[1]] == np.float32(1 / 127), "zero and the ends of the input are exact"


def test_the_report_s_noise_is_the_graph_s(model: Path, clips: Path) -> None:
    report = json.loads((model / "int8.json").read_text())
    _, streams = intake.read_manifest(model)
    for number, stream in enumerate(streams):
        entry = report["streams"][stream.name]
        assert len(entry["layers"]) == 58
        assert [e["layer"] for e in entry["layers"] if e["precision"] == "f32"] == ["Logits/Conv3d_0c_1x1"]
        inner = [e for e in entry["layers"] if e["precision"] == "int8"]
        assert all(15 < e["own_db"] < 99 and 10 < e["total_db"] for e in inner)
        # The first layer's noise is its own.
        assert inner[0]["own_db"] == pytest.approx(inner[0]["total_db"], abs=0.01)
        x = intake.windows(clips / "a.mp4", streams, 1)[0][number]
        f32, s8 = (
            session(model / stream.files[p]).run(None, {"input": x})[0].astype(np.float64) for p in ("f32", "int8")
        )
        noise = 10 * np.log10((f32**2).sum() / ((f32 - s8) ** 2).sum())
        assert noise > 15
        assert entry["sqnr_db"] > 15


def test_layers_that_lose_too_much_stay_f32(built: Path, clips: Path, copy: Path) -> None:
    layers = json.loads((copy / "int8.json").read_text())["streams"]["rgb"]["layers"]
    noise = sorted(e["own_db"] for e in layers if "own_db" in e)
    limit = (noise[2] + noise[3]) / 2
    arguments = ("--calibration", 2, "--clips", 2, "--method", "minmax", "--equalize", "no", "--min-sqnr", limit)
    assert factory("quantize", copy, clips, *arguments, "--keep", "Conv3d_1a_7x7") == 0
    again = json.loads((copy / "int8.json").read_text())["streams"]["rgb"]
    kept = {e["layer"]: e["because"] for e in again["layers"] if e["precision"] == "f32"}
    assert kept["Conv3d_1a_7x7"] == "--keep"
    lossy = {e["layer"] for e in layers if e.get("own_db", 99) < limit}
    assert len(lossy) == 3
    assert lossy <= set(kept)
    graph = onnx.load(copy / "rgb.int8.onnx")
    weights = {w.name: w.data_type for w in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type == "Conv":
            assert (weights.get(node.input[1]) == TensorProto.FLOAT) == (node.name in kept)
    assert qdq.check(graph) == []


def test_the_default_method_chooses_by_what_it_measures(copy: Path, clips: Path) -> None:
    assert factory("quantize", copy, clips, "--calibration", 2, "--clips", 2) == 0
    report = json.loads((copy / "int8.json").read_text())
    for entry in report["streams"].values():
        method, text = entry["method"].split(", ")
        assert method in int8.METHODS
        assert text in ("as it is", "equalized")


def test_every_architecture_is_quantized(clips: Path, tmp_path: Path) -> None:
    for name in ("convnet-lstm", "3d-convnet", "two-stream", "3d-fused"):
        out = tmp_path / name
        assert factory("build", name, "--classes", 5, "--size", 32, "--width", 0.1, "--out", out) == 0
        arguments = ("--calibration", 2, "--clips", 2, "--method", "percentile", "--equalize", "no")
        assert factory("quantize", out, clips, *arguments) == 0
        assert factory("quantize", "--check", out) == 0


def test_files_that_are_there_are_measured_and_left_alone(model: Path, copy: Path, clips: Path, capsys) -> None:
    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    assert factory("quantize", "--measure", copy, clips, "--clips", 4) == 0
    said = capsys.readouterr().out
    assert said.startswith("4 windows measure\n")
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == before
    # By the manifest's rule, on the very windows, computed here anew.
    manifest, streams = intake.read_manifest(model)
    assert manifest["fusion"] == {"rule": "probabilities"}
    windows = [w for path in intake.find_clips(clips) for w in intake.windows(path, streams, 2)]
    fused = {}
    for precision in ("f32", "int8"):
        rows = []
        for window in windows:
            logits = [
                session(model / s.files[precision]).run(None, {"input": x})[0].reshape(-1)
                for s, x in zip(streams, window, strict=True)
            ]
            rows.append(sum(np.exp(v) / np.exp(v).sum() for v in logits))
        fused[precision] = np.array(rows)
    same = (fused["f32"].argmax(1) == fused["int8"].argmax(1)).mean()
    assert len(windows) == 4
    assert f"fused by the manifest's rule: first label agrees with f32 in {same * 100:.1f} %" in said
    # Where int8 says something else, it is seen: the classifier's rows are each another class's.
    graph = onnx.load(copy / "rgb.int8.onnx")
    for name in ("Logits/Conv3d_0c_1x1/weight", "Logits/Conv3d_0c_1x1/bias"):
        w = weight(graph, name)
        w.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(w), 1, 0) * 50, name))
    onnx.save(graph, copy / "rgb.int8.onnx")
    assert factory("quantize", "--measure", copy, clips, "--clips", 4) == 0
    assert "manifest's rule: first label agrees with f32 in 0.0 %" in capsys.readouterr().out
    (copy / "model.toml").write_text(
        (copy / "model.toml").read_text().replace('precision = "int8"', 'precision = "f16"')
    )
    assert factory("quantize", "--measure", copy, clips) == 2
    assert "stream rgb has only f32, f16; f32 and int8 are compared" in capsys.readouterr().err


def test_names_to_keep_may_be_patterns(copy: Path, clips: Path, capsys) -> None:
    arguments = ("--calibration", 2, "--clips", 2, "--method", "minmax", "--equalize", "no")
    assert factory("quantize", copy, clips, *arguments, "--keep", "Conv3d_2b_1x1", "Mixed_3b/*1x1") == 0
    layers = json.loads((copy / "int8.json").read_text())["streams"]["rgb"]["layers"]
    kept = {e["layer"] for e in layers if e.get("because") == "--keep"}
    branches = {f"Mixed_3b/Branch_{n}" for n in range(4)}
    assert {name.rpartition("/")[0] for name in kept} == {"", *branches}
    assert len(kept) == 5
    assert factory("quantize", "--check", copy) == 0
    capsys.readouterr()
    assert factory("quantize", copy, clips, *arguments, "--keep", "Mixed_9*") == 2
    assert "--keep names no node of it: Mixed_9*" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda m, c: (m, c / "below" / "nothing"), "no such file or folder"),
        (lambda m, c: (m / "nowhere", c), "no model.toml in it"),
        (lambda m, c: (m, m), "no clips in it or below; clips are video files"),
    ],
)
def test_bad_input_is_one_sentence(spoil, sentence: str, copy: Path, clips: Path, capsys) -> None:
    assert factory("quantize", *spoil(copy, clips)) == 2
    text = capsys.readouterr().err
    assert sentence in text
    assert len(text.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--calibration", 0), "--calibration 0: must be 1 or more"),
        (("--calibration", -3), "--calibration -3: must be 1 or more"),
        (("--clips", 0), "--clips 0: must be 1 or more"),
        (("--min-sqnr", "nan"), "--min-sqnr nan: must be a number"),
        (("--model", "other"), "--model other and "),
    ],
)
def test_bad_options(options, said: str, model: Path, clips: Path, capsys) -> None:
    assert factory("quantize", model, clips, *options) == 2
    assert capsys.readouterr().err.startswith(f"factory quantize: {said}")


def test_the_model_may_be_an_option(model: Path, clips: Path, capsys) -> None:
    assert factory("quantize", "--measure", "--model", model, clips, "--clips", 2) == 0
    assert capsys.readouterr().out.startswith("2 windows measure\n")
    assert factory("quantize", "--check", "--model", model) == 0


def test_a_text_is_no_clip(model: Path, clips: Path, capsys) -> None:
    assert factory("quantize", model, clips / "notes.txt") == 2
    assert "notes.txt: no video file by its name" in capsys.readouterr().err


def test_an_error_names_the_model_and_not_its_copy(copy: Path, clips: Path, capsys) -> None:
    (copy / "rgb.onnx").write_bytes(b"\0garbage")
    assert factory("quantize", copy, clips, "--calibration", 1, "--clips", 1) == 2
    assert f"factory quantize: {copy / 'rgb.onnx'}: not an ONNX file" in capsys.readouterr().err


def test_clips_that_cannot_be_decoded(copy: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "x.mp4").write_bytes(b"no video at all" * 100)
    before = (copy / "model.toml").read_text()
    assert factory("quantize", copy, folder) == 2
    assert "x.mp4: can't be decoded" in capsys.readouterr().err
    (folder / "y.mkv").write_bytes(b"")
    assert factory("quantize", copy, folder) == 2
    assert "none of its 2 clips can be decoded" in capsys.readouterr().err
    assert (copy / "model.toml").read_text() == before


def test_a_model_without_f32(copy: Path, clips: Path, capsys) -> None:
    text = (copy / "model.toml").read_text()
    (copy / "model.toml").write_text(text.replace('precision = "f32"', 'precision = "f16"', 1))
    assert factory("quantize", copy, clips) == 2
    assert "stream rgb has no f32 file (only f16, int8)" in capsys.readouterr().err
    (copy / "model.toml").write_text(text)
    (copy / "rgb.onnx").write_bytes((copy / "rgb.int8.onnx").read_bytes())
    assert factory("quantize", copy, clips) == 2
    assert "is quantized already" in capsys.readouterr().err
    (copy / "rgb.onnx").write_bytes(b"\x00garbage")
    assert factory("quantize", copy, clips) == 2
    assert "not an ONNX file" in capsys.readouterr().err
    (copy / "rgb.onnx").unlink()
    assert factory("quantize", copy, clips) == 2
    assert "rgb.onnx: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('fit = "crop"', 'fit = "foo"', "fit = 'foo'; it is one of squeeze, letterbox, crop"),
        ('dtype = "f32"', 'dtype = "i64"', "dtype = 'i64'; it is one of f32, u8"),
        ("step = 1", "step = 0", "step = 0; it is a whole number"),
        ("step = 1", "step = true", "step = True; it is a whole number"),
        ("frames = 64", 'frames = "64"', "frames = '64'; it is a whole number"),
        ("frames = 64", "frames = 0", "frames = 0; it is a whole number"),
        ("frames = 64", "frames = 65", "reaches over 65 frames"),
        ('kind = "rgb"', 'kind = "sound"', "kind = 'sound'; it is one of"),
        ('layout = "NCTHW"', 'layout = "TCHW"', "layout = 'TCHW'; it is one of"),
        ("size = [32, 32]", "size = [0, 32]", "size = [0, 32]; it is the width"),
        ("size = [32, 32]", "size = 32", "size = 32; it is the width"),
        ("range = [-1.0, 1.0]", 'range = ["-1", "1"]', "range = ['-1', '1']; it is two"),
        ("range = [-1.0, 1.0]", "range = [nan, 1.0]", "it is two different numbers"),
        ('path = "rgb.onnx"', "path = 7", "path = 7; it is the path of a file in the model's folder"),
        ('path = "rgb.onnx"', 'path = "../rgb.onnx"', "path = '../rgb.onnx'; it is the path"),
        ('path = "rgb.onnx"', 'path = "/rgb.onnx"', "path = '/rgb.onnx'; it is the path"),
        ('labels = "labels.txt"', 'labels = "../labels.txt"', "labels = '../labels.txt'; it is the path"),
        ('precision = "f32"', "precision = 4", "precision = 4; it is one of"),
        ("[fusion]", "[[fusion]]", "fusion: is [{"),
        ('rule = "probabilities"', 'rule = "best"', "fusion: rule = 'best'; it is one of"),
        ('dtype = "f32"', 'flow = { algorithm = "dis", preset = "slow" }', "preset = 'slow'; it is one of ultrafast"),
        ('dtype = "f32"', 'flow = { algorithm = "dis", scale = 1 }', "flow: there is no scale"),
        ('dtype = "f32"', 'flow = { algorithm = "dis", patch_stride = 9 }', "patch_stride = 9; it is a whole number"),
        ('dtype = "f32"', 'flow = { algorithm = "dis", descents = 0 }', "descents = 0; it is a whole number"),
        ("bound = ", "bound = -", "it is a number of pixels above 0"),
        ('name = "flow"', 'name = "rgb"', "a second stream of this name"),
        ("size = [32, 32]", "size = [48, 48]", "is 1 x 3 x any x 32 x 32; model.toml makes it 1 x 3 x 64 x 48 x 48"),
        ('dtype = "f32"', 'dtype = "u8"', "input `input` is of float; model.toml makes it uint8"),
        ('layout = "NCTHW"', 'layout = "NTCHW"', "model.toml makes it 1 x 64 x 3 x 32 x 32"),
        ('input = "input"', 'input = "x"', "no input `x`; it has input"),
        ('output = "logits"', 'output = "scores"', "no output `scores`; it has logits"),
    ],
)
def test_a_manifest_is_checked(before: str, after: str, said: str, built: Path, tmp_path: Path, clips, capsys) -> None:
    copy = Path(shutil.copytree(built, tmp_path / "copy"))
    text = (copy / "model.toml").read_text()
    assert before in text
    (copy / "model.toml").write_text(text.replace(before, after, 1))
    files = {p.name: p.read_bytes() for p in copy.iterdir()}
    capsys.readouterr()
    assert factory("quantize", copy, clips, "--calibration", 2, "--clips", 2) == 2
    text = capsys.readouterr().err.splitlines()[-1]
    assert said in text and text.startswith(f"factory quantize: {copy}")
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == files


def test_a_stream_without_a_weight_counts_whole() -> None:
    streams = [intake.Stream(n, "rgb", 1, (2, 2), "squeeze", "NCTHW", "input", "logits", {}) for n in ("rgb", "flow")]
    logits = {("rgb", p): np.array([[1.0, 0.0]]) for p in ("f32", "int8")}
    logits |= {("flow", p): np.array([[0.0, 5.0]]) for p in ("f32", "int8")}
    rule = {"fusion": {"rule": "logits", "weights": {"rgb": 1.0}}}
    assert quantize.fusion(rule, streams, logits, np.array([1]))["top1"] == 1.0


# ---------------------------------------------------------------------------------------------- parts


def test_a_still_picture_s_error_is_half_a_step_however_long_the_kernel() -> None:
    w = np.random.default_rng(1).normal(size=(6, 3, 7, 3, 3)).astype(np.float32)
    values, scales = int8.quantized_weights(w, 0)
    assert values.dtype == np.int8
    assert np.abs(values.astype(int)).max() <= 127
    error = values * scales.reshape(-1, 1, 1, 1, 1) - w
    steps = np.abs(error) / scales.reshape(-1, 1, 1, 1, 1)
    # The largest weight of a channel is at the end of the range and can take nothing up.
    assert np.quantile(np.abs(error.sum(2)) / scales.reshape(-1, 1, 1, 1), 0.99) <= 0.5 + 1e-3
    assert steps.max() <= 1 + 1e-3
    nearest = np.rint(w / scales.reshape(-1, 1, 1, 1, 1)) * scales.reshape(-1, 1, 1, 1, 1) - w
    assert np.abs(error.sum(2)).mean() < 0.5 * np.abs(nearest.sum(2)).mean()


def test_a_gemm_s_scales_are_its_output_channels_own() -> None:
    w = np.ones((4, 3), np.float32) * np.array([1, 10, 100], np.float32)
    values, scales = int8.quantized_weights(w, 1)
    assert (values == 127).all()
    assert scales == pytest.approx(np.array([1, 10, 100]) / 127)


def test_equalizing_changes_no_result(built: Path) -> None:
    source = int8.named(onnx.load(built / "rgb.onnx"))
    # Channels of very different range, as trained networks have them.
    rng = np.random.default_rng(3)
    for w in source.graph.initializer:
        if w.name.endswith(("/weight", "/bias")) and not w.name.startswith("Logits"):
            value = numpy_helper.to_array(w)
            factors = np.exp(rng.normal(0, 1, len(value))).astype(np.float32)
            w.CopyFrom(numpy_helper.from_array(value * factors.reshape(-1, *[1] * (value.ndim - 1)), w.name))
    x = rng.uniform(-1, 1, (1, 3, 16, 32, 32)).astype(np.float32)
    fixed = int8.pinned(source, {"input": x.shape})
    changed = int8.equalized(fixed, lambda: iter([{"input": x}]))
    before, after = (session(m).run(None, {"input": x})[0] for m in (fixed, changed))
    assert before == pytest.approx(after, rel=1e-3, abs=float(1e-4 * np.abs(before).max()))
    first = [numpy_helper.to_array(m.graph.initializer[0]) for m in (fixed, changed)]
    assert not np.allclose(*first)
    # All 57 convolutions of the trunk have readers that can take their factors.
    assert len(int8.channel_readers(fixed.graph)) == 57


def test_ranges_clip_what_is_rare() -> None:
    values = np.abs(np.random.default_rng(1).normal(size=200_000))
    peak = 40.0
    counts = np.histogram([*values, peak], int8.BINS, (0, peak))[0]
    found = {method: int8.clip_at(counts, peak, method) for method in int8.METHODS}
    assert found["minmax"] == peak
    assert 3 < found["percentile"] < 5
    assert 2.5 < found["entropy"] < 8
    # One value in 200,000 that is clipped from 40 to 20 weighs as much as finer steps for all others.
    assert 10 < found["mse"] < 30


def test_calibration_asks_inside_the_graph() -> None:
    graph = Graph("g")
    x = graph.input("input", [1, 2, "T", 8, 8])
    y = graph.convolution("c", x, np.full((3, 2, 1, 1, 1), -2.0), np.zeros(3), [1, 1, 1])
    graph.node("ReduceMean", "logits", [y], axes=[2, 3, 4], keepdims=0)
    graph.output("logits", [1, 3])
    inputs = [np.zeros((1, 2, 4, 8, 8), np.float32) for _ in range(2)]
    inputs[0][0, 1, 2, 3, 3] = 5
    inputs[1][0, 0, 0, 0, 0] = -1
    fixed = int8.pinned(graph.model(), {"input": inputs[0].shape})
    peaks = int8.peaks_of(fixed, ["input", "c"], lambda: ({"input": i} for i in inputs))
    assert peaks == {"input": 5.0, "c": 10.0}


# ---------------------------------------------------------------------------------------------- TensorRT's rules


def good() -> onnx.ModelProto:
    """input -> pool -> two convolutions -> concat -> convolution, quantized."""
    rng = np.random.default_rng(2)
    graph = Graph("good")
    x = graph.input("input", [1, 4, "T", 8, 8])
    x = graph.max_pool("pool", x, (3, 3, 3), (1, 1, 1))
    branches = []
    for name in ("a", "b"):
        y = graph.convolution(name, x, rng.normal(size=(4, 4, 3, 3, 3)), rng.normal(size=4), [1, 1, 1])
        branches.append(graph.node("Relu", f"{name}/Relu", [y]))
    x = graph.node("Concat", "cat", branches, axis=1)
    x = graph.convolution("c", x, rng.normal(size=(6, 8, 1, 1, 1)), rng.normal(size=6), [1, 1, 1])
    graph.node("ReduceMean", "logits", [x], axes=[2, 3, 4], keepdims=0)
    graph.output("logits", [1, 6])
    source = int8.named(graph.model())
    what = int8.plan(source.graph, set())
    scales = {group: 0.1 + i / 10 for i, group in enumerate(sorted(set(what.group.values())))}
    return int8.quantized(source, what, scales)


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """By its name."""
    return next(n for n in model.graph.node if n.name == name)


def weight(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    """By its name."""
    return next(w for w in model.graph.initializer if w.name == name)


def put(model: onnx.ModelProto, name: str, value: np.ndarray) -> str:
    """Replaces or adds a constant."""
    left = [w for w in model.graph.initializer if w.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*left, numpy_helper.from_array(value, name)])
    return name


def zero_point(m: onnx.ModelProto) -> None:
    put(m, "zero_s8", np.array(3, np.int8))


def unsigned(m: onnx.ModelProto) -> None:
    put(m, "zero_s8", np.array(0, np.uint8))


def no_zero_point(m: onnx.ModelProto) -> None:
    del node(m, "input/QuantizeLinear").input[2]


def negative_scale(m: onnx.ModelProto) -> None:
    put(m, "c/weight/scale", np.array([-1, 1, 1, 1, 1, 1], np.float32))


def scale_per_channel_of_data(m: onnx.ModelProto) -> None:
    for name in ("input/QuantizeLinear", "input/DequantizeLinear"):
        node(m, name).input[1] = put(m, "four", np.full(4, 0.1, np.float32))
        node(m, name).input[2] = put(m, "zeros", np.zeros(4, np.int8))


def wrong_axis(m: onnx.ModelProto) -> None:
    node(m, "a/weight/DequantizeLinear").attribute[0].i = 1


def one_scale_of_weights(m: onnx.ModelProto) -> None:
    put(m, "c/weight/scale", np.array(0.1, np.float32))
    put(m, "c/weight/zero", np.array(0, np.int8))


def float_weights(m: onnx.ModelProto) -> None:
    node(m, "c").input[1] = put(m, "w", np.ones((6, 8, 1, 1, 1), np.float32))


def float_data(m: onnx.ModelProto) -> None:
    node(m, "c").input[0] = "cat"


def quantized_bias(m: onnx.ModelProto) -> None:
    inputs = [
        put(m, "bq", np.ones(6, np.int32)),
        put(m, "bs", np.ones(6, np.float32)),
        put(m, "bz", np.zeros(6, np.int32)),
    ]
    m.graph.node.insert(0, helper.make_node("DequantizeLinear", inputs, ["bias"], name="bias", axis=0))
    node(m, "c").input[2] = "bias"


def before_relu(m: onnx.ModelProto) -> None:
    for kind, source, target in (("QuantizeLinear", "a", "early/q"), ("DequantizeLinear", "early/q", "early")):
        scale = node(m, "input/QuantizeLinear").input[1]
        m.graph.node.append(helper.make_node(kind, [source, scale, "zero_s8"], [target], name=target))
    node(m, "a/Relu").input[0] = "early"


def scales_differ(m: onnx.ModelProto) -> None:
    for name in ("a/Relu/QuantizeLinear", "a/Relu/DequantizeLinear"):
        node(m, name).input[1] = put(m, "another", np.array(0.7, np.float32))


def half_of_a_concat(m: onnx.ModelProto) -> None:
    node(m, "cat").input[0] = "a/Relu"


def no_such_operator(m: onnx.ModelProto) -> None:
    m.graph.node.append(helper.make_node("Softmax", ["cat/DequantizeLinear"], ["soft"], name="soft"))


def s8_read_raw(m: onnx.ModelProto) -> None:
    m.graph.node.append(helper.make_node("Cast", ["cat/QuantizeLinear"], ["cast"], name="cast", to=1))


def pair_differs(m: onnx.ModelProto) -> None:
    node(m, "input/DequantizeLinear").input[1] = put(m, "other", np.array(0.5, np.float32))


def old_opset(m: onnx.ModelProto) -> None:
    m.opset_import[0].version = 11


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (zero_point, "has a zero point other than 0"),
        (unsigned, "is uint8; TensorRT takes int8 only"),
        (no_zero_point, "has no zero point"),
        (negative_scale, "a scale that is not a positive finite number"),
        (scale_per_channel_of_data, "has 4 scales on an activation"),
        (wrong_axis, "has its scales along axis 1 of a's weights, not 0"),
        (one_scale_of_weights, "has one scale for all its weights"),
        (float_weights, "reads s8 data, but its weights are not quantized"),
        (float_data, "has s8 weights, but its data is not quantized"),
        (quantized_bias, "Conv c has a quantized bias"),
        (before_relu, "stands between a and Relu a/Relu"),
        (scales_differ, "Concat cat has 2 different scales"),
        (half_of_a_concat, "Concat cat has inputs in s8 and others in f32"),
        (no_such_operator, "TensorRT has no s8 Softmax"),
        (s8_read_raw, "reads the s8 of cat/QuantizeLinear without a DequantizeLinear"),
        (pair_differs, "has another scale than input/QuantizeLinear"),
        (old_opset, "has opset 11"),
    ],
)
def test_what_is_against_tensorrt_s_rules_is_named(spoil, sentence: str) -> None:
    model = good()
    assert qdq.check(model) == []
    spoil(model)
    broken = qdq.check(model)
    assert any(sentence in text for text in broken), broken


def test_the_check_is_a_command(model: Path, copy: Path, tmp_path: Path, capsys) -> None:
    assert factory("quantize", "--check", model) == 0
    assert "keeps TensorRT's rules" in capsys.readouterr().out
    bad = good()
    zero_point(bad)
    onnx.save(bad, tmp_path / "bad.onnx")
    assert factory("quantize", "--check", tmp_path / "bad.onnx") == 1
    assert "zero point other than 0" in capsys.readouterr().out
    assert factory("quantize", "--check", copy / "rgb.onnx") == 1
    assert "it is not quantized" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- as the daemon sees


def test_any_rate_becomes_25_and_a_steady_motion_keeps_its_speed() -> None:
    for rate in (2, 7, 10, 12.5, 15, 24, 25, 29.97, 30, 50, 60, 120):
        cadence, before, shown = intake.Cadence(), 0.0, []
        for i in range(round(8 * rate)):
            t = i / rate
            admitted = cadence.admit(int(t * intake.SECOND))
            if admitted is None:
                continue
            ticks, repeats, factor = admitted
            for k in range(ticks):
                shown.append(before if k < repeats else t)
                if factor:
                    assert (t - before) * 100 * factor == pytest.approx(4, abs=1e-3)
            before = t
        assert abs(len(shown) - 200) <= 25 / rate + 1
        for k, t in enumerate(shown):
            assert abs(t - k / 25) <= max(0.5 / rate, 0.02) + 1e-6
    cadence = intake.Cadence()
    assert cadence.admit(0) == (1, 0, 0.0)
    assert cadence.admit(int(2.04 * intake.SECOND)) == (1, 0, 0.0), "a pause is a cut"
    assert cadence.admit(0) == (1, 0, 0.0), "so is time that jumps back"


def test_pictures_are_fitted_as_the_daemon_fits_them() -> None:
    # The numbers of src/scale.rs's own tests.
    assert intake.geometry(340, 256, "crop", (224, 224)) == ((58, 16, 224, 224), (0, 0, 224, 224))
    assert intake.geometry(1080, 1920, "crop", (112, 112))[0] == (67, 487, 945, 945)
    assert intake.geometry(1920, 1080, "letterbox", (224, 224))[1] == (0, 49, 224, 126)
    planes = (np.full((5, 7), 111, np.uint8), np.full((3, 4), 88, np.uint8), np.full((3, 4), 172, np.uint8))
    picture = intake.Picture(0, planes)
    rgb = intake.view_rgb(picture, "squeeze", (4, 4))
    assert np.abs(rgb.astype(int) - (180, 90, 30)).max() <= 3
    assert np.abs(intake.view_luma(picture, "squeeze", (8, 8)).astype(int) - 110).max() <= 1
    wide = intake.Picture(0, (np.full((2, 4, 3), 200, np.uint8),))
    rows = intake.view_rgb(wide, "letterbox", (4, 4)).reshape(4, -1)
    assert [row.all() for row in rows] == [False, True, True, False]


def frames_of(count: int) -> list[intake.Frames]:
    """Frame i: RGB 10 i + channel, flow i + channel / 2."""
    rgb = [np.full((2, 3, 3), 10 * i, np.uint8) + np.arange(3, dtype=np.uint8) for i in range(count)]
    flow = [np.full((2, 3, 2), i, np.float32) + np.array([0, 0.5], np.float32) for i in range(count)]
    return [[pair] for pair in zip(rgb, flow, strict=True)]


def test_tensors_have_the_manifest_s_layout_range_stack_and_step() -> None:
    base = intake.Stream("s", "rgb", 4, (3, 2), "squeeze", "NCTHW", "input", "logits", {}, range=(0.0, 255.0))
    shown = frames_of(10)
    x = intake.tensor(base, 0, shown, 10)
    assert x.shape == (1, 3, 4, 2, 3)
    assert x[0, :, :, 0, 0].tolist() == [[60 + c, 70 + c, 80 + c, 90 + c] for c in range(3)]
    assert intake.tensor(replace(base, layout="NTCHW"), 0, shown, 10).shape == (1, 4, 3, 2, 3)
    assert intake.tensor(replace(base, layout="NTHWC"), 0, shown, 10).shape == (1, 4, 2, 3, 3)
    assert intake.tensor(replace(base, dtype="u8"), 0, shown, 10).dtype == np.uint8
    stepped = intake.tensor(replace(base, step=3), 0, shown, 10)
    assert stepped[0, 0, :, 0, 0].tolist() == [0, 30, 60, 90]
    both = replace(base, kind="rgb+flow", frames=1, stack=3, layout="NCHW", range=(-1.0, 1.0), bound=9.0)
    x = intake.tensor(both, 0, shown, 3)
    assert x.shape == (1, 9, 2, 3)
    assert x[0, 3:, 0, 0] == pytest.approx(np.array([7, 7.5, 8, 8.5, 9, 9]) / 9), "clipped at the bound"
    # Too short a clip is looped; a position before the first frame is that frame.
    looped = intake.tensor(replace(base, frames=6), 0, frames_of(4), 6)
    assert looped[0, 0, :, 0, 0].tolist() == [0, 10, 20, 30, 0, 10]


def test_a_recording_of_any_length_is_spread_over(tmp_path: Path) -> None:
    _, streams = intake.read_manifest(ROOT / "models" / "default")
    path = make_clip(tmp_path / "long.mp4", 12.0)
    windows = intake.windows(path, streams, 3)
    assert len(windows) == 3
    assert windows[0][0].shape == (1, 3, 64, SIZE, SIZE)
    assert windows[0][1].shape == (1, 2, 64, SIZE, SIZE)
    assert not np.array_equal(windows[0][0], windows[2][0])
    assert np.abs(windows[1][1]).max() > 0.05, "the square moves"
    assert len(intake.windows(make_clip(tmp_path / "short.mp4", 1.0), streams, 3)) == 1


def test_logits_are_the_daemon_s(tmp_path: Path) -> None:
    binary = ROOT / "target" / "release" / "actiond"
    if not binary.exists():
        pytest.skip("actiond is not built: cargo build --release")
    folder = ROOT / "models" / "default"
    _, streams = intake.read_manifest(folder)
    for rate, size in ((30, (96, 72)), (18, (322, 182))):
        path = make_clip(tmp_path / f"{rate}.mp4", 3.0, rate, size)
        arguments = [binary, "infer", folder, path, "--backend", "tract", "--precision", "f32", "--json"]
        said = json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
        shown = list(intake.frames(path, streams))
        assert len(shown) == said["frames"]
        for number, stream in enumerate(streams):
            x = intake.tensor(replace(stream, frames=len(shown)), number, shown, len(shown))
            mine = session(folder / stream.files["f32"]).run(None, {stream.input: x})[0][0]
            assert mine == pytest.approx(said["streams"][stream.name]["logits"], abs=1e-3)
