"""Uploads against a local stand-in of the hub that checks what is sent. The client is a process of its own, as a user
starts it, so that its environment, its arguments, its end by a kill and all that it leaves are the real ones."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from helpers.hub_stand_in import Hub, running
from trimoe.io.jsonfile import write_json

pytest.importorskip("huggingface_hub")
TOKEN = "hf_" + "SecretOfTheTests" * 2
CARD = "---\nlicense: gemma\nbase_model: org/base\ntags: [moe]\n---\n# small\n"
REPO = "me/small-GGUF"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running(Hub(TOKEN)) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "ggufs"
    path.mkdir()
    rows = []
    for number, tier in enumerate(("Q4_K_M", "Q6_K", "Q8_0")):
        data = bytes([number]) * (1000 + number)
        (path / f"small-{tier}.gguf").write_bytes(data)
        rows.append(
            {
                "tier": tier,
                "file": f"small-{tier}.gguf",
                "file_bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "smoke": {"failed": None},
            }
        )
    write_json(path / "ladder.json", {"files": rows})
    (path / "README.md").write_text(CARD)
    (path / "README.numbers.json").write_text("{}")
    (path / "runs.db").write_bytes(b"x")
    (path / ".small.partial").write_bytes(b"x")
    return path


def environment(hub: Hub, home: Path, token: str | None = TOKEN) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    more = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**kept, **more, **({"HF_TOKEN": token} if token else {})}


def command(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "trimoe", "publish", str(folder), "--to", "hub", "--repo", REPO, *options]


def run(hub: Hub, folder: Path, *options: str, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(folder, *options),
        env=environment(hub, folder.parent / "home", token),
        capture_output=True,
        text=True,
        timeout=240,
    )
    nowhere(folder.parent, done.stdout, done.stderr)
    assert hub.wrong == []
    return done


def nowhere(root: Path, *texts: str) -> None:
    """The token stands in no output and in no file."""
    for text in texts:
        assert TOKEN not in text
    for path in root.rglob("*"):
        assert not (path.is_file() and TOKEN.encode() in path.read_bytes()), path


def actions(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return {row["file"]: row["action"] for row in json.loads(done.stdout)["files"]}


def test_the_whole_way(hub: Hub, folder: Path) -> None:
    made = run(hub, folder, "--dry-run", "--json")
    assert made.returncode == 0, made.stderr
    assert actions(made) == {
        "small-Q4_K_M.gguf": "upload",
        "small-Q6_K.gguf": "upload",
        "small-Q8_0.gguf": "upload",
        "ladder.json": "upload",
        "README.md": "upload",
        "README.numbers.json": "leave out",
        "runs.db": "leave out",
        ".small.partial": "leave out",
    }
    assert all(row["reason"] for row in json.loads(made.stdout)["files"])
    assert (hub.repos, hub.received) == ({}, [])

    made = run(hub, folder, "--private")
    assert made.returncode == 0, made.stderr
    names = ["small-Q4_K_M.gguf", "small-Q6_K.gguf", "small-Q8_0.gguf", "ladder.json", "README.md"]
    assert {n: hub.repos[REPO][n] for n in names} == {n: (folder / n).read_bytes() for n in names}
    assert set(hub.repos[REPO]) == {*names, ".gitattributes"}
    assert hub.commits == [names[:1], names[1:2], names[2:3], names[3:]]
    assert hub.private == {REPO}

    sent = len(hub.received)
    made = run(hub, folder, "--json")
    assert set(actions(made).values()) == {"same", "leave out"}
    assert (len(hub.received), len(hub.commits)) == (sent, 4)

    (folder / "README.md").write_text(CARD + "\nA line more.\n")
    assert run(hub, folder).returncode == 0
    assert hub.commits[4:] == [["README.md"]]
    assert hub.repos[REPO]["README.md"] == (folder / "README.md").read_bytes()


def test_a_kill_in_the_middle_costs_the_file_in_flight(hub: Hub, folder: Path) -> None:
    hub.hold, hub.hold_at = threading.Event(), 1  # the second weight file does not get through
    running_client = subprocess.Popen(
        command(folder),
        env=environment(hub, folder.parent / "home"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert hub.holding.wait(120)
    arguments = Path(f"/proc/{running_client.pid}/cmdline")
    if arguments.exists():
        assert TOKEN.encode() not in arguments.read_bytes()
    running_client.send_signal(signal.SIGKILL)
    nowhere(folder.parent, *running_client.communicate(timeout=60))
    assert hub.commits == [["small-Q4_K_M.gguf"]]
    hub.hold.set()
    hub.hold, before = None, list(hub.received)
    made = run(hub, folder, "--json")
    assert made.returncode == 0, made.stderr
    assert actions(made)["small-Q4_K_M.gguf"] == "same"
    assert [size for _, size in hub.received[len(before) :]] == [1001, 1002]
    assert set(hub.repos[REPO]) >= {"small-Q4_K_M.gguf", "small-Q6_K.gguf", "small-Q8_0.gguf", "README.md"}


def test_a_curated_readme_stays_without_force(hub: Hub, folder: Path) -> None:
    hub.repos[REPO] = {"README.md": b"# by hand\n"}
    made = run(hub, folder, "--json")
    assert made.returncode == 0
    assert actions(made)["README.md"] == "keep"
    assert hub.repos[REPO]["README.md"] == b"# by hand\n"
    assert run(hub, folder, "--force").returncode == 0
    assert hub.repos[REPO]["README.md"] == CARD.encode()
    # ours, then edited on the hub: not ours any more
    hub.repos[REPO]["README.md"] = CARD.encode() + b"edited on the hub\n"
    (folder / "README.md").write_text(CARD + "new\n")
    assert actions(run(hub, folder, "--json"))["README.md"] == "keep"
    assert hub.repos[REPO]["README.md"].endswith(b"edited on the hub\n")


def refused(hub: Hub, folder: Path, word: str, *options: str, code: int = 5, token: str | None = TOKEN) -> None:
    made = run(hub, folder, *options, token=token)
    assert made.returncode == code, made.stderr
    assert word in made.stderr
    assert (hub.commits, hub.received) == ([], [])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"smoke": {"failed": "does not end", "unchecked": None}}, "does not end"),
        ({"smoke": {"failed": None, "unchecked": "the base itself fails"}}, "base itself fails"),
        ({"smoke": None}, "no smoke test"),
        ({"sha256": "0" * 64}, "not the file that was checked"),
        ({"file_bytes": 3}, "not the file that was checked"),
    ],
)
def test_a_ladder_that_was_not_checked_is_refused(hub: Hub, folder: Path, change: dict[str, Any], word: str) -> None:
    table = json.loads((folder / "ladder.json").read_text())
    table["files"][1] |= change
    write_json(folder / "ladder.json", table, overwrite=True)
    refused(hub, folder, word, "--force")


def test_marks_of_healing_and_audit_are_refused(hub: Hub, folder: Path) -> None:
    good = {"method": "router", "publishable": True, "reasons": [], "earlier": []}
    worse = {"method": "ffn", "publishable": False, "reasons": ["KL rose"]}
    for heal in ({**good, **worse}, {**good, "earlier": [worse]}, {"method": "router"}):
        write_json(folder / "trimoe.json", {"kind": "healed checkpoint", "facts": {"heal": heal}}, overwrite=True)
        refused(hub, folder, "did not improve it", "--force")
    write_json(folder / "trimoe.json", {"kind": "healed checkpoint", "facts": {"heal": good}}, overwrite=True)
    verdict = {"query": "audit", "text": "refused", "arguments": {"what": "verdict", "bench": "b", "name": "n"}}
    (folder / "README.numbers.json").write_text(json.dumps({"numbers": [verdict]}))
    refused(hub, folder, "the audit refused b of n")
    (folder / "README.numbers.json").unlink()
    assert run(hub, folder).returncode == 0


def test_secrets_and_links_are_refused(hub: Hub, folder: Path, tmp_path: Path) -> None:
    (folder / "notes.txt").write_text(f"token {TOKEN}")
    made = subprocess.run(
        command(folder), env=environment(hub, tmp_path / "home"), capture_output=True, text=True, timeout=240
    )
    assert (made.returncode, hub.repos) == (5, {})
    assert "contains the login token" in made.stderr
    assert TOKEN not in made.stdout + made.stderr
    (folder / "notes.txt").unlink()
    (tmp_path / "private.json").write_text("{}")
    (folder / "config.json").symlink_to(tmp_path / "private.json")
    refused(hub, folder, "link out of the folder", code=3)


def test_logins(hub: Hub, folder: Path) -> None:
    refused(hub, folder, "not logged in", token=None, code=4)
    refused(hub, folder, "denied access", token="hf_wrongWrongWrongWrong", code=4)
    assert run(hub, folder, "--dry-run", token=None).returncode == 0


def test_a_hub_that_loses_bytes(hub: Hub, folder: Path) -> None:
    hub.spoil = True
    made = run(hub, folder)
    assert made.returncode == 3
    assert "small-Q4_K_M.gguf on the hub differs from the local file" in made.stderr


@pytest.mark.slow
def test_a_hub_that_is_not_there(folder: Path) -> None:
    """Slow because huggingface_hub tries for 23 seconds each time; so both at once."""
    nobody = Hub(TOKEN, port=9)
    with ThreadPoolExecutor(2) as pool:
        real, made = pool.map(lambda more: run(nobody, folder, *more), ([], ["--dry-run"]))
    assert real.returncode == 4
    assert made.returncode == 0
    assert "the hub could not be reached" in made.stdout


def test_a_card_that_the_hub_refuses_sends_nothing_small(hub: Hub, folder: Path) -> None:
    (folder / "README.md").write_text(CARD.replace("gemma", "my-own"))
    made = run(hub, folder)
    assert made.returncode == 3, made.stderr
    assert "license" in made.stderr
    assert "README.md" not in hub.repos[REPO]


def test_the_cards_of_this_program_pass_the_validation(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub's own `ModelCard.validate`, against the stand-in's rules (the real ones need the network)."""
    from huggingface_hub import ModelCard, constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    ModelCard(CARD).validate()
    with pytest.raises(ValueError, match="license"):
        ModelCard(CARD.replace("gemma", "my-own")).validate()
