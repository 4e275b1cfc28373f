"""The reader of TensorFlow's V2 checkpoints: on bundles made here, DeepMind's real indices, damage of every kind."""

import os
from pathlib import Path

import numpy as np
import pytest
from checkpoints import GOLDEN, message, number, write_bundle

from actiond_factory.bundle import FOOTER, Bundle
from actiond_factory.crc32c import BYTE, crc32c, masked
from actiond_factory.errors import BadInput

TENSORS = {
    "Conv/w": np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 7.5,
    "Conv/batch_norm/beta": np.linspace(-1, 1, 5).astype(np.float32).reshape(1, 1, 1, 1, 5),
    "Conv/batch_norm/moving_mean": np.linspace(-1, 1, 5),
    "Conv/batch_norm/moving_variance": np.linspace(0, 1, 5).astype(np.float16),
    "global_step": np.array(12345, np.int64),
    "odd": np.array([[1, -2], [3, 2**31 - 1]], np.int32),
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The prefix of a small checkpoint of several blocks."""
    write_bundle(tmp_path / "model.ckpt", TENSORS, block_size=60)
    return tmp_path / "model.ckpt"


def files(prefix: Path) -> tuple[Path, Path]:
    """Index and data."""
    return prefix.with_name("model.ckpt.index"), prefix.with_name("model.ckpt.data-00000-of-00001")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # RFC 3720, B.4, and the usual check value.
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_crc32c_has_the_published_values(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected


def test_crc32c_of_any_length_is_that_of_the_plain_loop() -> None:
    def plain(data: bytes) -> int:
        remainder = 0xFFFFFFFF
        for byte in data:
            remainder = int(BYTE[(remainder ^ byte) & 0xFF]) ^ (remainder >> 8)
        return remainder ^ 0xFFFFFFFF

    rng = np.random.default_rng(0)
    for length in [*range(60, 140), 255, 1000, 1023, 1024, 4099, 65_537]:
        data = rng.bytes(length)
        assert crc32c(data) == plain(data), length


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("block_size", [30, 4096])
def test_reads_what_was_written(tmp_path: Path, shards: int, block_size: int) -> None:
    write_bundle(tmp_path / "model.ckpt", TENSORS, shards, block_size)
    for path in (tmp_path, tmp_path / "model.ckpt", tmp_path / "model.ckpt.index"):
        read = Bundle(path).read_all()
        assert set(read) == set(TENSORS)
        for name, value in TENSORS.items():
            assert read[name].dtype == value.dtype
            np.testing.assert_array_equal(read[name], value)
    data = tmp_path / f"model.ckpt.data-00000-of-{shards:05d}"
    assert Bundle(data).prefix == tmp_path / "model.ckpt"


@pytest.mark.skipif(not GOLDEN.exists(), reason="DeepMind's index files are not in ../shared/golden")
@pytest.mark.parametrize(
    ("name", "listing"),
    [
        ("rgb_imagenet", "rgb"),
        ("rgb_scratch", "rgb"),
        ("flow_imagenet", "flow"),
        ("flow_scratch", "flow"),
        ("rgb_scratch_kin600", "real_rgb600"),
    ],
)
def test_reads_deepmind_s_own_indices(tmp_path: Path, name: str, listing: str) -> None:
    rows = [line.split("\t") for line in (GOLDEN / f"tensors_{listing}.tsv").read_text().splitlines()[1:]]
    index, data = files(tmp_path / "model.ckpt")
    index.write_bytes((GOLDEN / "deepmind" / "index" / f"{name}.index").read_bytes())
    data.touch()
    # The data is not here; its length is known, and a file of holes has it.
    os.truncate(data, max(int(row[4]) + int(row[5]) for row in rows))
    found = Bundle(tmp_path).entries
    expected = {r[0]: (tuple(map(int, r[2].split(","))), int(r[3]), int(r[4]), int(r[5])) for r in rows}
    assert {n: (e.shape, e.shard, e.offset, e.size) for n, e in found.items()} == expected
    assert all(e.dtype == 1 for e in found.values())
    with pytest.raises(BadInput, match="another checksum"):
        Bundle(tmp_path).read(rows[0][0])


def test_every_byte_of_the_index_is_checked(bundle: Path) -> None:
    index, _ = files(bundle)
    whole = index.read_bytes()
    ignored = set()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 0x41
        index.write_bytes(changed)
        try:
            read = Bundle(bundle).read_all()
        except BadInput as e:
            assert "model.ckpt" in str(e)
        else:
            ignored.add(position)
            assert all(np.array_equal(read[name], value) for name, value in TENSORS.items())
    # Only the zeros that fill the footer's handles up mean nothing.
    assert min(ignored) >= len(whole) - FOOTER
    assert all(whole[position] == 0 for position in ignored)


def test_an_index_of_any_shorter_length_is_refused(bundle: Path) -> None:
    index, _ = files(bundle)
    whole = index.read_bytes()
    for length in range(len(whole)):
        index.write_bytes(whole[:length])
        with pytest.raises(BadInput, match="model.ckpt.index"):
            Bundle(bundle)


def test_every_byte_of_the_data_is_checked(bundle: Path) -> None:
    _, data = files(bundle)
    whole = data.read_bytes()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1
        data.write_bytes(changed)
        with pytest.raises(BadInput, match="tensor `.*another checksum"):
            Bundle(bundle).read_all()


def test_a_data_file_that_is_too_short_names_file_and_tensor(bundle: Path) -> None:
    _, data = files(bundle)
    os.truncate(data, data.stat().st_size - 1)
    with pytest.raises(BadInput, match=r"data-00000-of-00001: has \d+ bytes, and tensor `odd` ends at .*cut short"):
        Bundle(bundle)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not the index of a TensorFlow V2 checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n" * 3, "it is text"),
        (bytes(1000), "not the index of a TensorFlow V2 checkpoint"),
        (bytes(40) + 0xDB4775248B80FB57.to_bytes(8, "little"), "damaged"),
        (b"\xff" * 40 + 0xDB4775248B80FB57.to_bytes(8, "little"), "damaged"),
    ],
)
def test_what_is_no_index_is_refused(bundle: Path, content: bytes, said: str) -> None:
    index, _ = files(bundle)
    index.write_bytes(content)
    with pytest.raises(BadInput, match=said):
        Bundle(bundle)


def test_missing_files_are_named(bundle: Path) -> None:
    index, data = files(bundle)
    data.unlink()
    with pytest.raises(BadInput, match="data-00000-of-00001: no such file"):
        Bundle(bundle)
    index.unlink()
    with pytest.raises(BadInput, match=r"model.ckpt.index: no such file"):
        Bundle(bundle)
    with pytest.raises(BadInput, match=r"no .index file in it"):
        Bundle(bundle.parent)
    (bundle.parent / "a.index").touch()
    (bundle.parent / "b.index").touch()
    with pytest.raises(BadInput, match="2 checkpoints"):
        Bundle(bundle.parent)


def test_a_shape_that_does_not_fit_its_bytes_is_refused(tmp_path: Path) -> None:
    # A second size in the entry wins, as in any protocol buffer.
    write_bundle(tmp_path / "model.ckpt", {"w": np.zeros(4, np.float32)}, extra=message(2, message(2, number(1, 9))))
    with pytest.raises(BadInput, match=r"tensor `w` of shape \[4, 9\] takes 144 bytes, not 16"):
        Bundle(tmp_path)


def test_a_partitioned_variable_is_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path / "model.ckpt", {"w": np.zeros(4, np.float32)}, extra=message(7, b""))
    with pytest.raises(BadInput, match="tensor `w` is stored in slices"):
        Bundle(tmp_path).read("w")


def test_the_mask_is_tensorflow_s() -> None:
    # Of LevelDB's tests: masking twice is not masking once, and the mask of 0 is its constant.
    assert masked(0) == 0xA282EAD8
    assert masked(1) == (0x00020000 + 0xA282EAD8)
