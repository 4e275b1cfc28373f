"""TensorFlow's V2 checkpoints ("tensor bundles"), read without TensorFlow; every checksum in them is verified.

A checkpoint `model.ckpt` is `model.ckpt.index`, a sorted table of names to entries in LevelDB's file format, and
`model.ckpt.data-00000-of-00001` (or more shards), the tensors' bytes. The format, as DeepMind's files have it:

- The index ends in a footer of 48 bytes: two handles (offset and size, as varints) of the blocks called metaindex and
  index, zeros up to 40, and the magic number.
- A block is entries, then u32 restarts and their count; behind it one byte for its compression (0: none) and the
  masked CRC-32C of both. An entry is three varints (bytes of its key shared with the one before, bytes not shared,
  bytes of the value), the rest of the key, the value. The index block's values are handles of the data blocks.
- The key "" has a BundleHeaderProto: 1 number of shards, 2 endianness (0 little). All others have a BundleEntryProto:
  1 dtype, 2 shape (repeated 2: dim, whose 1 is the size), 3 shard, 4 offset, 5 size, 6 masked CRC-32C of the bytes,
  7 slices of a partitioned variable. What is left out is 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .crc32c import crc32c, masked
from .errors import BadInput

FOOTER = 48
MAGIC = 0xDB4775248B80FB57
COMPRESSION = {1: "snappy", 2: "zstd"}
# tensorflow/core/framework/types.proto
FLOATS = {1: np.dtype("<f4"), 2: np.dtype("<f8"), 19: np.dtype("<f2")}
BFLOAT16 = 14
OTHERS = {3: np.dtype("<i4"), 4: np.dtype("u1"), 6: np.dtype("i1"), 9: np.dtype("<i8"), 10: np.dtype("?")}
STRING = 7


class _Damaged(Exception):
    """What is wrong inside the index; `Bundle` adds the file's name."""


@dataclass(frozen=True)
class Entry:
    """Where a tensor is."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    """masked"""
    sliced: bool


def varint(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned number of seven bits a byte, and where it ends."""
    value = 0
    for position in range(at, min(at + 10, len(data))):
        value |= (data[position] & 0x7F) << (7 * (position - at))
        if data[position] < 0x80:
            return value, position + 1
    raise _Damaged("a number in it doesn't end")


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a protocol buffer's fields: whole numbers as int, strings and messages as bytes."""
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = varint(message, at)
        elif wire in (1, 5):
            width = 8 if wire == 1 else 4
            value = int.from_bytes(message[at : at + width], "little")
            at += width
        elif wire == 2:
            length, at = varint(message, at)
            value = message[at : at + length]
            at += length
        else:
            raise _Damaged(f"a field of kind {wire}, which no entry has")
        if at > len(message):
            raise _Damaged("an entry that is cut short")
        yield number, value


def block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of the block at `offset`, once its checksum was found right."""
    end = offset + size
    if end + 5 > len(data) - FOOTER:
        raise _Damaged(f"a block that reaches to byte {end + 5}, behind the last one")
    if masked(crc32c(data[offset : end + 1])) != int.from_bytes(data[end + 1 : end + 5], "little"):
        raise _Damaged(f"the block at byte {offset} has another checksum than it should")
    if data[end]:
        kind = COMPRESSION.get(data[end], f"kind {data[end]}")
        raise _Damaged(f"a block that is compressed ({kind}), as no checkpoint of TensorFlow's own writer is")
    if size < 4:
        raise _Damaged(f"the block at byte {offset} is too short")
    restarts = int.from_bytes(data[end - 4 : end], "little")
    stop = size - 4 - 4 * restarts
    if stop < 0:
        raise _Damaged(f"the block at byte {offset} is too short for its {restarts} restarts")
    entries = data[offset : offset + stop]
    at, key = 0, b""
    while at < stop:
        shared, at = varint(entries, at)
        fresh, at = varint(entries, at)
        length, at = varint(entries, at)
        if shared > len(key) or at + fresh + length > stop:
            raise _Damaged(f"an entry of the block at byte {offset} reaches behind its end")
        key = key[:shared] + entries[at : at + fresh]
        at += fresh + length
        yield key, entries[at - length : at]


def table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """All keys and values of a table file, in order."""
    footer = data[-FOOTER:]
    offset, size, at = handle(footer, 0)
    # The metaindex says nothing here, but a wrong byte in it is a damaged file all the same.
    list(block(data, offset, size))
    offset, size, _ = handle(footer, at)
    for _, value in block(data, offset, size):
        begin, length, _ = handle(value, 0)
        yield from block(data, begin, length)


def handle(data: bytes, at: int) -> tuple[int, int, int]:
    """Offset and size of a block, and where the handle ends."""
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return offset, size, at


def entry(message: bytes) -> Entry:
    """A BundleEntryProto."""
    numbers = dict.fromkeys(range(1, 7), 0)
    shape: list[int] = []
    sliced = False
    for number, value in fields(message):
        if number == 2 and isinstance(value, bytes):
            for inner, dim in fields(value):
                if inner == 2 and isinstance(dim, bytes):
                    shape.append(next((size for n, size in fields(dim) if n == 1 and isinstance(size, int)), 0))
        elif number == 7:
            sliced = True
        elif number in numbers and isinstance(value, int):
            numbers[number] = value
        elif number in numbers:
            raise _Damaged(f"field {number} of an entry is no number")
    dtype, _, shard, offset, size, crc = (numbers[n] for n in range(1, 7))
    return Entry(dtype, tuple(shape), shard, offset, size, crc, sliced)


def prefix_of(path: Path) -> Path:
    """The checkpoint's prefix, as TensorFlow names it, of any of its files or of the folder that it lies in."""
    if path.is_dir():
        found = sorted(path.glob("*.index"))
        if len(found) != 1:
            what = (
                "no .index file" if not found else f"{len(found)} checkpoints ({found[0].name}, {found[1].name}, ...)"
            )
            raise BadInput(f"{path}: {what} in it; name the checkpoint, such as {path / 'model.ckpt'}")
        path = found[0]
    name = path.name
    if name.endswith(".index"):
        return path.with_name(name.removesuffix(".index"))
    head, dot, tail = name.rpartition(".data-")
    return path.with_name(head) if dot and "-of-" in tail else path


