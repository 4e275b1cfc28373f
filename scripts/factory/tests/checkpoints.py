"""Writes checkpoints for the tests: TensorFlow V2 bundles, safetensors, and I3D's random weights under every naming."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from actiond_factory.crc32c import crc32c, masked
from actiond_factory.importer import LOGITS, NAMINGS, Naming
from actiond_factory.inception import shapes

SHARED = Path(__file__).parents[3].parent / "shared"
GOLDEN = SHARED / "golden"
DTYPES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "float16": 19}
TENSORFLOW, PIERGIAJ, HASSONY2 = NAMINGS


def varint(value: int) -> bytes:
    """Seven bits a byte, lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    """A protocol buffer's field; left out where it is 0, as the format has it."""
    return varint(field << 3) + varint(value) if value else b""


def message(field: int, content: bytes) -> bytes:
    """A field that is a message."""
    return varint(field << 3 | 2) + varint(len(content)) + content


def block(entries: list[tuple[bytes, bytes]], every: int = 16) -> bytes:
    """A block of a table: a restart, where nothing is shared with the key before, at each `every` entries."""
    out, restarts, before = bytearray(), [], b""
    for index, (key, value) in enumerate(entries):
        shared = 0
        if index % every == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return bytes(out) + b"".join(n.to_bytes(4, "little") for n in [*(restarts or [0]), max(len(restarts), 1)])


def table(entries: list[tuple[bytes, bytes]], block_size: int = 4096) -> bytes:
    """A table file of sorted entries."""
    out, index = bytearray(), []

    def add(content: bytes) -> bytes:
        offset = len(out)
        checksum = masked(crc32c(content + b"\0"))
        out.extend(content + b"\0" + checksum.to_bytes(4, "little"))
        return varint(offset) + varint(len(content))

    group: list[tuple[bytes, bytes]] = []
    for entry in entries:
        group.append(entry)
        if sum(len(k) + len(v) for k, v in group) > block_size:
            index.append((group[-1][0], add(block(group))))
            group = []
    if group:
        index.append((group[-1][0], add(block(group))))
    footer = add(block([])) + add(block(index, 1))
    return bytes(out) + footer.ljust(40, b"\0") + 0xDB4775248B80FB57.to_bytes(8, "little")


def write_bundle(
    prefix: Path, tensors: Mapping[str, np.ndarray], shards: int = 1, block_size: int = 4096, extra: bytes = b""
) -> Path:
    """`prefix`.index and its data; the tensors go to the shards in turn. `extra`: fields for every entry."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    version = message(3, number(1, 1))
    entries = [(b"", number(1, shards) + version)]
    files = [prefix.with_name(f"{prefix.name}.data-{n:05d}-of-{shards:05d}").open("wb") for n in range(shards)]
    for count, name in enumerate(sorted(tensors)):
        shard = count % shards
        data = np.ascontiguousarray(tensors[name]).tobytes()
        dims = b"".join(message(2, number(1, size)) for size in tensors[name].shape)
        entries.append(
            (
                name.encode(),
                number(1, DTYPES[tensors[name].dtype.name])
                + message(2, dims)
                + number(3, shard)
                + number(4, files[shard].tell())
                + number(5, len(data))
                + varint(6 << 3 | 5)
                + masked(crc32c(data)).to_bytes(4, "little")
                + extra,
            )
        )
        files[shard].write(data)
    for file in files:
        file.close()
    index = prefix.with_name(prefix.name + ".index")
    index.write_bytes(table(entries, block_size))
    return index


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """A .safetensors file of f32."""
    header, body = {"__metadata__": {"format": "pt"}}, bytearray()
    for name, value in tensors.items():
        data = np.ascontiguousarray(value, np.float32).tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(value.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def random_i3d(stream: str, classes: int, seed: int = 1) -> dict[tuple[str, str], np.ndarray]:
    """(unit, part) to numbers, weights as [out, in, t, h, w]; activations keep about their size through the network."""
    rng = np.random.default_rng(seed)
    out: dict[tuple[str, str], np.ndarray] = {}
    for unit, shape in shapes({"rgb": 3, "flow": 2}[stream]).items():
        scale = np.sqrt(2 / np.prod(shape[1:]))
        out[unit, "weight"] = rng.standard_normal(shape, np.float32) * np.float32(scale)
        out[unit, "mean"] = rng.normal(0, 0.1, shape[:1]).astype(np.float32)
        out[unit, "variance"] = rng.uniform(0.5, 1.5, shape[:1]).astype(np.float32)
        out[unit, "beta"] = rng.normal(0, 0.1, shape[:1]).astype(np.float32)
    out[LOGITS, "weight"] = rng.normal(0, 0.2, (classes, 1024, 1, 1, 1)).astype(np.float32)
    out[LOGITS, "bias"] = rng.normal(0, 0.1, classes).astype(np.float32)
    return out


def named(
    numbers: Mapping[tuple[str, str], np.ndarray], naming: Naming, prefix: str = "", vectors: int = 1
) -> dict[str, np.ndarray]:
    """The numbers as a file has them; batch norm's vectors have `vectors` axes, all but the last of length 1."""
    out = {}
    for (unit, part), value in numbers.items():
        if part == "weight":
            value = value.transpose(np.argsort(naming.axes))
        elif unit != LOGITS:
            value = value.reshape([1] * (vectors - 1) + [-1])
        out[prefix + naming.unit(unit) + getattr(naming, part)] = value
    return out
