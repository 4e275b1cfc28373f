"""`factory inflate` and `factory boring`: inflation of our own Inception-V1 and of networks made here, and the
boring-video fixed point."""

import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from actiond_factory import __main__ as command
from actiond_factory import inception
from actiond_factory.architectures import ARCHITECTURES, LOGITS, i3d_graph
from actiond_factory.boring import compare, replicated
from actiond_factory.build import random_model
from actiond_factory.errors import BadInput
from actiond_factory.graph import Graph
from actiond_factory.inflate import PACING, Rule, from_torch, inflate, load, read_rules
from actiond_factory.model import session
from actiond_factory.toml import tomllib

ROOT = Path(__file__).parents[3]
SIZE, WIDTH, CLASSES = 64, 0.25, 5
TWO_STREAM = ARCHITECTURES["two-stream"]


@pytest.fixture(scope="module")
def flat() -> onnx.ModelProto:
    """A narrow Inception-V1 for pictures."""
    stream = TWO_STREAM.streams(SIZE, WIDTH)[0]
    return random_model(TWO_STREAM, stream, CLASSES, WIDTH, 1)


def resnet() -> onnx.ModelProto:
    """A stem, two residual blocks with batch norm, padding that is not the same on both sides, and one Pad node; its
    batch is open and its shapes are unknown to itself, as exporters leave them."""
    rng = np.random.default_rng(1)
    graph = Graph("resnet")
    x = graph.input("pictures", ["N", 3, 41, 37])

    def convolution(name: str, x: str, outputs: int, inputs: int, kernel: int, stride: int, pads: list[int]) -> str:
        weight = rng.normal(0, np.sqrt(2 / (inputs * kernel**2)), (outputs, inputs, kernel, kernel))
        x = graph.convolution(name, x, weight, np.zeros(outputs), [stride, stride], pads)
        numbers = {
            "scale": rng.uniform(0.5, 1.5, outputs),
            "shift": rng.normal(0, 0.3, outputs),
            "mean": rng.normal(0, 0.3, outputs),
            "var": rng.uniform(0.5, 2, outputs),
        }
        weights = [graph.weight(f"{name}/norm/{key}", value) for key, value in numbers.items()]
        return graph.node("BatchNormalization", f"{name}/norm", [x, *weights], epsilon=1e-5)

    x = graph.node("Relu", "stem/relu", [convolution("stem", x, 8, 3, 5, 2, [1, 2, 3, 1])])
    x = graph.node("Pad", "pad", [x, graph.weight("pad/pads", np.array([0, 0, 0, 1, 0, 0, 1, 0]))])
    x = graph.max_pool("pool", x, (3, 3), (2, 2), [0, 0, 1, 1])
    for block, stride in (("a", 1), ("b", 2)):
        y = graph.node("Relu", f"{block}/relu", [convolution(f"{block}/1", x, 8, 8, 3, stride, [1, 1, 1, 1])])
        y = convolution(f"{block}/2", y, 8, 8, 3, 1, [1, 1, 1, 1])
        shortcut = x if stride == 1 else convolution(f"{block}/shortcut", x, 8, 8, 1, stride, [0, 0, 0, 0])
        x = graph.node("Relu", f"{block}/out", [graph.node("Add", f"{block}/add", [y, shortcut])])
    x = graph.node("GlobalAveragePool", "mean", [x])
    x = graph.node("Flatten", "flatten", [x])
    x = graph.node("Dropout", "dropout", [x])
    weights = [graph.weight("fc/weight", rng.normal(size=(CLASSES, 8))), graph.weight("fc/bias", np.ones(CLASSES))]
    graph.node("Softmax", "scores", [graph.node("Gemm", "fc", [x, *weights], transB=1)], axis=1)
    graph.output("scores", ["N", CLASSES])
    return graph.model()


def test_a_still_picture_is_what_it_was_at_every_layer_of_our_inception(flat: onnx.ModelProto) -> None:
    rows = compare(flat, inflate(flat, read_rules(PACING)))
    assert len(rows) == len(flat.graph.node)
    assert max(row.difference for row in rows) < 1e-5
    assert min(row.scale for row in rows) > 0.1


