"""The paper's architectures as ONNX graphs and manifest streams. Needs no torch.

An architecture's graph is built from `Weights`, whoever they come from: seeded random numbers here, a torch twin, a
checkpoint.
"""

from collections.abc import Callable
from dataclasses import dataclass

from . import inception
from .graph import Graph
from .inception import CHANNELS, Weights
from .model import Stream

LOGITS = "Logits/Conv3d_0c_1x1"


@dataclass(frozen=True)
class Architecture:
    """One of the paper's systems."""

    text: str
    size: int
    """pixels of the input's side in the paper"""
    streams: Callable[[int], list[Stream]]
    """of an input of `size` pixels"""
    shapes: Callable[[Stream, int, float], dict[str, tuple[int, ...]]]
    """stream, classes, width -> every unit's name and the shape of its weights"""
    graph: Callable[[Stream, Weights], Graph]


def bound(size: int) -> float:
    """Pixels of flow that become 1: the paper's 20 at 224, and as far across a picture of another size."""
    return round(20 * size / 224, 3)


def i3d_streams(size: int) -> list[Stream]:
    """64 pictures and 64 flow fields, 2.56 s."""
    return [
        Stream("rgb", "rgb", (size, size), frames=64, fit="crop"),
        Stream("flow", "flow", (size, size), frames=64, fit="crop", bound=bound(size)),
    ]


def i3d_shapes(stream: Stream, classes: int, width: float) -> dict[str, tuple[int, ...]]:
    """Of one stream's network."""
    shapes = inception.shapes(CHANNELS[stream.kind], width)
    return shapes | {LOGITS: (classes, inception.features(width), 1, 1, 1)}


def i3d_graph(stream: Stream, weights: Weights) -> Graph:
    """One stream's network; its time axis is open."""
    return inception.i3d(stream.kind, stream.size[0], weights, weights(LOGITS))


ARCHITECTURES = {
    "two-stream-i3d": Architecture(
        "(e) Inception-V1 inflated, on 64 RGB frames and on 64 flow frames", 224, i3d_streams, i3d_shapes, i3d_graph
    ),
}
