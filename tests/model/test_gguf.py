"""GGUF headers against the gguf package, every refusal, and hostile bytes."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.gguf_models import read_oracle, write_model
from trimoe.errors import CheckpointError
from trimoe.model.gguf import header as ours
from trimoe.model.gguf.file import find_gguf, open_gguf, split_name
from trimoe.model.gguf.format import TYPES, header_bytes, nbytes_of, scalar_field
from trimoe.model.gguf.header import read_gguf
from trimoe.model.safetensors import read_bytes

# Kinds that occur inside computations only and in no file; the package has another size for Q8_1 than ggml.h.
NOT_IN_FILES = {"Q8_1", "Q8_K"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("gguf") / "model.gguf", extra=("exp_probs_b.bias",))


def test_block_sizes_are_those_of_the_gguf_package() -> None:
    theirs = {kind.value: (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    for number, (name, block, size) in TYPES.items():
        if number in theirs and name not in NOT_IN_FILES:
            assert theirs[number] == (name, block, size)
    assert {name for _, (name, *_) in theirs.items()} <= {name for name, _, _ in TYPES.values()}


def test_header_is_read_as_the_gguf_package_reads_it(model: Path) -> None:
    found, reader = read_gguf(model), gguf.GGUFReader(model)
    assert [t.name for t in reader.tensors] == list(found.tensors)
    for tensor in reader.tensors:
        info = found.tensors[tensor.name]
        assert (info.dtype, info.start, info.nbytes) == (tensor.tensor_type.name, tensor.data_offset, tensor.n_bytes)
        assert info.shape == tuple(int(n) for n in reversed(tensor.shape))
    values = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert {key: field.value() for key, field in found.fields.items()} == values


def test_every_value_type_is_read(tmp_path: Path) -> None:
    path = tmp_path / "values.gguf"
    writer = gguf.GGUFWriter(path, "test")
    kinds = gguf.GGUFValueType
    numbers = {
        kinds.UINT8: 200,
        kinds.INT8: -5,
        kinds.UINT16: 60000,
        kinds.INT16: -300,
        kinds.UINT32: 4_000_000_000,
        kinds.INT32: -7,
        kinds.FLOAT32: 0.5,
        kinds.BOOL: True,
        kinds.UINT64: 1 << 63,
        kinds.INT64: -(1 << 40),
        kinds.FLOAT64: 0.1,
    }
    for kind, value in numbers.items():
        writer.add_key_value(f"one.{kind.name}", value, kind)
        writer.add_key_value(f"many.{kind.name}", [value, value], kinds.ARRAY, kind)
    writer.add_string("text", "zwölf 字")
    writer.add_array("texts", ["", "b", "字"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    fields = read_gguf(path).fields
    for kind, value in numbers.items():
        assert fields[f"one.{kind.name}"].value() == value
        assert fields[f"many.{kind.name}"].value() == [value, value]
    assert fields["text"].value() == "zwölf 字"
    assert fields["texts"].value() == ["", "b", "字"]


def test_a_written_header_is_the_read_one(model: Path) -> None:
    found = read_gguf(model)
    tensors = {name: (info.dtype, info.shape) for name, info in found.tensors.items()}
    written = header_bytes(found.version, found.fields.values(), tensors, found.alignment)
    assert written == model.read_bytes()[: found.data_start]


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_alignment_is_that_of_the_file(tmp_path: Path, alignment: int) -> None:
    path = write_model(tmp_path / "m.gguf", alignment=alignment, dtype="F16")
    found = read_gguf(path)
    assert found.alignment == alignment
    assert all(info.start % alignment == 0 for info in found.tensors.values())
    data, oracle = path.read_bytes(), read_oracle(path)[0]
    assert all(data[i.start : i.end] == oracle[i.name][1].tobytes() for i in found.tensors.values())


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def key(name: bytes, kind: int, payload: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + payload


def tensor(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def build(keys: list[bytes], tensors: list[bytes], data: bytes = b"", version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    return head + (bytes(-len(head) % 32) + data if tensors else b"")


GOOD = build([key(b"a", 4, b"\1\0\0\0")], [tensor(b"t", (8,))], bytes(32))
WRONG: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a GGUF"),
    "other magic": (b"GGML" + GOOD[4:], "not a GGUF"),
    "version 1": (build([], [], version=1), "version 1"),
    "version 4": (build([], [], version=4), "version 4"),
    "big endian": (GOOD[:4] + struct.pack(">I", 3) + GOOD[8:], "big-endian"),
    "ends in counts": (GOOD[:20], "ends inside"),
    "ends in a key": (GOOD[:30], "ends inside"),
    "ends in the data": (GOOD[:-8], "past the end"),
    "longer than its tensors": (GOOD + bytes(64), "does not end"),
    "too many tensors": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 62, 0), "impossible header"),
    "too many keys": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 62), "impossible header"),
    "key twice": (build([key(b"a", 4, b"\1\0\0\0")] * 2, []), "is listed twice"),
    "empty key": (build([key(b"", 4, b"\1\0\0\0")], []), "key of 0 bytes"),
    "key not UTF-8": (build([key(b"\xff\xfe", 4, b"\1\0\0\0")], []), "not UTF-8"),
    "long string": (build([key(b"a", 8, struct.pack("<Q", 1 << 63))], []), "ends inside"),
    "long array": (build([key(b"a", 9, struct.pack("<IQ", 10, 1 << 61))], []), "ends inside"),
    "endless strings": (build([key(b"a", 9, struct.pack("<IQ", 8, 1 << 40))], []), "strings"),
    "long string in an array": (build([key(b"a", 9, struct.pack("<IQQ", 8, 1, 1 << 62))], []), "ends inside"),
    "array of arrays": (build([key(b"a", 9, struct.pack("<IQ", 9, 1))], []), "array of type 9"),
    "unknown value type": (build([key(b"a", 13, bytes(8))], []), "unknown type 13"),
    "alignment 0": (build([key(b"general.alignment", 4, bytes(4))], []), "impossible general.alignment"),
    "alignment 24": (build([key(b"general.alignment", 4, b"\x18\0\0\0")], []), "impossible general.alignment"),
    "alignment as text": (build([key(b"general.alignment", 8, string(b"32"))], []), "impossible general.alignment"),
    "tensor twice": (build([], [tensor(b"t", (8,)), tensor(b"t", (8,), 0, 32)], bytes(64)), "is listed twice"),
    "nameless tensor": (build([], [tensor(b"", (8,))], bytes(32)), "tensor name of 0"),
    "five dimensions": (build([], [tensor(b"t", (1, 1, 1, 1, 8))], bytes(32)), "5 dimensions"),
    "removed type": (build([], [tensor(b"t", (32,), 4)], bytes(32)), "unknown type 4"),
    "future type": (build([], [tensor(b"t", (32,), 99)], bytes(32)), "unknown type 99"),
    "half a block": (build([], [tensor(b"t", (48,), 8)], bytes(64)), "not whole blocks"),
    "huge": (build([], [tensor(b"t", (1 << 40, 1 << 40))], bytes(32)), "impossibly large"),
    "negative length": (build([], [tensor(b"t", ((1 << 64) - 8,))], bytes(32)), "impossibly large"),
    "overlap": (build([], [tensor(b"t", (8,)), tensor(b"u", (8,), 0, 0)], bytes(64)), "overlaps"),
    "gap": (build([], [tensor(b"t", (8,)), tensor(b"u", (8,), 0, 64)], bytes(96)), "leaves a gap"),
    "first not at 0": (build([], [tensor(b"t", (8,), 0, 32)], bytes(64)), "leaves a gap"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_header_is_refused(name: str, tmp_path: Path) -> None:
    data, message = WRONG[name]
    path = tmp_path / "wrong.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_gguf(path)


def test_the_good_header_of_these_tests_is_good(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(GOOD)
    assert read_gguf(path).tensors["t"].shape == (8,)
    for length in (20, 32):  # with and without the last padding
        path.write_bytes(build([], [tensor(b"t", (5,))], bytes(length)))
        assert read_gguf(path).tensors["t"].nbytes == 20
    path.write_bytes(build([], []))
    assert read_gguf(path).tensors == {}


NUMBERS = [0, 1, 255, 1 << 31, 1 << 62, (1 << 64) - 1]


def mutated(raw: bytes, data: st.DataObject, header: int) -> bytes:
    """One to six changes of the first `header` bytes."""
    changed = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, header - 80))
        kind = data.draw(st.sampled_from(["byte", "byte", "number", "cut", "insert"]))
        if kind == "byte":
            changed[at] = data.draw(st.integers(0, 255))
        elif kind == "number":
            changed[at : at + 8] = struct.pack("<Q", data.draw(st.sampled_from(NUMBERS)))
        elif kind == "cut":
            del changed[at : at + data.draw(st.integers(1, 64))]
        else:
            changed[at:at] = data.draw(st.binary(min_size=1, max_size=16))
    return bytes(changed)


def test_mutated_headers_are_read_or_refused(tmp_path: Path) -> None:
    """What is read lies inside the file, tensor beside tensor, in the size of its type and shape."""
    model = write_model(tmp_path / "small.gguf", layers=1, experts=2)
    raw, header = model.read_bytes(), read_gguf(model).data_start
    path, seen = tmp_path / "mutated.gguf", {"read": 0, "refused": 0}

    @settings(max_examples=300, deadline=None)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        path.write_bytes(mutated(raw, data, header))
        try:
            found = open_gguf(path)
        except CheckpointError:
            seen["refused"] += 1
            return
        seen["read"] += 1
        end = path.stat().st_size
        for info in found.index.values():
            assert header - 512 < info.start <= info.end <= end
            assert len(read_bytes(info)) == info.nbytes

    check()
    assert min(seen.values()) >= 10, seen


def test_split_files_are_one_model(tmp_path: Path) -> None:
    whole = read_gguf(write_model(tmp_path / "whole.gguf"))
    data = whole.path.read_bytes()
    names = list(whole.tensors)
    halves = [names[:7], names[7:]]
    for number, group in enumerate(halves):
        keys = [
            scalar_field("split.no", 2, number),
            scalar_field("split.count", 2, 2),
            scalar_field("split.tensors.count", 5, len(names)),
        ]
        fields = [*(whole.fields.values() if number == 0 else ()), *keys]
        tensors = {n: (whole.tensors[n].dtype, whole.tensors[n].shape) for n in group}
        body = b"".join(
            data[whole.tensors[n].start : whole.tensors[n].end] + bytes(-whole.tensors[n].nbytes % 32) for n in group
        )
        (tmp_path / split_name("parts", number, 2)).write_bytes(header_bytes(3, fields, tensors, 32) + body)
    for name in ("parts-00001-of-00002.gguf", "parts-00002-of-00002.gguf"):
        found = open_gguf(tmp_path / name)
        assert list(found.index) == names
        assert found.fields["general.name"].value() == "a small qwen3moe"
    (tmp_path / "parts-00002-of-00002.gguf").rename(tmp_path / "away.gguf")
    with pytest.raises(CheckpointError, match=r"parts-00002-of-00002\.gguf not found"):
        open_gguf(tmp_path / "parts-00001-of-00002.gguf")
    with pytest.raises(CheckpointError, match="not named like one"):
        open_gguf(tmp_path / "away.gguf")
    (tmp_path / "parts-00001-of-00002.gguf").replace(tmp_path / "parts-00002-of-00002.gguf")
    (tmp_path / "away.gguf").rename(tmp_path / "parts-00001-of-00002.gguf")
    with pytest.raises(CheckpointError, match="not part 1 of 2"):
        open_gguf(tmp_path / "parts-00001-of-00002.gguf")


def test_what_a_path_means(tmp_path: Path, model: Path) -> None:
    assert find_gguf(model) == model
    assert find_gguf(tmp_path) is None
    assert find_gguf(tmp_path / "absent.gguf") == tmp_path / "absent.gguf"
    (tmp_path / "text").write_text("no")
    assert find_gguf(tmp_path / "text") is None
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "m-00001-of-00002.gguf").write_bytes(GOOD)
    (folder / "m-00002-of-00002.gguf").write_bytes(GOOD)
    assert find_gguf(folder) == folder / "m-00001-of-00002.gguf"
    (folder / "other.gguf").write_bytes(GOOD)
    with pytest.raises(CheckpointError, match="several models"):
        find_gguf(folder)


def test_numbers_that_do_not_fit_are_refused() -> None:
    assert scalar_field("k", 0, 255).value() == 255
    with pytest.raises(CheckpointError, match="cannot hold 256"):
        scalar_field("k", 0, 256)
    assert nbytes_of("Q6_K", (3, 512)) == 3 * 2 * 210


def test_a_large_vocabulary_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """A vocabulary of 300,000 strings and 2 MiB of scores: the reader crosses its own block borders everywhere."""
    count = 300_000
    texts = b"".join(string(b"token%d" % i) for i in range(count))
    scores = np.arange(count, dtype="<f4").tobytes()
    keys = [
        key(b"tokens", 9, struct.pack("<IQ", 8, count) + texts),
        key(b"scores", 9, struct.pack("<IQ", 6, count) + scores),
    ]
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(build(keys, [tensor(b"t", (8,))], bytes(32)))
    fields = read_gguf(path).fields
    assert fields["tokens"].value()[count - 1] == f"token{count - 1}"
    assert fields["scores"].value()[-1] == count - 1


def test_the_header_limit_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "MAX_HEADER", 1000)
    path = tmp_path / "large.gguf"
    path.write_bytes(build([key(b"a", 8, string(bytes(5000)))], []))
    with pytest.raises(CheckpointError, match="too large"):
        read_gguf(path)
