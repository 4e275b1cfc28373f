"""PyTorch's state dicts (.pt, .pth) and safetensors, read without torch.

A .pt file is a pickle, and a pickle is a program: `pickle.load` runs whatever a file names. Here a name that is not one
of the few that a state dict is made of is refused before anything is called, as Python's documentation of `pickle`
shows under "Restricting globals". What these few names stand for is defined here, not in torch.
"""

import io
import json
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import BadInput

# Of torch.serialization before 1.6: pickles one behind the other instead of a zip archive.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
SAFETENSORS = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "bfloat16",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
LARGEST_HEADER = 100_000_000
"""of a safetensors file, as its own reader has it"""
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts keep the weights beside other things."""


def values(data: bytes | memoryview, dtype: str) -> np.ndarray:
    """Little-endian bytes as numbers; bfloat16 becomes f32."""
    if dtype == "bfloat16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, dtype)


def width(dtype: str) -> int:
    """Bytes of a number."""
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


class _Refused(Exception):
    """A pickle asked for something that no state dict needs."""


class _Damaged(Exception):
    """What is wrong inside a file; the reader adds the file's name."""


@dataclass(frozen=True)
class _StorageType:
    dtype: str


@dataclass
class _Storage:
    key: str
    dtype: str
    count: int


@dataclass
class _Tensor:
    """A window into a storage, whose bytes may come later in the file."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage: object, offset: object, shape: object, strides: object, *_: object) -> _Tensor:
    """Stands for `torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`."""
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise _Damaged("a tensor without a storage or with a wrong shape")
    if len(shape) != len(strides):
        raise _Damaged(f"a tensor of shape {list(shape)} with strides {list(strides)}")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(data: object, *_: object) -> object:
    """Stands for `torch._utils._rebuild_parameter`."""
    return data


ALLOWED: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}


class _Unpickler(pickle._Unpickler):
    """Knows the names of `ALLOWED` and torch's storages, and no others.

    Python's own, not the one in C, which makes room for as many memos as a file's largest number: a few bytes take all
    memory.
    """

    # Room for a length that the file only claims, which no state dict needs.
    dispatch = {k: v for k, v in pickle._Unpickler.dispatch.items() if k != pickle.BYTEARRAY8[0]}

    def __init__(self, file: io.BytesIO) -> None:
        # Files of Python 2 have byte strings.
        super().__init__(file, encoding="latin1")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> object:
        """Whatever a pickle wants to call or make goes through here."""
        if module == "torch" and name in STORAGES:
            # A new one each time: a pickle can change what it was given.
            return _StorageType(STORAGES[name])
        if (module, name) not in ALLOWED:
            raise _Refused(f"{module}.{name}")
        return ALLOWED[module, name]

    def persistent_load(self, reference: object) -> _Storage:
        """A storage: ("storage", type, key, device, count), and in old files the part of it that is meant."""
        match reference:
            case ("storage", _StorageType(dtype), str() as key, _, int() as count, *rest):
                if any(part is not None for part in rest):
                    raise _Damaged("a storage that is a view of another, as only PyTorch before 0.4 could write")
                return self.storages.setdefault(key, _Storage(key, dtype, count))
        raise _Damaged("a reference to something that is no storage")


def _load(file: io.BytesIO) -> tuple[object, dict[str, _Storage]]:
    """One pickle, and the storages that it names."""
    unpickler = _Unpickler(file)
    return unpickler.load(), unpickler.storages


def _read_zip(path: Path) -> tuple[object, Callable[[_Storage], bytes]]:
    """Since PyTorch 1.6: NAME/data.pkl and NAME/data/KEY for each storage; the archive's checksums are verified."""
    archive = zipfile.ZipFile(path)
    names = archive.namelist()
    pickles = [name for name in names if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(pickles) != 1:
        raise _Damaged("a zip archive without the one data.pkl that PyTorch's have")
    root = pickles[0].removesuffix("data.pkl")

    def record(name: str) -> bytes:
        # PyTorch compresses nothing, and what is compressed can be of any size.
        if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
            raise _Damaged(f"{name} in it is compressed, as PyTorch writes nothing")
        return archive.read(name)

    if f"{root}byteorder" in names and record(f"{root}byteorder") != b"little":
        raise _Damaged("written on a big-endian machine, which this reader doesn't know")

    def read(storage: _Storage) -> bytes:
        data = record(f"{root}data/{storage.key}")
        if len(data) != storage.count * width(storage.dtype):
            raise _Damaged(f"storage {storage.key} has {len(data)} bytes for {storage.count} numbers")
        return data

    return _load(io.BytesIO(record(pickles[0])))[0], read


def _read_legacy(path: Path) -> tuple[object, Callable[[_Storage], bytes]]:
    """Before PyTorch 1.6: pickles of a magic number, a version, the machine, the object and the storages' keys, then
    for each key its count, i64, and its bytes."""
    data = path.read_bytes()
    if data.startswith(b"PK\3\4"):
        raise _Damaged(f"the file is cut short: a zip archive of which {len(data)} bytes are here, and not its end")
    file = io.BytesIO(data)
    try:
        return _read_pickles(file)
    except (_Refused, _Damaged):
        raise
    except Exception:
        if data.startswith(b"\x80") and file.tell() == len(data):
            raise _Damaged(f"the file is cut short: its pickles go on behind its {len(data)} bytes") from None
        raise


def _read_pickles(file: io.BytesIO) -> tuple[object, Callable[[_Storage], bytes]]:
    """The same, of a file that is open."""
    if _load(file)[0] != LEGACY_MAGIC:
        raise _Damaged("a pickle, but none that PyTorch wrote")
    if _load(file)[0] != LEGACY_VERSION:
        raise _Damaged("written by a PyTorch that nobody knows")
    machine, _ = _load(file)
    if isinstance(machine, dict) and machine.get("little_endian") is False:
        raise _Damaged("written on a big-endian machine, which this reader doesn't know")
    found, storages = _load(file)
    keys, _ = _load(file)
    if not isinstance(keys, list) or set(keys) != set(storages):
        raise _Damaged("its list of storages is not that of its tensors")
    data: dict[str, bytes] = {}
    for key in keys:
        head = file.read(8)
        if len(head) < 8:
            raise _Damaged(f"the file is cut short before storage {key}")
        count = int.from_bytes(head, "little")
        if count != storages[key].count:
            raise _Damaged(f"storage {key} has {count} numbers and should have {storages[key].count}")
        data[key] = file.read(count * width(storages[key].dtype))
    return found, lambda storage: data[storage.key]


def _as_array(tensor: _Tensor, read: Callable[[_Storage], np.ndarray]) -> np.ndarray:
    """The window of the storage that a tensor is; never outside it."""
    reach = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True)) + 1
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, np.float32)
    storage = read(tensor.storage)
    # More numbers than the storage has would be the same ones again and again, without end.
    reach = max(reach, math.prod(tensor.shape))
    if reach > len(storage):
        raise _Damaged(f"reaches to number {reach} of a storage of {len(storage)}: the file is cut short")
    strides = [s * storage.itemsize for s in tensor.strides]
    return np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides, writeable=False).copy()