def test_the_default_pacing_makes_i3d_of_inception_v1(flat: onnx.ModelProto) -> None:
    made = inflate(flat, read_rules(PACING))
    shapes = inception.shapes(3, WIDTH)
    known = {t.name: numpy_helper.to_array(t) for t in flat.graph.initializer}

    def weights(name: str) -> tuple[np.ndarray, np.ndarray]:
        if name == LOGITS:
            return known["logits/weight"][..., None, None, None], known["logits/bias"]
        times = shapes[name][2]
        return np.repeat(known[f"{name}/weight"][:, :, None], times, 2) / np.float32(times), known[f"{name}/bias"]

    i3d = i3d_graph(ARCHITECTURES["two-stream-i3d"].streams(SIZE, WIDTH)[0], weights).model()
    for frames in (32, 45):
        x = np.random.default_rng(frames).uniform(-1, 1, (1, 3, frames, SIZE, SIZE)).astype(np.float32)
        ours, theirs = (session(model).run(["logits"], {"input": x})[0] for model in (made, i3d))
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("rules", [read_rules(PACING), []], ids=["paced", "symmetric"])
def test_a_residual_network_with_uneven_padding(rules: list[Rule]) -> None:
    model = resnet()
    made = inflate(model, rules)
    rows = compare(model, made, frames=24)
    # Of the 2D network all but the softmax, which is left out: actiond takes logits.
    assert {row.name for row in rows} == {n.output[0] for n in model.graph.node} - {"scores"}
    assert max(row.difference for row in rows) < 1e-5
    pads = next(t for t in made.graph.initializer if t.name.startswith("pad/pads"))
    assert numpy_helper.to_array(pads).tolist() == [0, 0, 0, 0, 1, 0, 0, 0 if rules else 1, 1, 0]
    nodes = {node.name: {a.name: helper.get_attribute_value(a) for a in node.attribute} for node in made.graph.node}
    assert nodes["stem"]["kernel_shape"] == [5, 5, 5] and nodes["stem"]["pads"] == [1, 1, 2, 3, 3, 1]
    assert nodes["b/1"]["strides"] == [2, 2, 2]
    assert nodes["pool"]["kernel_shape"] == ([1, 3, 3] if rules else [3, 3, 3])
    assert nodes["pool"]["pads"] == ([0, 0, 0, 0, 1, 1] if rules else [0, 0, 0, 1, 1, 1])


