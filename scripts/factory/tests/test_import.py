"""Imported weights against DeepMind's own code (../shared/golden), the namings against each other, what is refused."""

import io
import json
import lzma
import os
import pickle
import shlex
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import pytest
from checkpoints import (
    GOLDEN,
    HASSONY2,
    PIERGIAJ,
    TENSORFLOW,
    named,
    random_i3d,
    write_bundle,
    write_safetensors,
)

from actiond_factory import importer, inception
from actiond_factory.__main__ import main
from actiond_factory.errors import BadInput
from actiond_factory.graph import Graph
from actiond_factory.importer import LOGITS, NAMINGS, network
from actiond_factory.model import session
from actiond_factory.states import read_safetensors, read_torch

needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason="DeepMind's outputs are not in ../shared/golden")
STREAMS = ("rgb", "flow")
CLASSES = 7


def unpacked(path: Path) -> bytes:
    """Of an .xz file."""
    return lzma.decompress(path.read_bytes())


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """rgb/ and flow/, the checkpoints as DeepMind's code saved them."""
    root = tmp_path_factory.mktemp("golden")
    for stream in STREAMS:
        source = GOLDEN / "ckpt_seed1" / stream
        (root / stream).mkdir()
        (root / stream / "model.ckpt.index").write_bytes((source / "model.ckpt.index").read_bytes())
        data = "model.ckpt.data-00000-of-00001"
        (root / stream / data).write_bytes(unpacked(source / f"{data}.xz"))
    return root


@pytest.fixture(scope="module")
def networks(golden: Path) -> dict[str, importer.Network]:
    """Both streams, read."""
    return {stream: network(golden / stream / "model.ckpt", stream) for stream in STREAMS}


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    """f32 [64, 224, 224, C]: the clip as DeepMind's code took it; see golden/README.md."""
    rgb, flow = (np.load(io.BytesIO(unpacked(GOLDEN / f"input_a_{s}_u8.npy.xz"))).astype(np.float32) for s in STREAMS)
    return {"rgb": rgb * 2 / 255 - 1, "flow": (flow - 127) / 255}


def as_input(clip: np.ndarray) -> np.ndarray:
    """[T, H, W, C] as [1, C, T, H, W]."""
    return np.ascontiguousarray(clip.transpose(3, 0, 1, 2)[None])


def run_endpoints(model: onnx.ModelProto, clip: np.ndarray, endpoints: list[str]) -> dict[str, np.ndarray]:
    """Every endpoint as [T, H, W, C], and the logits."""
    outputs = {node.name: node.output[0] for node in model.graph.node}
    # A unit's endpoint is behind its ReLU.
    wanted = [outputs.get(f"{name}/Relu", outputs[name]) for name in endpoints]
    there = {output.name for output in model.graph.output}
    for output in wanted:
        if output not in there:
            model.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    values = session(model).run([*wanted, "logits"] if "logits" in there else wanted, {"input": as_input(clip)})
    found = {name: value[0].transpose(1, 2, 3, 0) for name, value in zip(endpoints, values, strict=False)}
    return found | ({"logits": values[-1][0]} if "logits" in there else {})


def check_endpoints(found: dict[str, np.ndarray], expected: dict, stream: str, endpoints: list[str]) -> None:
    """64 values of each, and its mean, deviation, extremes and share of zeros."""
    for name in endpoints:
        flat = found[name].reshape(-1)
        at, value, stats = (expected[f"{stream}_{name}_{what}"] for what in ("idx", "val", "stats"))
        np.testing.assert_allclose(flat[at], value, atol=5e-4, rtol=0, err_msg=name)
        ours = [flat.mean(dtype=np.float64), flat.std(dtype=np.float64), flat.min(), flat.max(), (flat == 0).mean()]
        np.testing.assert_allclose(ours, stats, atol=5e-4, rtol=0, err_msg=name)


