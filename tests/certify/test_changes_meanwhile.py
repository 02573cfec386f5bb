"""A file that changes while it is read never ends in a certificate, a cut or a statistics file."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.gguf_models import EXPERTS, write_model
from trimoe.certify.certificate import Certificate
from trimoe.certify.certify import certify
from trimoe.certify.compare import compare_bytes
from trimoe.certify.expected import Expected
from trimoe.certify.infer import infer_map
from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.errors import CheckpointError
from trimoe.io.progress import Progress
from trimoe.model.safetensors import TensorInfo

MAP = DropMap({0: (1, 4), 1: (0, 7), 2: (2, 3)}, EXPERTS)
Pair = tuple[Path, Path, Path]


def flip(file: Path) -> None:
    """Change the last byte; size and time of the last write stay, as after `rsync -t`."""
    status, data = file.stat(), bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace(file: Path) -> None:
    """Another file with the same bytes takes the name: what was compared is gone."""
    new = file.with_name("new")
    new.write_bytes(file.read_bytes())
    new.replace(file)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def remove(file: Path) -> None:
    file.rename(file.with_name("old"))


@pytest.fixture(params=["safetensors", "gguf"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    """An original, its right cut, and the weights file of the cut."""
    if request.param == "gguf":
        base, small = write_model(tmp_path / "base.gguf", "qwen3moe"), tmp_path / "small.gguf"
        prune(base, MAP, small)
        return base, small, small
    gemma: Path = request.getfixturevalue("gemma")
    base = tmp_path / "base"
    base.mkdir()
    for file in gemma.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    prune(base, request.getfixturevalue("drop_map"), tmp_path / "small")
    return base, tmp_path / "small", next((tmp_path / "small").glob("*.safetensors"))


def at(moment: str, do: Callable[[], None]) -> Progress:
    """A progress function that does something once: at the start or the end of the byte comparison."""
    state = {"done": False}

    def report(done: int, total: int, note: str) -> None:
        if note == "comparing bytes" and not state["done"] and (moment == "start" or done >= total // 2):
            state["done"] = True
            do()

    return report


@pytest.mark.parametrize("moment", ["start", "end"])
@pytest.mark.parametrize("change", [flip, replace, truncate, remove])
def test_a_change_of_the_pruned_model_gives_no_certificate(
    pair: Pair, moment: str, change: Callable[[Path], None]
) -> None:
    base, small, weights = pair
    with pytest.raises(CheckpointError, match=r"was modified|written to|ends early") as caught:
        certify(base, small, logits=False, progress=at(moment, lambda: change(weights)))
    assert "run again" in caught.value.remedy
    assert not list(small.parent.rglob("*certificate.json"))


@pytest.mark.parametrize("moment", ["start", "end"])
def test_a_change_of_the_original_gives_no_certificate(pair: Pair, moment: str) -> None:
    base, small, _ = pair
    file = base if base.is_file() else next(base.glob("*.safetensors"))
    with pytest.raises(CheckpointError, match=r"was modified|written to"):
        certify(base, small, logits=False, progress=at(moment, lambda: flip(file)))


def test_a_small_file_and_a_new_file_count_too(gemma: Path, drop_map: DropMap, tmp_path: Path) -> None:
    small = tmp_path / "small"
    prune(gemma, drop_map, small)
    for change in (
        lambda: (small / "config.json").write_text((small / "config.json").read_text() + "\n"),
        lambda: (small / "generation_config.json").write_text("{}"),
    ):
        with pytest.raises(CheckpointError, match="was modified"):
            certify(gemma, small, logits=False, progress=at("end", change))


def test_infer_map_notices_it_too(pair: Pair) -> None:
    base, small, weights = pair
    with pytest.raises(CheckpointError, match=r"was modified|written to"):
        infer_map(base, small, progress=at("end", lambda: flip(weights)))


def test_an_undisturbed_pair_is_hashed_as_it_is(pair: Pair) -> None:
    base, small, weights = pair
    made = certify(base, small, logits=False)
    assert made.check("cut").status == made.check("untouched").status == "passed"
    assert made.pruned.files[weights.name] == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_the_hash_is_of_the_bytes_that_were_compared(tmp_path: Path) -> None:
    """A file that changes after its block was read: the hash is the old content's, as is the comparison."""
    old = os.urandom(3 << 20) + os.urandom(5)
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(old)
    two.write_bytes(b"head" + old + b"tail")
    a, b = (
        TensorInfo("t", "U8", (len(old),), one, 0, len(old)),
        TensorInfo("t", "U8", (len(old),), two, 4, 4 + len(old)),
    )
    found = compare_bytes(
        {"t": Expected("t", "U8", a.shape, a)}, {"t": b}, progress=lambda *_: two.write_bytes(b"x" * 8)
    )
    assert found.equal == {"t"}
    assert found.sha256[two] in {
        hashlib.sha256(b"head" + old).hexdigest(),  # the tail was gone when it was read
        hashlib.sha256(b"head" + old + b"tail").hexdigest(),
    }


def test_every_row_of_several_blocks_is_compared(tmp_path: Path) -> None:
    """Rows larger than a block, kept rows with gaps: each single changed byte is found."""
    row = (4 << 20) + 3
    rows = [os.urandom(row) for _ in range(4)]
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"".join(rows))
    a = TensorInfo("t", "U8", (4, row), one, 0, 4 * row)
    want = {"t": Expected("t", "U8", (3, row), a, 0, 0, (0, 2, 3))}
    right = rows[0] + rows[2] + rows[3]
    b = TensorInfo("t", "U8", (3, row), two, 0, 3 * row)
    two.write_bytes(right)
    assert compare_bytes(want, {"t": b}).equal == {"t"}
    for place in (0, row - 1, row, 2 * row + 5, 3 * row - 1):
        wrong = bytearray(right)
        wrong[place] ^= 128
        two.write_bytes(wrong)
        assert compare_bytes(want, {"t": b}).equal == set()


def test_prune_notices_a_small_file_that_changes(gemma: Path, drop_map: DropMap, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in gemma.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    calls: list[int] = []

    def report(done: int, total: int, note: str) -> None:
        if not calls:
            calls.append(done)
            (base / "tokenizer_config.json").write_text('{"added": "meanwhile"}')

    (base / "tokenizer_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="was modified while it was cut"):
        prune(base, drop_map, tmp_path / "small", progress=report)
    assert not (tmp_path / "small").exists()


def test_a_certificate_written_meanwhile_is_no_change(gemma: Path, drop_map: DropMap, tmp_path: Path) -> None:
    small = tmp_path / "small"
    prune(gemma, drop_map, small)
    first = certify(gemma, small, logits=False)
    again = certify(gemma, small, logits=False, progress=at("end", lambda: first.save(small / "certificate.json")))
    assert again.as_dict() == first.as_dict() == Certificate.load(small / "certificate.json").as_dict()
