"""`factory build`: models of the paper's architectures with random weights."""

import json
import math
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from actiond_factory import __main__ as command
from actiond_factory import intake
from actiond_factory.architectures import ARCHITECTURES
from actiond_factory.model import Stream, log_softmax, session, sha256
from actiond_factory.toml import tomllib

ROOT = Path(__file__).parents[3]


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


# What the paper's Table 1 says: parameters in millions, training frames (RGB, flow) and seconds, then testing.
TABLE = {
    "convnet-lstm": (9, (25, 0, 5), (50, 0, 10)),
    "3d-convnet": (79, (16, 0, 0.64), (240, 0, 9.6)),
    "two-stream": (12, (1, 10, 0.4), (25, 250, 10)),
    "3d-fused": (39, (5, 50, 2), (25, 250, 10)),
    "two-stream-i3d": (25, (64, 64, 2.56), (250, 250, 10)),
}


@pytest.mark.parametrize("name", TABLE)
def test_parameters_and_footprints_are_table_1_s(name: str, tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert build(name, "--out", out) == 0
    manifest = tomllib.loads((out / "model.toml").read_text())
    assert len((out / "labels.txt").read_text().splitlines()) == 400
    parameters, training, testing = TABLE[name]
    counted = 0
    architecture = ARCHITECTURES[name]
    streams = []
    for stream in manifest["stream"]:
        path = out / stream["file"][0]["path"]
        model = onnx.load(path)
        path.unlink()
        props = {p.key: p.value for p in model.metadata_props}
        assert props["architecture"] == name
        counted += sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
        # The graph's input is what the manifest says.
        fields = {key: stream[key] for key in ("name", "kind", "frames", "step", "layout")}
        read = Stream(**fields, size=tuple(stream["size"]), stack=stream.get("stack", 1))
        streams.append(read)
        told = {key: float(props[f"footprint.{key}"]) for key in ("rgb", "flow", "seconds")}
        assert told == pytest.approx(architecture.footprint([read]))
        dims = [d.dim_value or d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim]
        assert [read.frames if d == "T" else d for d in dims] == read.shape(read.frames)
        assert {d for d in dims if isinstance(d, str)} == ({"T"} if name == "two-stream-i3d" else set())
        for state in stream.get("state", []):
            assert state["shape"] == [1, 1, 512]
    # The paper's whole millions are cut for some networks and rounded for others.
    assert parameters in (counted // 10**6, round(counted / 1e6)), counted
    assert tuple(architecture.footprint(streams).values()) == training
    if name != "two-stream-i3d":
        examples = testing[0] / training[0]
        assert testing == tuple(pytest.approx(examples * n) for n in training)


def actiond() -> Path:
    """The daemon, if it was built."""
    path = Path(os.environ.get("ACTIOND", ROOT / "target" / "release" / "actiond"))
    if not path.is_file():
        pytest.skip(f"{path}: actiond is not built (cargo build --release, or say where it is with ACTIOND)")
    return path


@pytest.mark.parametrize("backend", ["tract", "cpu"])
@pytest.mark.parametrize("name", TABLE)
def test_every_architecture_runs_live(name: str, backend: str, tmp_path: Path) -> None:
    if backend == "cpu" and not ((ROOT / "runtime" / "onnxruntime").is_dir() or "ORT_DYLIB_PATH" in os.environ):
        pytest.skip("there is no ONNX Runtime in runtime/ (scripts/setup)")
    binary = actiond()
    model = tmp_path / "model"
    assert build(name, "--classes", 3, "--size", 32, "--width", 0.1, "--out", model) == 0
    source = ["--source", str(ROOT / "demo" / "demo.mp4"), "--until-end", "--journal", str(tmp_path / "journal")]
    command = [str(binary), "run", "--model", str(model), "--backend", backend, *source]
    command += [] if name == "convnet-lstm" else ["--hop", "40"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    hops = int(re.search(r"(\d+) hops, 0 more left out as nothing moved, 0 frames in none", done.stderr)[1])
    assert hops > 30


def whole_video(stream: intake.Stream, model: Path, clip: list[intake.Frames], hop: int, reach: int) -> np.ndarray:
    """What `actiond infer` makes of a clip (`src/clip.rs`): convolutionally as a whole where the graph allows it, else
    the mean of its hops' predictions, the first when the model's longest stream (`reach`) is full and one at the clip's
    end; 25 samples of Two-Stream; the last hop where state is carried from hop to hop."""
    run = session(model / stream.files["f32"])
    count = len(clip)
    open_time = isinstance(run.get_inputs()[0].shape[2], str)
    if open_time and stream.step == 1 and count >= stream.reach:
        whole = replace(stream, frames=count)
        return run.run(["logits"], {"input": intake.tensor(whole, 0, clip, count)})[0][0]
    ends = [*range(reach, count + 1, hop)]
    ends += [count] if not stream.state and ends[-1] != count else []
    if samples := tomllib.loads((model / "model.toml").read_text()).get("samples"):
        ends = [reach + math.floor(i * (count - reach) / (samples - 1) + 0.5) for i in range(samples)]
    carried = {name: np.zeros(shape, np.float32) for name, shape in stream.state}
    answers = []
    for end in ends:
        shown = clip[max(end - stream.reach, 0) : end]
        x = intake.tensor(stream, 0, shown, stream.reach)
        logits, *state = run.run(["logits", *(f"{name}_next" for name in carried)], {"input": x, **carried})
        carried = dict(zip(carried, state, strict=True))
        answers.append(logits[0])
    # What a network with a memory says last it says of the whole clip (the paper's ConvNet+LSTM).
    return answers[-1] if stream.state else np.log(np.exp(log_softmax(np.array(answers))).mean(0))


@pytest.mark.parametrize("name", TABLE)
def test_actiond_computes_what_onnx_runtime_does_from_the_manifest_on(name: str, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    binary = actiond()
    path = tmp_path / "clip.mp4"
    rng = np.random.default_rng(1)
    texture = cv2.GaussianBlur(rng.integers(0, 255, (96, 160, 3), np.uint8), (9, 9), 0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, (96, 80))
    for t in range(70):
        writer.write(np.ascontiguousarray(texture[8:88, t // 2 : t // 2 + 96]))
    writer.release()
    model = tmp_path / "model"
    assert build(name, "--classes", 5, "--size", 32, "--width", 0.1, "--out", model) == 0
    command = [str(binary), "infer", str(model), str(path), "--backend", "tract", "--json"]
    command += [] if name == "convnet-lstm" else ["--hop", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    protocols = {"convnet-lstm": "last-hop", "two-stream": "samples", "two-stream-i3d": "whole"}
    assert report["protocol"] == protocols.get(name, "hops")
    _, streams = intake.read_manifest(model)
    reach = max(stream.reach for stream in streams)
    for stream in streams:
        clip = list(intake.frames(path, [stream]))
        assert report["frames"] == len(clip) == 70
        expected = whole_video(stream, model, clip, 5, reach)
        assert np.ptp(expected) > 0.1
        np.testing.assert_allclose(report["streams"][stream.name]["logits"], expected, atol=2e-3)