def _weights(found: object) -> dict[str, _Tensor]:
    """The state dict itself, of whatever a training script has wrapped it in."""
    while isinstance(found, dict):
        if found and all(isinstance(k, str) and isinstance(v, _Tensor) for k, v in found.items()):
            return dict(found)
        inner = next((found[key] for key in WRAPPERS if isinstance(found.get(key), dict)), None)
        if inner is None:
            break
        found = inner
    raise _Damaged(f"no state dict in it (a dict of tensors, or one under {', '.join(WRAPPERS)})")


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a .pt or .pth file by its name."""
    try:
        found, read = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
        cache: dict[str, np.ndarray] = {}

        def storage(of: _Storage) -> np.ndarray:
            if of.key not in cache:
                cache[of.key] = values(read(of), of.dtype)
            return cache[of.key]

        tensors = {}
        for name, tensor in _weights(found).items():
            try:
                tensors[name] = _as_array(tensor, storage)
            except _Damaged as e:
                raise _Damaged(f"tensor `{name}` {e}") from None
            except (KeyError, ValueError, zipfile.BadZipFile) as e:
                raise _Damaged(f"tensor `{name}`: {e}") from None
        return tensors
    except _Refused as e:
        raise BadInput(
            f"{path}: refused, and nothing of it was run: it asks for `{e}`, which no state dict needs; a pickle "
            "can run any program. Where you trust it, save its state dict alone: torch.save(model.state_dict(), PATH)"
        ) from None
    except _Damaged as e:
        raise BadInput(f"{path}: {e}") from None
    except OSError as e:
        raise BadInput(f"{path}: cannot be read ({e.strerror or e})") from e
    # What a damaged pickle or archive makes of Python's reader is not one kind of error.
    except Exception as e:
        raise BadInput(f"{path}: not a file of PyTorch's, or damaged ({type(e).__name__}: {e})") from e


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a .safetensors file by its name: u64 length, that much JSON, then the bytes it points into."""
    try:
        data = path.read_bytes()
    except OSError as e:
        raise BadInput(f"{path}: cannot be read ({e.strerror})") from e
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, LARGEST_HEADER):
        raise BadInput(f"{path}: not a safetensors file, or cut short: it has {len(data)} bytes, its header {length}")
    try:
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        entries = header.items()
    except (ValueError, AttributeError, TypeError, RecursionError) as e:
        raise BadInput(f"{path}: its header is no safetensors header ({type(e).__name__}: {e})") from None
    body = memoryview(data)[8 + length :]
    tensors = {}
    for name, entry in entries:
        match entry:
            case {"dtype": str() as dtype, "shape": list() as shape, "data_offsets": [begin, end]}:
                pass
            case _:
                raise BadInput(
                    f"{path}: tensor `{name}`: no safetensors header has {json.dumps(entry)[:100]} for a tensor"
                )
        if not all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)):
            raise BadInput(f"{path}: tensor `{name}`: shape or offsets are not whole numbers")
        if dtype not in SAFETENSORS:
            raise BadInput(f"{path}: tensor `{name}`: numbers of kind {dtype} are not known")
        size = width(SAFETENSORS[dtype])
        for n in shape:
            size *= n
        if end - begin != size:
            raise BadInput(f"{path}: tensor `{name}` of shape {shape} takes {size} bytes, not {end - begin}")
        if end > len(body):
            raise BadInput(f"{path}: tensor `{name}` ends at byte {end} of {len(body)}: the file is cut short")
        try:
            tensors[name] = values(body[begin:end], SAFETENSORS[dtype]).reshape(shape)
        except (ValueError, OverflowError) as e:
            raise BadInput(f"{path}: tensor `{name}` of shape {shape}: {e}") from None
    return tensors