def test_a_mean_whose_axes_are_an_input_as_newer_opsets_write_it() -> None:
    rng = np.random.default_rng(1)
    weights = {
        "weight": rng.normal(size=(6, 3, 3, 3)),
        "axes": np.array([-2, -1]),
        "factor": rng.normal(size=(6, 1, 1)),
    }
    nodes = [
        helper.make_node("Conv", ["input", "weight"], ["conv"], "conv", auto_pad="SAME_LOWER", strides=[2, 2]),
        helper.make_node("Mul", ["conv", "factor"], ["scaled"], "scaled"),
        helper.make_node("ReduceMean", ["scaled", "axes"], ["logits"], "mean", keepdims=0),
    ]
    shapes = [helper.make_tensor_value_info(n, 1, s) for n, s in (("input", [1, 3, 12, 14]), ("logits", [1, 6]))]
    tensors = [numpy_helper.from_array(v.astype(np.float32 if v.ndim > 1 else np.int64), k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "new", shapes[:1], shapes[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    for rules in ([], [Rule(op=("ReduceMean",), kernel=2)]):
        rows = compare(model, inflate(model, rules), frames=8)
        assert len(rows) == 3 and max(row.difference for row in rows) < 1e-5


def test_a_file_of_an_old_opset_with_local_response_normalization() -> None:
    rng = np.random.default_rng(1)
    weights = {"w1": (8, 3, 5, 5), "b1": (8,), "w2": (6, 8, 3, 3), "b2": (6,), "fc": (6 * 4 * 4, 5), "bias": (5,)}
    tensors = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32) / 5, n) for n, s in weights.items()]
    nodes = [
        helper.make_node("Pad", ["input"], ["padded"], "padded", pads=[0, 0, 1, 2, 0, 0, 2, 1], mode="constant"),
        helper.make_node("Conv", ["padded", "w1", "b1"], ["c1"], "c1", strides=[2, 2], kernel_shape=[5, 5]),
        helper.make_node("LRN", ["c1"], ["lrn"], size=5, alpha=0.5, beta=0.75, bias=1.0),
        helper.make_node("MaxPool", ["lrn"], ["pool"], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
        helper.make_node("Conv", ["pool", "w2", "b2"], ["c2"], "c2", pads=[1, 1, 1, 1], group=1),
        helper.make_node("Constant", [], ["to"], "to", value=numpy_helper.from_array(np.array([-1, 6 * 4 * 4]))),
        helper.make_node("Reshape", ["c2", "to"], ["rows"], "rows"),
        helper.make_node("Gemm", ["rows", "fc", "bias"], ["logits"], "logits"),
    ]
    value = helper.make_tensor_value_info
    inputs = [value("input", 1, [1, 3, 17, 19]), *(value(n, 1, list(s)) for n, s in weights.items())]
    graph = helper.make_graph(nodes, "old", inputs, [value("logits", 1, [1, 5])], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=3)
    onnx.checker.check_model(model)
    rows = compare(model, inflate(model, []), frames=17)
    assert [row.name for row in rows] == [node.output[0] for node in nodes if node.op_type != "Constant"]
    assert max(row.difference for row in rows) < 1e-5


def test_the_check_finds_what_is_not_inflated(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = resnet()
    made = inflate(model, [])
    onnx.save(model, tmp_path / "flat.onnx")
    onnx.save(made, tmp_path / "good.onnx")
    for tensor in made.graph.initializer:
        if tensor.name.startswith("a/2/weight"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.001), tensor.name))
    onnx.save(made, tmp_path / "bad.onnx")
    arguments = ["boring", str(tmp_path / "flat.onnx"), "--frames", "24"]
    assert command.main([*arguments, str(tmp_path / "good.onnx")]) == 0
    good = capsys.readouterr().out
    assert command.main([*arguments, str(tmp_path / "bad.onnx")]) == 1
    bad = capsys.readouterr().out
    assert "the fixed point holds" in good and "MISSED" in bad
    line = {row.split("|")[1].strip(): float(row.split("|")[5]) for row in bad.splitlines()[2:-1]}
    assert line["a/1"] < 1e-5 < line["a/2"]
    assert command.main([*arguments, str(tmp_path / "flat.onnx")]) == 2


def test_zeros_at_the_ends_of_time_are_why_time_is_padded_by_its_own_ends() -> None:
    model = resnet()
    made = inflate(model, [])
    x = np.random.default_rng(1).uniform(-1, 1, (1, 3, 41, 37)).astype(np.float32)
    still = np.repeat(x[:, :, None], 24, 2)
    logits = [session(m).run(["logits"], {"input": still})[0] for m in (made, replicated(made, 24))]
    assert np.abs(logits[0] - logits[1]).max() > 1e-3


def test_a_torch_network_with_functions_and_a_flattened_map() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: only the commands that train need it")

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Conv2d(3, 8, 7, 2, 3, bias=False)
            self.norm = torch.nn.BatchNorm2d(8)
            self.b = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.scale = torch.nn.Parameter(torch.rand(8, 1, 1))
            self.fc = torch.nn.Linear(2 * 8 * 4 * 4, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.norm(self.a(x)))
            x = torch.nn.functional.max_pool2d(x, 2)
            y = torch.nn.functional.avg_pool2d(self.b(x) * self.scale, 3, 1, 1)
            x = torch.cat([x, y.clamp(0, 6)], 1)
            x = torch.nn.functional.avg_pool2d(x, 2)
            return self.fc(x.view(x.size(0), -1))

    torch.manual_seed(1)
    net = Net()
    with torch.no_grad():
        net.norm.running_mean.normal_(std=0.3)
        net.norm.running_var.uniform_(0.5, 2)
    model = from_torch(net, (3, 32, 32))
    made = inflate(model, [])
    rows = compare(model, made)
    assert max(row.difference for row in rows) < 1e-5
    assert {"Conv", "BatchNormalization", "MaxPool", "AveragePool", "Concat", "Gemm"} <= {row.op for row in rows}
    # Compared with torch itself, too.
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    still = np.repeat(x.numpy()[:, :, None], 16, 2)
    (logits,) = session(replicated(made, 16)).run(["logits"], {"input": still})
    with torch.no_grad():
        np.testing.assert_allclose(logits, net.eval()(x).numpy(), atol=1e-5)


