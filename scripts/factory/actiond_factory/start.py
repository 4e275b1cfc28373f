"""What a network's training begins with: another network's weights, flat or inflated."""

from dataclasses import dataclass
from pathlib import Path

import torch
from onnx import numpy_helper
from torch import Tensor, nn

from .errors import BadInput
from .i3d import EPSILON, Unit
from .inflate import load
from .twins import units


@dataclass(frozen=True)
class Layer:
    """A convolution and its batch norm; or, from an ONNX file, what both were folded into."""

    weight: Tensor
    """[out, in, (t,) h, w]"""
    bias: Tensor
    mean: Tensor | None = None
    variance: Tensor | None = None
    gamma: Tensor | None = None

    @classmethod
    def of(cls, unit: Unit) -> "Layer":
        """A unit's, as it is."""
        norm = unit.norm
        return cls(unit.conv.weight, norm.bias, norm.running_mean, norm.running_var, norm.weight)


def from_onnx(path: Path) -> dict[str, Layer]:
    """Every convolution of a graph of ours, by name."""
    tensors = {t.name: numpy_helper.to_array(t) for t in load(path).graph.initializer}
    return {
        name.removesuffix("/weight"): Layer(
            torch.from_numpy(value.copy()), torch.from_numpy(tensors[name.removesuffix("weight") + "bias"].copy())
        )
        for name, value in tensors.items()
        if name.endswith("/weight") and value.ndim >= 4 and name.removesuffix("weight") + "bias" in tensors
    }


def fitted(weight: Tensor, like: Tensor, stem: bool) -> Tensor:
    """A convolution's weights for a network like `like`: inflated where it has time and they have none, N x N repeated
    N times and divided by N.

    The stem may have another number of input channels, such as flow's: each gets the mean of all, scaled so that a
    picture with equal channels is answered as before.
    """
    if weight.ndim == like.ndim - 1:
        times = like.shape[2]
        weight = weight.unsqueeze(2).repeat(1, 1, times, 1, 1) / times
    inputs, wanted = weight.shape[1], like.shape[1]
    if stem and inputs != wanted:
        weight = weight.mean(1, keepdim=True).repeat_interleave(wanted, 1) * inputs / wanted
    return weight


@torch.no_grad()
def adopt(net: nn.Module, layers: dict[str, Layer], source: str) -> bool:
    """Gives the network's convolutions the layers of their name; the fused network's towers both take the one tower's.

    Whether they came without batch norm, folded: then `measure` has to follow before the network is trained.
    """
    folded = False
    stem = next(name for name, _ in units(net)).split("/")[-1]
    for name, unit in units(net):
        layer = layers.get(name) or layers.get(name.split("/", 1)[-1] if name.startswith(("RGB/", "Flow/")) else "")
        if layer is None:
            if name.startswith("Fusion/"):
                continue
            raise BadInput(f"{source}: no layer {name!r} in it; it has {', '.join(list(layers)[:4])}, ...")
        weight = fitted(layer.weight, unit.conv.weight, name.endswith(stem))
        if weight.shape != unit.conv.weight.shape:
            raise BadInput(
                f"{source}: {name!r} is {list(layer.weight.shape)}, which gives {list(weight.shape)}, and the "
                f"network's is {list(unit.conv.weight.shape)}: is the width another?"
            )
        unit.conv.weight.copy_(weight)
        unit.norm.bias.copy_(layer.bias)
        if layer.mean is None:
            folded = True
            unit.norm.running_mean.zero_()
            unit.norm.running_var.fill_(1 - EPSILON)
        else:
            unit.norm.running_mean.copy_(layer.mean)
            unit.norm.running_var.copy_(layer.variance)
            unit.norm.weight.copy_(layer.gamma)
    return folded


@torch.no_grad()
def measure(net: nn.Module, x: Tensor) -> None:
    """Gives batch norms that were folded away something to normalize by: their inputs' mean and variance on `x`, and
    the gamma and beta that undo it. The network computes what it did."""
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def look(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        axes = [axis for axis in range(inputs[0].ndim) if axis != 1]
        seen[norm] = torch.var_mean(inputs[0].float(), axes, correction=0)

    hooks = [unit.norm.register_forward_pre_hook(look) for _, unit in units(net)]
    net.eval()(x)
    for hook in hooks:
        hook.remove()
    for norm, (variance, mean) in seen.items():
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_(torch.sqrt(variance + EPSILON))
        norm.bias += mean
