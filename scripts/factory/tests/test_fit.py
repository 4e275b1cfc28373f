"""`factory fit` and `factory assemble`, on tiny clips made here: every architecture and mode, resuming, repeating."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: only the commands that train need it")
pytest.importorskip("av", reason="PyAV is not installed")

from actiond_factory import __main__ as command
from actiond_factory import clips as data
from actiond_factory import fit, twins
from actiond_factory.architectures import ARCHITECTURES
from actiond_factory.errors import BadInput
from actiond_factory.fit import Config, prepare, read_config
from actiond_factory.model import Stream
from actiond_factory.start import adopt, from_onnx, measure

ROOT = Path(__file__).parents[3]
DIRECTIONS = {"left": -1, "right": 1}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """The machine is shared, and sums come out alike."""
    torch.set_num_threads(1)


def write_clip(path: Path, speed: float, seed: int, frames: int = 20) -> None:
    """A textured square that moves by `speed` pixels a frame across noise, 25 fps, 64 x 48."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    room = cv2.GaussianBlur(rng.integers(60, 130, (48, 64, 3), np.uint8), (5, 5), 0)
    thing = cv2.GaussianBlur(rng.integers(120, 255, (20, 20, 3), np.uint8), (3, 3), 0)
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, (64, 48))
    assert out.isOpened()
    y = int(rng.integers(10, 18))
    for t in range(frames):
        picture = room.copy()
        x = round(22 + speed * (t - frames / 2)) % 44
        picture[y : y + 20, x : x + 20] = thing
        out.write(picture)
    out.release()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and held/, two classes each: to the left and to the right."""
    root = tmp_path_factory.mktemp("clips")
    for name, sign in DIRECTIONS.items():
        for number in range(4):
            write_clip(root / "train" / name / f"{number}.mp4", sign * (1.5 + number / 4), 10 + number)
        write_clip(root / "held" / name / "0.mp4", sign * 1.8, 30)
    return root


def config(clips: Path, **settings: object) -> Config:
    """A tiny flow network of the Two-Stream unless told otherwise."""
    common = {
        "architecture": "two-stream",
        "stream": "flow",
        "data": str(clips / "train"),
        "held": str(clips / "held"),
        "cache": str(clips / "cache"),
        "size": 32,
        "width": 0.1,
        "batch": 4,
        "flip": False,
        "dropout": 0.0,
        "rate": 0.05,
        "steps": 4,
        "evaluate_every": 2,
    }
    return Config(**common | settings)


def weights(run: fit.Fit) -> dict[str, torch.Tensor]:
    """A copy of everything in the network."""
    return {name: value.clone() for name, value in run.net.state_dict().items()}


def test_it_learns_which_way_things_move_and_actiond_runs_what_it_learnt(clips: Path, tmp_path: Path) -> None:
    settings = config(clips, steps=60, evaluate_every=30, batch=8)
    path = tmp_path / "run.toml"
    lines = (f"{k} = {json.dumps(v)}\n" for k, v in vars(settings).items())
    path.write_text("".join(lines))
    out = tmp_path / "flow"
    assert command.main(["train", "--config", str(path), "--out", str(out)]) == 0
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == [30, 60]
    assert log[-1]["loss"] < 0.1 and log[-1]["top1"] == 1.0
    # Everything to repeat it.
    assert read_config(out / "config.toml") == settings
    listed = [line.split("\t") for line in (out / "clips.tsv").read_text().splitlines()]
    assert len(listed) == 10 and {tuple(line[1:3]) for line in listed} == {
        (part, name) for part in ("train", "held") for name in DIRECTIONS
    }
    first = next(line for line in listed if line[1] == "train")
    assert data.file_hash(clips / "train" / first[3]) == first[0]
    assert "torch" in json.loads((out / "versions.jsonl").read_text())
    assert cv2.imread(str(out / "curves.png")).shape[1] > 500

    binary = Path(os.environ.get("ACTIOND", ROOT / "target" / "release" / "actiond"))
    if not binary.is_file():
        pytest.skip(f"{binary}: actiond is not built (cargo build --release, or say where it is with ACTIOND)")
    # Through the daemon's own decoding and flow, on clips that were held out.
    done = subprocess.run(
        [str(binary), "eval", str(out / "model"), str(clips / "held"), "--backend", "tract", "--json"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["top1"]["flow"] == 1.0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_trains_and_its_streams_make_a_model(name: str, clips: Path, tmp_path: Path) -> None:
    runs = []
    for stream in ARCHITECTURES[name].streams(32, 0.1):
        run = prepare(config(clips, architecture=name, stream=stream.name, steps=2, batch=2), tmp_path / stream.name)
        before = weights(run)
        run.run()
        changed = [k for k, v in weights(run).items() if not torch.equal(v, before[k])]
        assert all(any(k.startswith(n) for k in changed) for n, _ in run.net.named_children())
        runs.append(str(tmp_path / stream.name))
    out = tmp_path / "model"
    assert command.main(["assemble", *runs, "--out", str(out)]) == 0
    assert sorted(p.name for p in out.glob("*.onnx")) == sorted(f"{Path(run).name}.onnx" for run in runs)
    assert (out / "labels.txt").read_text() == "left\nright\n"
    assert command.main(["assemble", runs[0], runs[0], "--out", str(tmp_path / "twice")]) == 2
    assert not (tmp_path / "twice").exists()


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(clips: Path, tmp_path: Path) -> None:
    settings = config(clips, steps=7, evaluate_every=3, dropout=0.3, flip=True, patience=1)
    whole = prepare(settings, tmp_path / "whole")
    whole.run()
    prepare(settings, tmp_path / "parts").run(stop_after=4)
    second = prepare(settings, tmp_path / "parts")
    assert second.step == 4
    second.run()
    for (name, one), other in zip(weights(whole).items(), weights(second).values(), strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0, msg=name)
    assert (whole.rate, whole.best) == (second.rate, second.best)
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]
    # The same config again is the same run again.
    again = prepare(read_config(tmp_path / "whole" / "config.toml"), tmp_path / "again")
    again.run()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(again).values(), strict=True))


def test_fixed_changes_the_last_layer_only_and_full_ft_all_of_them(clips: Path, tmp_path: Path) -> None:
    base = prepare(config(clips), tmp_path / "base")
    base.run()
    kept = weights(base)
    for mode in ("fixed", "full-ft"):
        run = prepare(config(clips, mode=mode, weights=str(tmp_path / "base"), dropout=0.2), tmp_path / mode)
        begun = weights(run)
        assert all(torch.equal(begun[k], kept[k]) for k in kept if not k.startswith("logits."))
        assert not torch.equal(begun["logits.weight"], kept["logits.weight"])
        run.run()
        changed = {k for k, v in weights(run).items() if not torch.equal(v, begun[k])}
        if mode == "fixed":
            assert changed == {"logits.weight", "logits.bias"}
        else:
            assert {"logits.weight", "Conv3d_1a_7x7.conv.weight", "Conv3d_1a_7x7.norm.running_mean"} <= changed


@pytest.mark.parametrize("source", ["run", "onnx"])
def test_inflated_weights_see_a_still_picture_as_the_flat_network_did(source: str, clips: Path, tmp_path: Path) -> None:
    flat = prepare(config(clips, stream="rgb", steps=2), tmp_path / "flat")
    flat.run()
    fit.write_model([tmp_path / "flat"], tmp_path / "model")
    origin = tmp_path / ("flat" if source == "run" else "model/rgb.onnx")
    settings = config(
        clips, architecture="two-stream-i3d", stream="rgb", mode="inflated", weights=str(origin), steps=1, batch=2
    )
    run = prepare(settings, tmp_path / "i3d")
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    one, video = flat.net.eval(), run.net.eval()
    with torch.no_grad():
        # The first layer's middle: no end of time in its kernel's sight, and batch norm as it was.
        picture = one.Conv3d_1a_7x7(x)
        still = video.Conv3d_1a_7x7(x[:, :, None].expand(-1, -1, 16, -1, -1))
        torch.testing.assert_close(still[:, :, 4], picture, atol=1e-5, rtol=1e-4)
    assert torch.equal(
        run.net.mixed["Mixed_3b"].Branch_1["Conv3d_0b_3x3"].conv.weight[:, :, 1] * 3,
        run.net.mixed["Mixed_3b"].Branch_1["Conv3d_0b_3x3"].conv.weight.sum(2),
    )
    run.run()
    # RGB's weights do for flow: its stem sees the mean of the channels.
    prepare(
        config(clips, architecture="3d-fused", stream="rgb+flow", mode="inflated", weights=str(origin), batch=2),
        tmp_path / "fused",
    )


def test_batch_norm_that_was_folded_away_is_measured_anew_and_changes_nothing() -> None:
    torch.manual_seed(1)
    (stream, _) = ARCHITECTURES["two-stream-i3d"].streams(32, 0.1)
    net = twins.TWINS["two-stream-i3d"](stream, 3, 0.1, 0.0)
    for _, unit in twins.units(net):
        unit.norm.running_mean.normal_(std=0.2)
        unit.norm.running_var.uniform_(0.5, 2)
    x = torch.rand(4, 3, 16, 32, 32) * 2 - 1
    with torch.no_grad():
        expected = net.eval().last(x)
    onnx_file = twins.export("two-stream-i3d", stream, net).model()
    other = twins.TWINS["two-stream-i3d"](stream, 3, 0.1, 0.0)
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"fold-{os.getpid()}.onnx"
    onnx.save(onnx_file, path)
    try:
        assert adopt(other, from_onnx(path), "the file")
    finally:
        path.unlink()
    measure(other, x)
    with torch.no_grad():
        torch.testing.assert_close(other.eval().last(x), expected, atol=1e-4, rtol=1e-4)
        # On the same clips batch statistics are what was measured, so that training begins where evaluation is.
        torch.testing.assert_close(other.train().last(x), expected, atol=2e-3, rtol=2e-3)


def test_a_mirrored_example_s_flow_runs_the_other_way() -> None:
    rng = np.random.default_rng(1)
    stored = data.Stored(
        rgb=rng.integers(0, 255, (30, 40, 50, 3), np.uint8), flow=rng.integers(-127, 127, (30, 40, 50, 2), np.int8)
    )
    for kind, stack, step, positions in (("rgb+flow", 10, 5, 3), ("flow", 3, 1, 4), ("rgb", 1, 2, 5)):
        stream = Stream("s", kind, (32, 24), stack=stack, step=step)
        part = data.Stored(rgb=None if kind == "flow" else stored.rgb, flow=None if kind == "rgb" else stored.flow)
        plain, mirrored = (data.example(part, stream, positions, data.View(2, 7, 5, m)) for m in (False, True))
        assert plain.shape == (stream.channels, positions, 24, 32)
        signs = np.ones(stream.channels, np.float32)
        if kind != "rgb":
            signs[(3 if kind == "rgb+flow" else 0) :: 2] = -1
        np.testing.assert_array_equal(mirrored, plain[..., ::-1] * signs[:, None, None, None])
        # The last stacked flow and the picture are of the position's own frame; older ones come first.
        own = 2 + stack - 1 + step
        if kind != "flow":
            np.testing.assert_allclose(
                plain[:3, 1], stored.rgb[own, 5:29, 7:39].transpose(2, 0, 1) / 127.5 - 1, atol=1e-6
            )
        if kind != "rgb":
            expected = stored.flow[own, 5:29, 7:39].transpose(2, 0, 1) / 127
            np.testing.assert_allclose(plain[-2:, 1], expected, atol=1e-6)
            oldest = stored.flow[own - stack + 1, 5:29, 7, 0] / 127
            np.testing.assert_allclose(plain[3 if kind == "rgb+flow" else 0, 1, :, 0], oldest, atol=1e-6)


def test_crops_are_anywhere_in_space_and_time_and_short_clips_are_looped() -> None:
    rng = np.random.default_rng(1)
    views = [data.random_view((40, 37, 60), 10, (32, 32), True, rng) for _ in range(500)]
    assert {v.start for v in views} == set(range(31))
    assert {v.top for v in views} == set(range(6)) and {v.left for v in views} == set(range(29))
    assert 150 < sum(v.mirror for v in views) < 350
    assert not any(data.random_view((40, 37, 60), 10, (32, 32), False, rng).mirror for _ in range(50))
    assert data.centre_view((40, 37, 60), 10, (32, 32)) == data.View(15, 14, 2)
    frames = np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    stream = Stream("s", "rgb", (8, 8), frames=64)
    x = data.example(data.Stored(frames, None), stream, 15, data.View(0, 0, 0))
    assert np.rint((x[0, :, 0, 0] + 1) * 127.5).tolist() == [t % 6 for t in range(15)]


def test_the_cache_holds_what_the_daemon_would_see(clips: Path, tmp_path: Path) -> None:
    (labels, listed) = data.listing(clips / "train", 0.25)
    assert labels == ["left", "right"] and sum(c.held for c in listed) == 2
    stream = Stream("both", "rgb+flow", (32, 32), bound=20 * 32 / 224)
    cache = data.Cache(tmp_path / "cache", stream)
    assert cache.fill(listed, 2) == {}
    clip = next(c for c in listed if labels[c.label] == "right")
    stored = cache.read(clip)
    # 64 x 48 with the short side at 256/224 of 32.
    assert stored.shape == (20, 37, 49) and stored.flow.shape == (20, 37, 49, 2)
    assert not stored.flow[0].any()
    pixels = stored.flow[10].astype(np.float32) * stream.bound / 127
    speed = 37 / 48 * (1.5 + int(clip.path.stem) / 4)
    assert 0.6 * speed < np.quantile(pixels[..., 0], 0.95) < 1.4 * speed
    assert abs(np.quantile(pixels[..., 1], 0.95)) < 0.3 * speed
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.raw")}
    assert cache.fill(listed, 1) == {} and stamps == {p: p.stat().st_mtime_ns for p in stamps}


def test_the_rate_falls_by_ten_when_the_loss_saturates_and_the_run_ends_when_it_does_again(
    clips: Path, tmp_path: Path
) -> None:
    run = prepare(config(clips, patience=2, drops=1, rate=0.1), tmp_path / "run")
    rates = []
    for loss in (1.0, 0.8, 0.81, 0.8, 0.5, 0.5, 0.51):
        run.judge(loss)
        rates.append(round(run.rate, 6))
    assert rates == [0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001]
    assert run.saturated


def test_mixed_precision_trains_too(clips: Path, tmp_path: Path) -> None:
    run = prepare(config(clips, precision="bf16", steps=2), tmp_path / "run")
    seen = []
    run.net.Conv3d_2c_3x3.norm.register_forward_pre_hook(lambda _, x: seen.append(x[0].dtype))
    run.run()
    assert torch.bfloat16 in seen
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in run.net.parameters())


def test_mistakes_are_told_and_leave_nothing(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    good = {
        "architecture": "two-stream",
        "stream": "flow",
        "data": str(clips / "train"),
        "size": 32,
        "width": 0.1,
        "cache": str(clips / "cache"),
    }

    def told(**changes: object) -> str:
        path, out = tmp_path / "run.toml", tmp_path / "out"
        values = {k: v for k, v in (good | changes).items() if v is not None}
        path.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items()))
        assert command.main(["fit", str(path), "--out", str(out)]) == 2
        assert not out.exists()
        return capsys.readouterr().err

    assert "did you mean 'architecture'" in told(architectur="x")
    assert "there are convnet-lstm" in told(architecture="resnet")
    assert "stream = 'both'; there are rgb, flow" in told(stream="both")
    assert "data is missing" in told(data=None)
    assert "rate = -1" in told(rate=-1)
    assert 'batch = "6" is no int' in told(batch="6")
    assert "needs weights" in told(mode="fixed")
    assert "takes no weights" in told(weights="x")
    assert "there is no such run" in told(mode="fixed", weights=str(tmp_path / "lost"))
    assert "there is no such folder" in told(data=str(tmp_path / "lost"))
    assert "device = 'cuda:99'" in told(device="cuda:99")
    wide = ["build", "two-stream", "--classes", "2", "--size", "32", "--width", "0.3", "--out", str(tmp_path / "wide")]
    assert command.main(wide) == 0
    assert "is the width another?" in told(mode="full-ft", weights=str(tmp_path / "wide"))
    assert "'conv1a'" in told(
        architecture="3d-convnet", stream="rgb", mode="inflated", weights=str(tmp_path / "wide" / "rgb.onnx")
    )
    shutil.copytree(clips / "train", tmp_path / "bad")
    (tmp_path / "bad" / "left" / "broken.mp4").write_bytes(b"no video at all")
    assert "broken.mp4" in told(data=str(tmp_path / "bad"))
    shutil.copytree(clips / "held", tmp_path / "leak")
    shutil.copy(clips / "train" / "left" / "0.mp4", tmp_path / "leak" / "left" / "copy.mp4")
    assert "held out and trained on" in told(held=str(tmp_path / "leak"))

    run = prepare(config(clips), tmp_path / "run")
    run.save()
    with pytest.raises(BadInput, match="a run with width = 0.1, not 0.2"):
        prepare(config(clips, width=0.2), tmp_path / "run")
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"damaged")
    assert command.main(["assemble", str(tmp_path / "run"), "--out", str(tmp_path / "model")]) == 2
    assert "not a checkpoint" in capsys.readouterr().err


class Code:
    """Unpickled, it would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_code_in_a_checkpoint_never_runs(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "run").mkdir()
    torch.save({"net": Code(tmp_path / "ran"), "config": {}, "labels": []}, tmp_path / "run" / "checkpoint.pt")
    assert command.main(["assemble", str(tmp_path / "run"), "--out", str(tmp_path / "model")]) == 2
    assert "not a checkpoint" in capsys.readouterr().err
    with pytest.raises(BadInput, match="not a checkpoint"):
        prepare(config(clips, mode="fixed", weights=str(tmp_path / "run")), tmp_path / "mine")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "mine").exists()
    torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_a_run_goes_on_behind_a_cut_line(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    prepare(config(clips), out).run(stop_after=2)
    with (out / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    again = prepare(config(clips), out)
    assert again.step == 2
    again.run()
    lines = (out / "log.jsonl").read_text().splitlines()
    assert lines[1] == '{"step": 3, "lo' and json.loads(lines[2])["step"] == 4
    assert [r["step"] for r in fit.records(out, 9)] == [2, 4]


def test_a_damaged_run_is_named(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    prepare(config(clips), out).save()
    path = out / "checkpoint.pt"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\x80\x02}."):
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match="checkpoint.pt: damaged"):
            prepare(config(clips), out)
    path.write_bytes(whole)
    text = (out / "config.toml").read_text()
    for wrong in (text[: text.rindex("=")], text + "colour = 1\n", text.replace("batch = 4", 'batch = "4"'), "\udcff"):
        (out / "config.toml").write_bytes(wrong.encode(errors="surrogateescape"))
        with pytest.raises(BadInput, match="config.toml: damaged"):
            prepare(config(clips), out)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="is a file"):
        prepare(config(clips), tmp_path / "file")