class Bundle:
    """A checkpoint whose index was read and is sound, and whose data files are as long as it says."""

    def __init__(self, path: Path) -> None:
        self.prefix = prefix_of(path)
        self.index = self.prefix.with_name(self.prefix.name + ".index")
        try:
            data = self.index.read_bytes()
        except FileNotFoundError:
            raise BadInput(
                f"{self.index}: no such file; a TensorFlow checkpoint is a .index and a .data file"
            ) from None
        except OSError as e:
            raise BadInput(f"{self.index}: cannot be read ({e.strerror})") from e
        if len(data) < FOOTER or int.from_bytes(data[-8:], "little") != MAGIC:
            text = " (it is text)" if data[:256].isascii() and data[:1] else ""
            raise BadInput(
                f"{self.index}: not the index of a TensorFlow V2 checkpoint, or cut short{text}: its {len(data)} bytes "
                "don't end in a table's magic number"
            )
        self.entries: dict[str, Entry] = {}
        try:
            header = self._read_table(data)
        except _Damaged as e:
            raise BadInput(f"{self.index}: damaged: {e}; fetch it again") from None
        if header.get(2, 0):
            raise BadInput(f"{self.index}: written on a big-endian machine, which this reader doesn't know")
        self.shards: list[Path] = []
        self._check_sizes(header.get(1, 0))

    def _read_table(self, data: bytes) -> dict[int, int | bytes]:
        """Fills `entries`; gives the header's fields."""
        header: dict[int, int | bytes] | None = None
        before = None
        for key, value in table(data):
            if before is not None and key <= before:
                raise _Damaged("its names are not in order")
            before = key
            if not key:
                header = dict(fields(value))
                continue
            name = key.decode(errors="replace")
            try:
                self.entries[name] = entry(value)
            except _Damaged as e:
                raise _Damaged(f"tensor `{name}`: {e}") from None
        if header is None:
            raise _Damaged("it has no header")
        if not isinstance(header.get(1, 0), int) or not isinstance(header.get(2, 0), int):
            raise _Damaged("its header's fields are no numbers")
        return header

    def _check_sizes(self, shards: int) -> None:
        """Finds the data files: every tensor must lie in one, and be as large as its shape says."""
        lengths = []
        for number in range(shards):
            shard = self.prefix.with_name(f"{self.prefix.name}.data-{number:05d}-of-{shards:05d}")
            try:
                lengths.append(shard.stat().st_size)
            except OSError:
                raise BadInput(f"{shard}: no such file, and {self.index.name} says that it should be there") from None
            self.shards.append(shard)
        for name, e in sorted(self.entries.items(), key=lambda item: item[1].offset):
            if e.shard >= len(self.shards):
                raise BadInput(f"{self.index}: tensor `{name}` is in data file {e.shard} of {len(self.shards)}")
            width = 2 if e.dtype == BFLOAT16 else {**FLOATS, **OTHERS}[e.dtype].itemsize if self._known(e) else None
            count = int(np.prod([float(n) for n in e.shape]))
            if width is not None and not e.sliced and count * width != e.size:
                raise BadInput(
                    f"{self.index}: tensor `{name}` of shape {list(e.shape)} takes {count * width} bytes, not {e.size}"
                )
            if e.offset + e.size > lengths[e.shard]:
                raise BadInput(
                    f"{self.shards[e.shard]}: has {lengths[e.shard]} bytes, and tensor `{name}` ends at byte "
                    f"{e.offset + e.size}: the file is cut short, or not the one that belongs to {self.index.name}"
                )

    @staticmethod
    def _known(e: Entry) -> bool:
        return e.dtype in FLOATS or e.dtype in OTHERS

    def read(self, name: str) -> np.ndarray:
        """A tensor whose bytes have the checksum that they should; strings and the like come as bytes, u8 [size]."""
        e = self.entries[name]
        if e.sliced:
            raise BadInput(
                f"{self.index}: tensor `{name}` is stored in slices (a partitioned variable), which is not read"
            )
        with self.shards[e.shard].open("rb") as file:
            file.seek(e.offset)
            data = file.read(e.size)
        if e.dtype != STRING and masked(crc32c(data)) != e.crc:
            raise BadInput(
                f"{self.shards[e.shard]}: the {e.size} bytes of tensor `{name}` from {e.offset} on have another "
                "checksum than the index says: the file is damaged or not the one that belongs to it"
            )
        if e.dtype == BFLOAT16:
            wide = np.frombuffer(data, "<u2").astype(np.uint32) << 16
            return wide.view(np.float32).reshape(e.shape)
        dtype = {**FLOATS, **OTHERS}.get(e.dtype)
        return np.frombuffer(data, np.uint8) if dtype is None else np.frombuffer(data, dtype).reshape(e.shape)

    def read_all(self) -> dict[str, np.ndarray]:
        """Every tensor by its name."""
        return {name: self.read(name) for name in self.entries}