@needs_golden
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(("clip", "frames"), [("a16", 16), ("a64", 64)])
def test_every_endpoint_is_deepmind_s(networks: dict, inputs: dict, stream: str, clip: str, frames: int) -> None:
    expected = np.load(GOLDEN / f"golden_{clip}_seed1.npz")
    endpoints = list(json.loads((GOLDEN / f"golden_{clip}_seed1.json").read_text())[stream]["endpoints"])
    assert len(endpoints) >= 15
    found = run_endpoints(networks[stream].graph(), inputs[stream][:frames], endpoints)
    check_endpoints(found, expected, stream, endpoints)
    np.testing.assert_allclose(found["logits"], expected[f"{stream}_logits"], atol=1e-3, rtol=0)


@needs_golden
def test_odd_lengths_and_sizes_are_padded_as_tensorflow_pads_them(networks: dict, inputs: dict) -> None:
    expected = np.load(GOLDEN / "golden_odd17x97x113_seed1_rgb.npz")
    described = json.loads((GOLDEN / "golden_odd17x97x113_seed1_rgb.json").read_text())
    endpoints = [*described["rgb"]["endpoints"], "Mixed_5c"]
    graph = Graph("odd")
    x = graph.input("input", [1, 3, "T", 97, 113])
    for _, y in inception.trunk(graph, x, networks["rgb"].units.__getitem__):
        last = y
    graph.output(last, [1, 1024, "t", "h", "w"])
    found = run_endpoints(graph.model(), inputs["rgb"][5:22, 40:137, 60:173], endpoints)
    check_endpoints(found, expected, "rgb", endpoints[:-1])
    whole = next(expected[key] for key in expected.files if expected[key].ndim >= 4)
    np.testing.assert_allclose(found["Mixed_5c"], whole.reshape(found["Mixed_5c"].shape), atol=5e-4, rtol=0)


