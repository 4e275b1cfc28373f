"""The paper's five architectures: their sizes in the ONNX files, their footprints in the manifests, and that torch and
ONNX Runtime compute the same."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: only the commands that train need it")

from actiond_factory import twins
from actiond_factory.architectures import ARCHITECTURES

SMALL = {"size": 64, "width": 0.1, "classes": 5}


def disturbed(net: torch.nn.Module) -> torch.nn.Module:
    """As after some training: batch norms that do something, logits that differ."""
    with torch.no_grad():
        net.logits.weight.normal_(std=0.3)
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.3, 2)
                module.bias.normal_(std=0.3)
                if module.weight.requires_grad:
                    module.weight.uniform_(0.5, 1.5)
    return net.eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_onnx_agrees_with_its_torch_twin(name: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    architecture = ARCHITECTURES[name]
    for stream in architecture.streams(SMALL["size"], SMALL["width"]):
        net = disturbed(twins.TWINS[name](stream, SMALL["classes"], SMALL["width"], 0.5))
        model = twins.export(name, stream, net).model()
        assert twins.difference(name, stream, net, model) < 1e-4
        with torch.no_grad():
            x = torch.rand(2, stream.channels, stream.frames * architecture.steps, *stream.size) * 2 - 1
            assert np.ptp(net(x).numpy()) > 0.1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_twin_s_shapes_are_what_the_graph_is_built_from(name: str) -> None:
    architecture = ARCHITECTURES[name]
    for stream in architecture.streams(64, 0.25):
        net = twins.TWINS[name](stream, 5, 0.25, 0.0)
        weights = twins.weights(net)
        shapes = architecture.shapes(stream, 5, 0.25)
        assert {n: weights(n)[0].shape for n in shapes} == shapes
        assert {n for n, _ in twins.units(net)} <= set(shapes)
        # Nothing that is trained is left out of the graph.
        trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
        exported = sum(weights(n)[0].size + weights(n)[1].size for n in shapes)
        folded_away = 2 * net.norm.num_features if name == "convnet-lstm" else 0
        assert trained == exported + folded_away
