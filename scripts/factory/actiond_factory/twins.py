"""The paper's five architectures as trainable torch modules: what `architectures.py` is as ONNX.

Every twin takes [batch, channels, time, height, width] (channels and time as its stream's manifest says: a stack of
flow fields is channels) and gives logits [batch, classes], the ConvNet+LSTM [batch, time, classes]. `weights` gives
what the ONNX graph is built from, batch norm folded in. `logits` is the last layer's name in each.
"""

from collections.abc import Iterator

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .architectures import ARCHITECTURES, C3D, DENSE, HIDDEN, LOGITS, edge
from .graph import Graph
from .i3d import EPSILON, I3D, Inception, Unit, max_pool_same
from .inception import Weights, scaled
from .model import Stream, session


def last_layer(inputs: int, classes: int) -> nn.Linear:
    """A small start, so that a new network believes nothing yet."""
    layer = nn.Linear(inputs, classes)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


class ConvNetLSTM(nn.Module):
    """(a) Inception-V1 on each picture, batch norm, an LSTM; logits at every step."""

    def __init__(self, stream: Stream, classes: int, width: float, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.tower = Inception(stream.channels, width, rank=2)
        self.norm = nn.BatchNorm1d(self.tower.features, eps=EPSILON)
        self.lstm = nn.LSTM(self.tower.features, scaled(HIDDEN, width), batch_first=True)
        self.logits = last_layer(self.lstm.hidden_size, classes)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, times = x.shape[:3]
        x = self.tower.last(x.transpose(1, 2).flatten(0, 1)).mean((2, 3))
        steps, _ = self.lstm(self.norm(x).unflatten(0, (batch, times)))
        return self.logits(F.dropout(steps, self.dropout, self.training))

    def folded(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The LSTM's layers, batch norm folded in; gates from torch's order (i, f, g, o) into ONNX's (i, o, f, g)."""

        def gates(x: Tensor) -> Tensor:
            i, f, g, o = x.chunk(4)
            return torch.cat([i, o, f, g])

        scale = self.norm.weight / torch.sqrt(self.norm.running_var + EPSILON)
        shift = self.norm.bias - self.norm.running_mean * scale
        lstm = self.lstm
        return {
            "LSTM/input": (
                gates(lstm.weight_ih_l0 * scale),
                gates(lstm.bias_ih_l0 + lstm.weight_ih_l0 @ shift),
            ),
            "LSTM/state": (gates(lstm.weight_hh_l0), gates(lstm.bias_hh_l0)),
        }


class Dense(nn.Module):
    """A fully connected layer without bias, batch norm without gamma, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.norm = nn.BatchNorm1d(outputs, eps=EPSILON)
        self.norm.weight.requires_grad_(False)
        nn.init.kaiming_normal_(self.linear.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.linear(x)))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weights [out, in] and bias [out] at inference."""
        scale = self.norm.weight / torch.sqrt(self.norm.running_var + EPSILON)
        return self.linear.weight * scale[:, None], self.norm.bias - self.norm.running_mean * scale


class ConvNet3D(nn.Module):
    """(b) C3D with batch norm, its first pool of temporal stride 2."""

    def __init__(self, stream: Stream, classes: int, width: float, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        inputs = stream.channels
        for name, channels in C3D.items():
            if channels is not None:
                setattr(self, name, Unit(inputs, scaled(channels, width), 3))
                inputs = scaled(channels, width)
        outputs = scaled(DENSE, width)
        self.fc6 = Dense(inputs * edge(stream.size[0]) * edge(stream.size[1]), outputs)
        self.fc7 = Dense(outputs, outputs)
        self.logits = last_layer(outputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        for name, channels in C3D.items():
            x = max_pool_same(x, (2, 2, 2), (2, 2, 2)) if channels is None else getattr(self, name)(x)
        x = x.flatten(1)
        for layer in (self.fc6, self.fc7):
            x = F.dropout(layer(x), self.dropout, self.training)
        return self.logits(x)

    def folded(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The fully connected layers."""
        return {"fc6": self.fc6.folded(), "fc7": self.fc7.folded()}


class FlatStream(Inception):
    """(c) One of the Two-Stream's networks: Inception-V1 on one picture or one stack of flow fields."""

    def __init__(self, stream: Stream, classes: int, width: float, dropout: float) -> None:
        super().__init__(stream.channels, width, rank=2)
        self.dropout = dropout
        self.logits = last_layer(self.features, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(x.squeeze(2)).mean((2, 3))
        return self.logits(F.dropout(x, self.dropout, self.training))


class Fused(nn.Module):
    """(d) Two towers on each of the times, fused by a 3D convolution."""

    def __init__(self, stream: Stream, classes: int, width: float, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.RGB = Inception(3, width, rank=2)
        self.Flow = Inception(stream.channels - 3, width, rank=2)
        self.Fusion = nn.ModuleDict({"Conv3d_3x3x3": Unit(2 * self.RGB.features, scaled(HIDDEN, width), 3)})
        self.logits = last_layer(scaled(HIDDEN, width), classes)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, times = x.shape[:3]
        pictures = x.transpose(1, 2).flatten(0, 1)
        x = torch.cat([self.RGB.last(pictures[:, :3]), self.Flow.last(pictures[:, 3:])], 1)
        x = self.Fusion["Conv3d_3x3x3"](x.unflatten(0, (batch, times)).transpose(1, 2))
        x = max_pool_same(x, (3, 3, 3), (2, 2, 2)).mean((2, 3, 4))
        return self.logits(F.dropout(x, self.dropout, self.training))


def inflated(stream: Stream, classes: int, width: float, dropout: float) -> I3D:
    """(e) One stream of the Two-Stream I3D."""
    return I3D(stream.kind, classes, width, dropout)


TWINS = {
    "convnet-lstm": ConvNetLSTM,
    "3d-convnet": ConvNet3D,
    "two-stream": FlatStream,
    "3d-fused": Fused,
    "two-stream-i3d": inflated,
}


def units(net: nn.Module) -> Iterator[tuple[str, Unit]]:
    """(name in the ONNX graph, unit) of every convolution with batch norm."""
    for name, module in net.named_modules():
        if isinstance(module, Unit):
            yield name.replace("mixed.", "").removeprefix("tower.").replace(".", "/"), module


@torch.no_grad()
def weights(net: nn.Module) -> Weights:
    """What the twin's ONNX graph is built from."""
    found = {name: unit.folded() for name, unit in units(net)}
    found |= net.folded() if hasattr(net, "folded") else {}
    found[LOGITS] = (net.logits.weight, net.logits.bias)
    arrays = {name: tuple(t.detach().float().cpu().numpy() for t in pair) for name, pair in found.items()}
    return arrays.__getitem__


def export(architecture: str, stream: Stream, net: nn.Module) -> Graph:
    """The twin as ONNX."""
    return ARCHITECTURES[architecture].graph(stream, weights(net))


def as_onnx(stream: Stream, x: np.ndarray) -> np.ndarray:
    """[1, C, T, H, W] in the layout of the stream's ONNX input."""
    axes = {"NCTHW": (0, 1, 2, 3, 4), "NTCHW": (0, 2, 1, 3, 4), "NTHWC": (0, 2, 3, 4, 1)}
    if stream.layout == "NCHW":
        return np.ascontiguousarray(x[:, :, 0])
    return np.ascontiguousarray(x.transpose(axes[stream.layout]))


@torch.no_grad()
def difference(architecture: str, stream: Stream, net: nn.Module, model: onnx.ModelProto) -> float:
    """Greatest difference of the logits between torch and ONNX Runtime on noise, over a training example's steps; of
    logits above 1 relative to the greatest."""
    frames = stream.frames * ARCHITECTURES[architecture].steps
    shape = (1, stream.channels, frames, stream.size[1], stream.size[0])
    x = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
    expected = net.eval()(torch.from_numpy(x)).numpy()
    run = session(model)
    carried = {name: np.zeros(shape, np.float32) for name, _, shape in stream.state}
    answers = []
    for first in range(0, frames, stream.frames):
        fed = as_onnx(stream, x[:, :, first : first + stream.frames])
        logits, *state = run.run(["logits", *(output for _, output, _ in stream.state)], {"input": fed, **carried})
        carried = dict(zip(carried, state, strict=True))
        answers.append(logits)
    worst = np.abs(np.stack(answers, 1).reshape(expected.shape) - expected).max()
    return float(worst / max(1.0, np.abs(expected).max()))