@needs_golden
def test_import_writes_a_whole_model(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    labels = GOLDEN / "deepmind" / "label_map.txt"
    out = tmp_path / "models" / "i3d"
    arguments = ["import", "--rgb", str(golden / "rgb"), "--flow", str(golden / "flow" / "model.ckpt.index")]
    assert main([*arguments, "--labels", str(labels), "--out", str(out), "--licence", "Apache-2.0"]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["flow.onnx", "labels.txt", "model.toml", "rgb.onnx"]
    assert (out / "labels.txt").read_text().split("\n")[:400] == labels.read_text().split("\n")[:400]
    text = (out / "model.toml").read_text()
    for line in ('rule = "logits"', 'fit = "crop"', "size = [224, 224]", "bound = 20.0", 'licence = "Apache-2.0"'):
        assert line in text
    graph = onnx.load(out / "rgb.onnx")
    assert graph.opset_import[0].version == 17
    assert [d.dim_param or d.dim_value for d in graph.graph.input[0].type.tensor_type.shape.dim] == [
        1,
        3,
        "T",
        224,
        224,
    ]
    assert {a.s for n in graph.graph.node for a in n.attribute if a.name == "auto_pad"} == {b"SAME_UPPER"}
    assert not [n for n in graph.graph.node if n.op_type == "BatchNormalization"]
    assert "12.70 M parameters, 400 classes" in capsys.readouterr().out
    # RGB alone takes the flow stream's place away.
    assert main(["import", "--rgb", str(golden / "rgb"), "--labels", str(labels), "--out", str(out)]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["labels.txt", "model.toml", "rgb.onnx"]


def test_names_are_those_of_deepmind_and_of_the_ports() -> None:
    unit = "Mixed_5b/Branch_2/Conv3d_0a_3x3"
    assert TENSORFLOW.unit(unit) + TENSORFLOW.weight == "Mixed_5b/Branch_2/Conv3d_0a_3x3/conv_3d/w"
    assert PIERGIAJ.unit(unit) + PIERGIAJ.variance == "Mixed_5b.b2b.bn.running_var"
    assert HASSONY2.unit(unit) + HASSONY2.beta == "mixed_5b.branch_2.1.batch3d.bias"
    units = [*inception.shapes(3), LOGITS]
    assert len(units) == 58
    piergiaj, hassony2 = ([naming.unit(unit) for unit in units] for naming in (PIERGIAJ, HASSONY2))
    assert piergiaj[:10] == [
        *("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3"),
        *("Mixed_3b.b0", "Mixed_3b.b1a", "Mixed_3b.b1b", "Mixed_3b.b2a", "Mixed_3b.b2b", "Mixed_3b.b3b"),
        "Mixed_3c.b0",
    ]
    assert hassony2[3:9] == [
        *("mixed_3b.branch_0", "mixed_3b.branch_1.0", "mixed_3b.branch_1.1"),
        *("mixed_3b.branch_2.0", "mixed_3b.branch_2.1", "mixed_3b.branch_3.1"),
    ]
    assert piergiaj[-1] + PIERGIAJ.bias == "logits.conv3d.bias"
    assert hassony2[-1] + HASSONY2.bias == "conv3d_0c_1x1.conv3d.bias"


@pytest.fixture(scope="module")
def numbers() -> dict:
    """Random weights of a whole RGB stream."""
    return random_i3d("rgb", CLASSES)


def assert_alike(one: importer.Network, other: importer.Network) -> None:
    """To the bit."""
    assert one.units.keys() == other.units.keys()
    for name, pair in one.units.items():
        for ours, theirs in zip(pair, other.units[name], strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
    for ours, theirs in zip(one.logits, other.logits, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def plain(numbers: dict) -> importer.Network:
    """The same weights, named as DeepMind's 400-class files name them."""
    return network(Path("plain"), "rgb", named(numbers, TENSORFLOW, "RGB/inception_i3d/"))


def test_folding_is_batch_norm_without_gamma(numbers: dict, plain: importer.Network) -> None:
    unit = "Mixed_4c/Branch_1/Conv3d_0b_3x3"
    weight, bias = plain.units[unit]
    scale = 1 / np.sqrt(numbers[unit, "variance"].astype(np.float64) + 1e-3)
    np.testing.assert_allclose(weight, numbers[unit, "weight"] * scale[:, None, None, None, None], rtol=1e-6)
    np.testing.assert_allclose(bias, numbers[unit, "beta"] - numbers[unit, "mean"] * scale, atol=1e-6)


def test_the_600_class_file_has_no_scope_and_slots_and_vectors_of_five_axes(
    numbers: dict, plain: importer.Network, tmp_path: Path
) -> None:
    tensors = named(numbers, TENSORFLOW, vectors=5)
    slots = {
        f"{name}/Momentum": value + 1
        for name, value in tensors.items()
        if name.endswith(("/w", "/b", "/beta")) and value.size < 1e5
    }
    write_bundle(tmp_path / "model.ckpt", tensors | slots)
    assert (tmp_path / "model.ckpt.index").stat().st_size > 15_000
    assert tensors["Conv3d_1a_7x7/batch_norm/beta"].shape == (1, 1, 1, 1, 64)
    assert_alike(network(tmp_path, "rgb"), plain)
    # It is damaged all the same if only a slot is.
    data = tmp_path / "model.ckpt.data-00000-of-00001"
    at = importer.Bundle(tmp_path).entries["Conv3d_1a_7x7/batch_norm/beta/Momentum"].offset
    with data.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff")
    with pytest.raises(BadInput, match="tensor `Conv3d_1a_7x7/batch_norm/beta/Momentum`"):
        network(tmp_path, "rgb")


@needs_golden
@pytest.mark.parametrize(("listing", "stream"), [("rgb", "rgb"), ("flow", "flow"), ("real_rgb600", "rgb")])
def test_deepmind_s_files_have_just_the_tensors_that_are_expected(listing: str, stream: str) -> None:
    rows = [line.split("\t") for line in (GOLDEN / f"tensors_{listing}.tsv").read_text().splitlines()[1:]]
    zeros = {row[0]: np.broadcast_to(np.float32(0), [int(n) for n in row[2].split(",")]) for row in rows}
    found = network(Path(listing), stream, zeros)
    assert found.classes == (600 if "600" in listing else 400)
    if "600" not in listing:
        assert found.parameters == sum(value.size for value in zeros.values())


def test_both_streams_in_one_checkpoint_are_told_apart_by_their_scope(numbers: dict, plain: importer.Network) -> None:
    both = named(numbers, TENSORFLOW, "RGB/inception_i3d/")
    both |= named(random_i3d("flow", CLASSES), TENSORFLOW, "Flow/inception_i3d/")
    assert_alike(network(Path("both"), "rgb", both), plain)
    assert network(Path("both"), "flow", both).units["Conv3d_1a_7x7"][0].shape[1] == 2


def with_port_s_own(numbers: dict, naming: importer.Naming) -> dict[str, np.ndarray]:
    """Gammas of one and batch counts, which PyTorch has."""
    tensors = named(numbers, naming)
    for (unit, part), value in numbers.items():
        if part == "beta":
            tensors[naming.unit(unit) + naming.gamma] = np.ones_like(value)
            tensors[naming.unit(unit) + naming.gamma.replace("weight", "num_batches_tracked")] = np.array(5)
    return tensors


@pytest.mark.parametrize("naming", NAMINGS[1:], ids=lambda naming: naming.whose)
@pytest.mark.parametrize("kind", ["zip", "before 1.6", "DataParallel", "wrapped"])
def test_state_dicts_of_the_ports(
    numbers: dict, plain: importer.Network, tmp_path: Path, naming: importer.Naming, kind: str
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: it writes the files that are read here")
    state: object = OrderedDict((n, torch.from_numpy(np.array(v))) for n, v in with_port_s_own(numbers, naming).items())
    if kind == "DataParallel":
        state = OrderedDict((f"module.{name}", value) for name, value in state.items())
    if kind == "wrapped":
        state = {
            "epoch": 3,
            "best": 0.5,
            "arch": "i3d",
            "state_dict": state,
            "optimizer": {"param_groups": [{"lr": 0.1}]},
        }
    path = tmp_path / ("rgb.pth.tar" if kind == "wrapped" else "rgb_imagenet.pt")
    torch.save(state, path, _use_new_zipfile_serialization=kind != "before 1.6")
    assert_alike(network(path, "rgb"), plain)


def test_trained_gammas_and_biases_are_folded_in(numbers: dict, tmp_path: Path) -> None:
    unit = "Mixed_3b/Branch_1/Conv3d_0b_3x3"
    tensors = with_port_s_own(numbers, PIERGIAJ)
    rng = np.random.default_rng(5)
    gamma, bias = rng.uniform(0.5, 2, 128), rng.normal(0, 1, 128)
    tensors["Mixed_3b.b1b.bn.weight"], tensors["Mixed_3b.b1b.conv3d.bias"] = gamma, bias
    weight, folded = network(Path("trained"), "rgb", tensors).units[unit]
    scale = gamma / np.sqrt(numbers[unit, "variance"].astype(np.float64) + 1e-3)
    np.testing.assert_allclose(weight, numbers[unit, "weight"] * scale[:, None, None, None, None], atol=1e-6)
    np.testing.assert_allclose(folded, numbers[unit, "beta"] + (bias - numbers[unit, "mean"]) * scale, atol=1e-5)


@pytest.mark.parametrize("naming", NAMINGS, ids=lambda naming: naming.whose)
def test_safetensors_of_any_naming(
    numbers: dict, plain: importer.Network, tmp_path: Path, naming: importer.Naming
) -> None:
    path = write_safetensors(tmp_path / "rgb.safetensors", named(numbers, naming))
    assert_alike(network(path, "rgb"), plain)


def test_other_kinds_of_numbers_and_strides_are_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: it writes the files that are read here")
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {
        "view": base[1:3, ::2],
        "transposed": base.t(),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "double": base.double(),
        "long": torch.tensor([2**40]),
        "parameter": torch.nn.Parameter(base),
    }
    for kind in (True, False):
        torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=kind)
        read = read_torch(tmp_path / "a.pt")
        assert set(read) == set(state)
        for name, value in state.items():
            expected = value.detach().float() if value.dtype == torch.bfloat16 else value.detach()
            np.testing.assert_array_equal(read[name], expected.numpy(), err_msg=name)


# What must not run: each leaves a file behind if it does.


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


def as_zip(path: Path, pickled: bytes) -> Path:
    """A file as PyTorch since 1.6 writes it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    return path


def as_legacy(path: Path, pickled: bytes) -> Path:
    """A file as PyTorch before 1.6 wrote it."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in head) + pickled + pickle.dumps([], 2))
    return path


@pytest.mark.parametrize("write", [as_zip, as_legacy, lambda path, pickled: path.write_bytes(pickled) and path])
@pytest.mark.parametrize(
    "attack",
    [
        lambda mark: pickle.dumps(Call(os.system, f"touch {mark}"), 2),
        lambda mark: pickle.dumps({"state_dict": OrderedDict(a=Call(exec, f"open({str(mark)!r}, 'w')"))}, 4),
        lambda mark: pickle.dumps(Call(getattr, Call(__import__, "os"), "system"), 2),
        # By hand: a name with a dot in it, the old opcode INST, an extension code that nobody registered.
        lambda mark: b"\x80\x04\x8c\x0btorch._utils\x8c\x16_rebuild_tensor.__call__\x93.",
        lambda mark: f"(S'touch {mark}'\nios\nsystem\n.".encode(),
        lambda mark: b"\x80\x02\x82\x01.",
    ],
)
def test_a_pickle_with_code_never_runs(tmp_path: Path, write, attack, capsys: pytest.CaptureFixture) -> None:
    mark = tmp_path / "it-ran"
    path = write(tmp_path / "evil.pt", attack(mark))
    out = tmp_path / "model"
    assert main(["import", "--rgb", str(path), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert str(path) in said
    assert "Traceback" not in said
    assert not mark.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.pt"]


@pytest.mark.parametrize("pickled", [b"\x80\x02Nr\xff\xff\xff\x1f.", b"\x80\x05\x96" + bytes(4) + b"\x08\0\0\0."])
def test_a_few_bytes_take_no_gigabytes(tmp_path: Path, pickled: bytes) -> None:
    path = tmp_path / "large.pt"
    path.write_bytes(pickled)
    code = (
        "import re, sys; from pathlib import Path; from actiond_factory.states import read_torch\n"
        "try: read_torch(Path(sys.argv[1]))\nexcept Exception as e: print(e)\n"
        # Not `ru_maxrss`, in which the process counts that started this one.
        "print(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    limited = f'ulimit -v 6000000; exec "$0" -c {shlex.quote(code)} "$1"'
    done = subprocess.run(
        ["bash", "-c", limited, sys.executable, path], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said, kilobytes = done.stdout.splitlines()
    assert "Memory" not in said and "large.pt" in said
    assert int(kilobytes) < 1_000_000


def test_a_refused_pickle_says_what_it_asked_for(tmp_path: Path) -> None:
    path = as_zip(tmp_path / "evil.pth", pickle.dumps(Call(os.system, "true"), 2))
    with pytest.raises(BadInput, match=r"evil.pth: refused, and nothing of it was run: it asks for `posix.system`"):
        read_torch(path)
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.save(torch.nn.Conv3d(1, 1, 1), tmp_path / "module.pt")
    with pytest.raises(BadInput, match=r"asks for `torch.nn.modules.conv.Conv3d`.*state dict alone"):
        read_torch(tmp_path / "module.pt")


def as_saved(path: Path, shape: bytes, strides: bytes) -> Path:
    """A file with the tensor `w` in a storage of 8 floats; shape and strides as they are pickled."""
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpuK\x08tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + shape + strides
    as_zip(path, b"\x80\2}X\1\0\0\0w" + tensor + b"\x89ccollections\nOrderedDict\n)RtRs.")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", np.arange(8, dtype=np.float32).tobytes())
    return path


@pytest.mark.parametrize(
    ("shape", "strides", "said"),
    [
        # One number in a tuple of one: BININT1 or BININT, TUPLE1.
        (b"K\xc8\x85", b"K\1\x85", "`w` reaches to number 200 of a storage of 8"),
        (b"K\x08\x85", b"K\xc8\x85", "`w` reaches to number 1401 of a storage of 8"),
        (b"J\xff\xff\xff\x7f\x85", b"K\0\x85", "`w` reaches to number 2147483647 of a storage of 8"),
        (b"J\xff\xff\xff\xff\x85", b"K\1\x85", "a tensor without a storage or with a wrong shape"),
        (b"K\x08\x85", b"J\xff\xff\xff\xff\x85", "a tensor without a storage or with a wrong shape"),
        (b"K\x08\x85", b")", r"a tensor of shape \[8\] with strides \[\]"),
    ],
)
def test_a_tensor_cannot_reach_outside_its_storage(tmp_path: Path, shape: bytes, strides: bytes, said: str) -> None:
    right = as_saved(tmp_path / "right.pt", b"K\4\x85", b"K\2\x85")
    np.testing.assert_array_equal(read_torch(right)["w"], [0, 2, 4, 6])
    with pytest.raises(BadInput, match=f"wrong.pt: .*{said}"):
        read_torch(as_saved(tmp_path / "wrong.pt", shape, strides))


def test_a_torch_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: it writes the files that are read here")
    path = tmp_path / "cut.pt"
    for kind in (True, False):
        torch.save({"w": torch.zeros(3), "v": torch.ones(4)}, path, _use_new_zipfile_serialization=kind)
        whole = path.read_bytes()
        for length in range(0, len(whole), 3):
            path.write_bytes(whole[:length])
            with pytest.raises(BadInput, match="cut.pt"):
                read_torch(path)


def test_a_torch_file_that_is_cut_short_says_so(tmp_path: Path) -> None:
    whole = as_saved(tmp_path / "whole.pt", b"K\4\x85", b"K\2\x85").read_bytes()
    old = as_legacy(tmp_path / "old.pt", pickle.dumps({"a": list(range(1000))}, 2)).read_bytes()
    path = tmp_path / "cut.pt"
    for data in (whole[:-30], whole[:200], whole[:20], old[:-3], old[:60], old[:20], old[:2]):
        path.write_bytes(data)
        with pytest.raises(BadInput, match="cut.pt: the file is cut short"):
            read_torch(path)
    path.write_bytes(b"a text, and no weights")
    with pytest.raises(BadInput, match="not a file of PyTorch's"):
        read_torch(path)


def test_a_safetensors_file_of_any_shorter_length_is_refused(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "cut.safetensors", {"w": np.zeros(3), "v": np.ones(4)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(BadInput, match="cut.safetensors"):
            read_safetensors(path)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (
            {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
            r"tensor `w` of shape \[2\] takes 8 bytes, not 4",
        ),
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, "tensor `w` ends at byte 8 of 4"),
        ({"w": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}}, "tensor `w`: numbers of kind F31"),
        ({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}, "tensor `w`: shape or offsets"),
        ({"w": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}}, "tensor `w`: shape or offsets"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, "tensor `w`: no safetensors header"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": []}}, "tensor `w`: no safetensors header"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": 4}}, "tensor `w`: no safetensors header"),
        ({"w": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, "tensor `w`: no safetensors header"),
        ({"w": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}, "tensor `w`: no safetensors header"),
        ({"w": {"dtype": "F32", "shape": [0, 2**70], "data_offsets": [0, 0]}}, r"tensor `w` of shape \[0, 1180"),
        ({"w": {"shape": [1], "data_offsets": [0, 4]}}, "no safetensors header"),
        ({"w": 3}, "no safetensors header"),
        ([1], "no safetensors header"),
    ],
)
def test_a_wrong_safetensors_header_is_refused(tmp_path: Path, header: object, said: str) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "wrong.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(BadInput, match=said):
        read_safetensors(path)


# Wrong networks: named tensors, and what is right instead.


def without_data(stream: str = "rgb", prefix: str = "RGB/inception_i3d/") -> dict[str, np.ndarray]:
    """Tensors of the right shapes that take no memory."""
    tensors = {}
    for unit, shape in inception.shapes({"rgb": 3, "flow": 2}[stream]).items():
        shapes = {
            "weight": tuple(np.array(shape)[[2, 3, 4, 1, 0]]),
            **dict.fromkeys(("mean", "variance", "beta"), shape[:1]),
        }
        for part, of in shapes.items():
            tensors[prefix + unit + getattr(TENSORFLOW, part)] = np.broadcast_to(np.float32(0.5), of)
    tensors[f"{prefix}{LOGITS}/conv_3d/w"] = np.broadcast_to(np.float32(1), (1, 1, 1, 1024, CLASSES))
    tensors[f"{prefix}{LOGITS}/conv_3d/b"] = np.zeros(CLASSES, np.float32)
    return tensors


UNIT = "RGB/inception_i3d/Mixed_4d/Branch_1/Conv3d_0b_3x3"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({f"{UNIT}/conv_3d/w": None}, f"file: 1 tensor is missing: `{UNIT}/conv_3d/w`"),
        (
            {f"{UNIT}/batch_norm/{part}": None for part in ("beta", "moving_mean", "moving_variance")}
            | {f"RGB/inception_i3d/{LOGITS}/conv_3d/b": None},
            f"file: 4 tensors are missing: `{UNIT}/batch_norm/moving_mean`, .* and 1 more",
        ),
        (
            {f"{UNIT}/conv_3d/w": np.zeros((3, 3, 3, 128, 255), np.float32)},
            rf"tensor `{UNIT}/conv_3d/w` has shape \[3, 3, 3, 128, 255\], and I3D's is \[3, 3, 3, 128, 256\]",
        ),
        (
            {f"{UNIT}/conv_3d/w": np.zeros((3, 3, 128, 256), np.float32)},
            rf"tensor `{UNIT}/conv_3d/w` has shape \[3, 3, 128, 256\]",
        ),
        (
            {f"{UNIT}/batch_norm/beta": np.zeros((1, 1, 1, 1, 255), np.float32)},
            rf"`{UNIT}/batch_norm/beta` has shape \[1, 1, 1, 1, 255\], and I3D's is \[256\]",
        ),
        (
            {f"RGB/inception_i3d/{LOGITS}/conv_3d/b": np.zeros(CLASSES + 1, np.float32)},
            rf"`RGB/inception_i3d/{LOGITS}/conv_3d/b` has shape \[8\], and I3D's is \[7\]",
        ),
        ({"RGB/inception_i3d/Mixed_6a/w": np.zeros(1)}, "1 tensor has no place in I3D: `RGB/inception_i3d/Mixed_6a/w`"),
        ({f"{UNIT}/conv_3d/b": np.zeros(255, np.float32)}, rf"`{UNIT}/conv_3d/b` has shape \[255\]"),
        ({f"{UNIT}/conv_3d/w": np.zeros((3, 3, 3, 128, 256), np.int32)}, f"`{UNIT}/conv_3d/w` holds int32"),
        (
            {f"{UNIT}/batch_norm/beta": np.full(256, np.nan, np.float32)},
            f"`{UNIT}/batch_norm/beta` has values that are no",
        ),
        (
            {f"{UNIT}/batch_norm/moving_variance": np.full(256, -1.0)},
            f"`{UNIT}/batch_norm/moving_variance` has negative",
        ),
    ],
)
def test_wrong_tensors_are_named(change: dict[str, np.ndarray | None], said: str) -> None:
    tensors = {name: value for name, value in (without_data() | change).items() if value is not None}
    with pytest.raises(BadInput, match=said):
        network(Path("file"), "rgb", tensors)


def test_the_other_stream_s_file_is_told() -> None:
    with pytest.raises(BadInput, match=r"its input has 3 channels, as the rgb stream's"):
        network(Path("file"), "flow", without_data())
    with pytest.raises(BadInput, match=r"its input has 2 channels, as the flow stream's"):
        network(Path("file"), "rgb", without_data("flow", "Flow/inception_i3d/"))


def test_another_network_s_file_is_told() -> None:
    with pytest.raises(BadInput, match=r"file: no I3D in it: .*`layer1.0.conv1.weight`"):
        network(Path("file"), "rgb", {"layer1.0.conv1.weight": np.zeros(1)})
    with pytest.raises(BadInput, match="it has no tensors"):
        network(Path("file"), "rgb", {})
    twice = without_data(prefix="a/") | without_data(prefix="b/")
    with pytest.raises(BadInput, match="more than one network in it"):
        network(Path("file"), "rgb", twice)


def test_nothing_is_written_when_something_is_wrong(
    numbers: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rgb = str(write_safetensors(tmp_path / "rgb.safetensors", named(numbers, PIERGIAJ)))
    flow = named(random_i3d("flow", CLASSES + 1), PIERGIAJ)
    flow = str(write_safetensors(tmp_path / "flow.safetensors", flow))
    labels = tmp_path / "labels.txt"
    labels.write_text("only one\n")
    before = sorted(tmp_path.rglob("*"))
    out = str(tmp_path / "model")

    def refused(*arguments: str) -> str:
        assert main(["import", *arguments, "--out", out]) == 2
        assert sorted(tmp_path.rglob("*")) == before
        return capsys.readouterr().err

    assert "labels.txt: 1 labels for 7 classes" in refused("--rgb", rgb, "--labels", str(labels))
    labels.write_text("a\nb\nc\nd\ne\nf\na\n")
    assert "label 'a' stands twice" in refused("--rgb", rgb, "--labels", str(labels))
    assert "8 classes" in refused("--rgb", rgb, "--flow", flow)
    assert "give --rgb, --flow or both" in refused()
    assert "no such file" in refused("--rgb", str(tmp_path / "none" / "model.ckpt"))
    assert "labels.none" in refused("--rgb", rgb, "--labels", str(tmp_path / "labels.none"))
    # What was there stays as it was, and a folder of other things is nobody's model.
    assert main(["import", "--rgb", rgb, "--out", out]) == 0
    assert (tmp_path / "model" / "labels.txt").read_text().splitlines()[::6] == ["class 0", "class 6"]
    kept = {p: p.read_bytes() for p in (tmp_path / "model").iterdir()}
    before = sorted(tmp_path.rglob("*"))
    refused("--rgb", rgb, "--labels", str(labels))
    assert {p: p.read_bytes() for p in (tmp_path / "model").iterdir()} == kept
    out = str(tmp_path)
    assert "choose another --out" in refused("--rgb", rgb)


def test_nothing_told_of_other_weights_is_left(numbers: dict, tmp_path: Path) -> None:
    rgb = str(write_safetensors(tmp_path / "rgb.safetensors", named(numbers, PIERGIAJ)))
    out = tmp_path / "model"
    out.mkdir()
    for name in ("model.toml", "int8.json", "CARD.md", "rgb.int8.onnx", "notes.txt"):
        (out / name).write_text("of another model")
    # With the mark that some editors begin a text with.
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"{n}\n" for n in "abcdefg"), encoding="utf-8-sig")
    assert main(["import", "--rgb", rgb, "--out", str(out), "--labels", str(labels)]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["labels.txt", "model.toml", "notes.txt", "rgb.onnx"]
    assert (out / "labels.txt").read_bytes().startswith(b"a\nb\n")
