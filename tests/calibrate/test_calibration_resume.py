"""Interrupted runs: what is kept, what goes on, what is refused, and that the end is the same bytes."""

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from trimoe.calibrate import plan as planning
from trimoe.calibrate.engine import Options, calibrate, prepare
from trimoe.calibrate.forward.layers import LayerModel
from trimoe.calibrate.state import Mark, read_marks, state_path, status
from trimoe.cli.main import main
from trimoe.errors import BadInput, Interrupted, Refused, UsageError


@pytest.fixture(scope="module")
def whole(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """The bytes of an undisturbed run on a set (they do not depend on its folder)."""
    done: dict[str, bytes] = {}

    def run(chosen: Path) -> bytes:
        text = chosen.read_text()
        if text not in done:
            out = tmp_path_factory.mktemp("whole") / "out"
            calibrate(random_model, chosen, out)
            done[text] = out.read_bytes()
        return done[text]

    return run


def stop_after(layers: int) -> Callable[[Mark], None]:
    def on_layer(mark: Mark) -> None:
        if mark.layer + 1 == layers:
            raise KeyboardInterrupt

    return on_layer


def interrupt(model: Path, chosen: Path, out: Path, layers: int, **settings: object) -> None:
    """Stop a run at the moment when this many layers are finished."""
    with pytest.raises(Interrupted, match=f"{layers} of 3 layers are finished"):
        calibrate(model, chosen, out, on_layer=stop_after(layers), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_stopped_run_goes_on_with_the_next_layer(
    random_model: Path,
    small_set: Path,
    tmp_path: Path,
    whole: Callable[..., bytes],
    layers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    interrupt(random_model, small_set, out, layers)
    assert not out.exists()
    found = status(out)
    assert (found["state"], found["layers_finished"], found["layers"]) == ("unfinished", layers, 3)
    assert found["disk"] > 0
    assert (found["seconds_left"] > 0) == (layers < 3)
    ran: list[int] = []
    original = LayerModel.run
    monkeypatch.setattr(LayerModel, "run", lambda self, n, hidden: ran.append(n) or original(self, n, hidden))
    calibrate(random_model, small_set, out)
    assert set(ran) == set(range(layers, 3))
    assert out.read_bytes() == whole(small_set)
    assert not state_path(out).exists()
    assert status(out)["state"] == "finished"


def test_stopped_in_the_middle_of_every_layer(
    random_model: Path, small_set: Path, tmp_path: Path, whole: Callable[..., bytes]
) -> None:
    out = tmp_path / "out"
    for layer in range(3):

        def progress(done: int, total: int, note: str, layer: int = layer) -> None:
            if done == layer * total // 3 + 2:
                raise KeyboardInterrupt

        with pytest.raises(Interrupted, match=f"{layer} of 3 layers are finished"):
            calibrate(random_model, small_set, out, progress=progress)
        assert len(read_marks(state_path(out))) == layer
        assert state_path(out).exists() == (layer > 0), "a run without a finished layer leaves nothing behind"
    calibrate(random_model, small_set, out)
    assert out.read_bytes() == whole(small_set)


def test_killed_between_publishing_and_cleaning_up(
    random_model: Path, small_set: Path, tmp_path: Path, whole: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    from trimoe.calibrate.state import RunState

    with monkeypatch.context() as patch:
        patch.setattr(RunState, "remove", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            calibrate(random_model, small_set, out)
    assert out.exists()
    assert state_path(out).exists()
    stats = calibrate(random_model, small_set, out)
    assert out.read_bytes() == whole(small_set)
    assert stats.metadata["model"]
    assert not state_path(out).exists()


def test_a_file_of_another_run_is_not_taken_for_the_result(random_model: Path, small_set: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    calibrate(random_model, small_set, other, shards=2)
    interrupt(random_model, small_set, out, 1)
    shutil.copy(other, out)
    with pytest.raises(BadInput, match="exists already"):
        calibrate(random_model, small_set, out)
    assert out.read_bytes() == other.read_bytes()


def test_other_settings_are_refused_and_named(random_model: Path, small_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt(random_model, small_set, out, 2)
    for options, word in (
        (Options(shards=4), "shards"),
        (Options(dtype="bfloat16"), "dtype"),
        (Options(batch_tokens=64), "batch_tokens"),
        (Options(neurons=True), "neuron_unit, neurons"),
    ):
        with pytest.raises(UsageError, match=f"the same {word}\n"):
            calibrate(random_model, small_set, out, **vars(options))
    small_set.write_text(small_set.read_text().replace("limit: 4", "limit: 3"))
    with pytest.raises(UsageError, match="the same recon, set\n"):
        calibrate(random_model, small_set, out)
    assert len(read_marks(state_path(out))) == 2
    calibrate(random_model, small_set, out, start_at=0, shards=4)
    assert status(out)["state"] == "finished"


def test_from_a_layer(
    random_model: Path, small_set: Path, tmp_path: Path, whole: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="cannot resume at layer 1"):
        calibrate(random_model, small_set, out, start_at=1)
    interrupt(random_model, small_set, out, 2)
    for layer in (1, 3):
        with pytest.raises(UsageError, match=f"cannot resume at layer {layer}\n.*0 to start over, or 2"):
            calibrate(random_model, small_set, out, start_at=layer)
    ran: list[int] = []
    original = LayerModel.run
    monkeypatch.setattr(LayerModel, "run", lambda self, n, hidden: ran.append(n) or original(self, n, hidden))
    interrupt(random_model, small_set, out, 3, start_at=2)
    assert set(ran) == {2}
    calibrate(random_model, small_set, out, start_at=0)
    assert set(ran) == {0, 1, 2}
    assert out.read_bytes() == whole(small_set)


def test_a_run_without_a_finished_layer_does_not_bind_the_next(
    random_model: Path, small_set: Path, tmp_path: Path
) -> None:
    """What a SIGKILL in the first layer leaves: settings, half of a file, no mark."""
    out = tmp_path / "out"
    folder = state_path(out)
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps({"shards": 99, "layers": 3}))
    (folder / "hidden-0000.bin").write_bytes(b"half")
    assert status(out)["state"] == "none"
    calibrate(random_model, small_set, out)
    assert out.exists()
    assert not folder.exists()


@pytest.mark.parametrize("name", ["hidden-0002.bin", "stats-0000.npz", "stats-0001.npz", "layer-0001.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_state_is_refused(
    random_model: Path, small_set: Path, tmp_path: Path, whole: Callable[..., bytes], name: str, damage: str
) -> None:
    out = tmp_path / "out"
    interrupt(random_model, small_set, out, 2)
    file = state_path(out) / name
    data = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 64
        file.write_bytes(data)
    if (name, damage) != ("layer-0001.json", "remove"):
        with pytest.raises(BadInput, match="missing or damaged"):
            calibrate(random_model, small_set, out)
    else:  # without its mark the layer counts as unfinished, but the hidden states before it are gone
        with pytest.raises(BadInput, match=r"hidden-0001\.bin is missing"):
            calibrate(random_model, small_set, out)
    calibrate(random_model, small_set, out, start_at=0)
    assert out.read_bytes() == whole(small_set)


def test_one_process_per_output(random_model: Path, small_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt(random_model, small_set, out, 1)
    with (state_path(out) / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert status(out)["state"] == "running"
        with pytest.raises(Refused, match="another calibration is using"):
            calibrate(random_model, small_set, out)
        with pytest.raises(Refused, match="another calibration is using"):
            calibrate(random_model, small_set, out, start_at=0)
    assert status(out)["state"] == "unfinished"
    calibrate(random_model, small_set, out)


def test_hidden_states_on_disk_give_the_same_bytes(
    random_model: Path, small_set: Path, tmp_path: Path, whole: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget decides where hidden states live and whether the next layer is read ahead; the result does not change.
    It may also change from one call to the next."""
    everything = prepare(random_model, small_set, Options(ram=1 << 40)).plan
    monkeypatch.setattr(planning, "resident_memory", lambda: 0)
    kept = prepare(random_model, small_set, Options(ram=1 << 40)).plan
    on_disk = Options(ram=kept.peak_ram - 1)
    tight = Options(ram=prepare(random_model, small_set, on_disk).plan.peak_ram - 1)
    for options, wanted in ((on_disk, (False, True)), (tight, (False, False))):
        plan = prepare(random_model, small_set, options).plan
        assert (plan.hidden_in_memory, plan.prefetch) == wanted
        out = tmp_path / f"out{plan.prefetch}"
        calibrate(random_model, small_set, out, **vars(options))
        assert out.read_bytes() == whole(small_set)
    assert (everything.hidden_in_memory, everything.prefetch) == (True, True)
    interrupt(random_model, small_set, tmp_path / "mixed", 1, **vars(tight))
    calibrate(random_model, small_set, tmp_path / "mixed")
    assert (tmp_path / "mixed").read_bytes() == whole(small_set)


def test_a_full_disk_stops_the_run_and_keeps_what_is_finished(
    random_model: Path,
    small_set: Path,
    tmp_path: Path,
    whole: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from trimoe.calibrate.forward import hidden

    out = tmp_path / "out"
    interrupt(random_model, small_set, out, 1)

    def full(file: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(hidden, "_sync", full)
        command = ["calibrate", str(random_model), "--set", str(small_set), "-o", str(out)]
        assert main(command) == 4
        assert "no space left" in capsys.readouterr().err
    assert len(read_marks(state_path(out))) == 1
    calibrate(random_model, small_set, out)
    assert out.read_bytes() == whole(small_set)