def test_rules_are_data(flat: onnx.ModelProto, tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(
        '[[rule]]\nmatch = "Mixed_3?/Branch_1/*3x3"\nkernel = 1\n[[rule]]\nop = "Conv"\nfirst = 1\nstride = 1\n'
    )
    made = inflate(flat, read_rules(rules), strict=True)
    nodes = {node.name: {a.name: helper.get_attribute_value(a) for a in node.attribute} for node in made.graph.node}
    assert nodes["Mixed_3b/Branch_1/Conv3d_0b_3x3"]["kernel_shape"] == [1, 3, 3]
    assert nodes["Mixed_3b/Branch_2/Conv3d_0b_3x3"]["kernel_shape"] == [3, 3, 3]
    assert nodes["Conv3d_1a_7x7"]["strides"] == [1, 2, 2]
    assert nodes["MaxPool3d_2a_3x3"]["kernel_shape"] == [3, 3, 3]
    assert max(row.difference for row in compare(flat, made)) < 1e-5
    for text, said in [
        ("[[rule]]\nkernle = 1\n", "kernle means nothing"),
        ("[[rule]]\nkernel = 0\n", "kernel = 0"),
        ('[[rule]]\nkernel = "3"\n', "kernel = '3'"),
        ("[[rule]]\npads = [1]\n", "[front, back]"),
        ("[rules]\n", "only [[rule]] tables"),
        ("kernel =", "cannot read the rules"),
    ]:
        rules.write_text(text)
        with pytest.raises(BadInput) as error:
            read_rules(rules)
        assert said in str(error.value)
    rules.write_text('[[rule]]\nmatch = "MaxPool_2a"\nkernel = 1\n')
    with pytest.raises(BadInput, match="no node fits"):
        inflate(flat, read_rules(rules), strict=True)


def test_a_folder_that_takes_pictures_as_actiond_gives_them(flat: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(flat, tmp_path / "flat.onnx")
    (tmp_path / "labels.txt").write_text("".join(f"label {n}\n" for n in range(CLASSES)))
    out = tmp_path / "model"
    arguments = ["inflate", tmp_path / "flat.onnx", "--manifest", "--labels", tmp_path / "labels.txt", "--frames", 32]
    scaling = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
    assert command.main([*map(str, arguments), *scaling, "--check", "--out", str(out)]) == 0
    (stream,) = tomllib.loads((out / "model.toml").read_text())["stream"]
    assert (stream["frames"], stream["size"], stream["kind"]) == (32, [SIZE, SIZE], "rgb")
    # A picture from 0 to 1, shifted and scaled as the 2D network wants it, and from -1 to 1 as actiond gives it.
    p = np.random.default_rng(2).uniform(0, 1, (1, 3, SIZE, SIZE)).astype(np.float32)
    mean, std = (
        np.array([float(x) for x in text.split(",")], np.float32).reshape(1, 3, 1, 1) for text in scaling[1::2]
    )
    (expected,) = session(flat).run(["logits"], {"input": (p - mean) / std})
    still = np.repeat((2 * p - 1)[:, :, None], 32, 2)
    (logits,) = session(replicated(load(out / "rgb.onnx"), 32)).run(["logits"], {"input": still})
    np.testing.assert_allclose(logits, expected, atol=1e-4)

    binary = Path(os.environ.get("ACTIOND", ROOT / "target" / "release" / "actiond"))
    if not binary.is_file():
        pytest.skip(f"{binary}: actiond is not built (cargo build --release, or say where it is with ACTIOND)")
    clip = ROOT / "demo" / "demo.mp4"
    run = [str(binary), "run", "--model", str(out), "--backend", "tract", "--hop", "64", "--source", str(clip)]
    done = subprocess.run(
        [*run, "--until-end", "--journal", str(tmp_path / "journal")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and " 0 frames in none" in done.stderr, done.stderr


def test_what_cannot_be_inflated_is_told_by_its_node(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def run(*arguments: object) -> str:
        assert command.main(["inflate", *map(str, arguments), "--out", str(tmp_path / "out.onnx")]) == 2
        assert not (tmp_path / "out.onnx").exists()
        return capsys.readouterr().err

    graph = Graph("shuffle")
    x = graph.input("input", [1, 4, 8, 8])
    x = graph.node("Transpose", "turn", [x], perm=[0, 1, 3, 2])
    x = graph.node("ReduceMean", "mean", [x], axes=[2, 3], keepdims=0)
    graph.output(x, [1, 4])
    onnx.save(graph.model(), tmp_path / "turn.onnx")
    assert "node 'turn': there is no 3D Transpose" in run(tmp_path / "turn.onnx")
    assert "there is no such file" in run(tmp_path / "lost.onnx")
    graph = Graph("quantized")
    x = graph.input("input", [1, 3, 8, 8])
    scale = [graph.weight("scale", np.array(0.1)), graph.weight("zero", np.array(0, np.int8))]
    x = graph.node("DequantizeLinear", "fine", [graph.node("QuantizeLinear", "coarse", [x, *scale]), *scale])
    weight = graph.node("DequantizeLinear", "weight", [graph.weight("w", np.ones((4, 3, 3, 3), np.int8)), *scale])
    x = graph.node("GlobalAveragePool", "mean", [graph.node("Conv", "conv", [x, weight])])
    graph.output(graph.node("Flatten", "flat", [x]), [1, 4])
    onnx.save(graph.model(), tmp_path / "int8.onnx")
    assert "node 'coarse': there is no 3D QuantizeLinear" in run(tmp_path / "int8.onnx")
    (tmp_path / "text.onnx").write_text("this is no graph")
    assert "not an ONNX file" in run(tmp_path / "text.onnx")
    onnx.save(resnet(), tmp_path / "resnet.onnx")
    assert "too few" in run(tmp_path / "resnet.onnx", "--frames", 2)
    assert "--mean and --std" in run(tmp_path / "resnet.onnx", "--mean", "1,1,1")
    assert "2 means for 3" in run(tmp_path / "resnet.onnx", "--mean", "1,1", "--std", "1,1")
    assert "--mean must be numbers" in run(tmp_path / "resnet.onnx", "--mean", "0,0,nan", "--std", "1,1,1")


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("[[rule]]\npads = 3", r"rule 1: pads = 3 is not \[front, back\]"),
        ("[[rule]]\nop = 3", "rule 1: op = 3 is no operator's name"),
        ("[[rule]]\nop = [3]", r"rule 1: op = \[3\] is no operator's name"),
        ("[[rule]]\nmatch = 3", "rule 1: match = 3 is no text"),
        ("rule = [3]", "rule 1: is 3 and should be a table"),
    ],
)
def test_rules_of_wrong_kinds(rule: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(rule)
    with pytest.raises(BadInput, match=said):
        read_rules(tmp_path / "rules.toml")


def test_boring_wants_a_picture_s_and_a_video_s_network(flat: onnx.ModelProto, tmp_path: Path, capsys) -> None:
    lstm = ["build", "convnet-lstm", "--classes", "3", "--size", "32", "--width", "0.1", "--out", str(tmp_path / "m")]
    assert command.main(lstm) == 0
    two, three = tmp_path / "2d.onnx", tmp_path / "3d.onnx"
    onnx.save(flat, two)
    onnx.save(inflate(flat, read_rules(PACING)), three)
    for pair, said in (
        ((three, two), "3d.onnx: its input has 5 axes, not 4"),
        ((two, two), "2d.onnx: its input has 4 axes, not 5"),
        ((tmp_path / "m", three), "rgb.onnx: takes input, h, c; the first is the 2D network"),
    ):
        assert command.main(["boring", *map(str, pair)]) == 2
        assert said in capsys.readouterr().err
