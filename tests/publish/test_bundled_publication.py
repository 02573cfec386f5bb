"""From the bundled model to what is published, by the commands alone: base, two prunes and three quants evaluated,
cards, Modelfiles, and an upload to the stand-in of the hub. Every number of every card is asked of its log again."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from helpers.hub_stand_in import Hub, running
from trimoe.cli.main import main
from trimoe.errors import MissingPrerequisite
from trimoe.llamacpp.tools import locate
from trimoe.model import tiny
from trimoe.publish.facts import read_artifact
from trimoe.publish.numbers import Sources, changed_numbers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
LADDER = {
    "base": "BF16",
    "tiers": ["Q8_0", "Q6_K", "Q4_K_M"],
    "smoke": {
        "prompts": [
            "What is 7 + 10 + 4?",
            "Write paper = island as an arrow and close with END.",
            "Make a numbered list of bowl, flute, lamp.",
        ],
    },
}
SET = """name: small
window: 256
classes:
  generic_code: [{kind: tiny, domain: code, count: 24}]
  generic_math: [{kind: tiny, domain: math, count: 24}]
  generic_format: [{kind: tiny, domain: format, count: 24}]
"""
BENCHES, LIMIT = "tiny-math,tiny-format", "60"
TOKEN = "hf_" + "AnotherSecret" * 3


def command(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stats, maps, two prunes, three quants of one, and a log with all six models."""
    pytest.importorskip("torch")
    try:
        locate()
    except MissingPrerequisite as exc:
        pytest.skip(f"{exc.subject}: run `make llamacpp`")
    work = tmp_path_factory.mktemp("publication")
    (work / "set.yaml").write_text(SET)
    assert command("calibrate", tiny.path(), "--set", work / "set.yaml", "-o", work / "stats") == 0
    for name in ("v4", "reap"):
        assert (
            command("map", work / "stats", "--recipe", name, "--drop-fraction", 0.25, "-o", work / f"{name}.json") == 0
        )
        assert command("prune", tiny.path(), work / f"{name}.json", "-o", work / name) == 0
        assert command("certify", tiny.path(), work / name) == 0
    (work / "ladder.yaml").write_text(yaml.safe_dump(LADDER))
    assert command("quantize", work / "v4", "--ladder", work / "ladder.yaml", "-o", work / "ggufs") == 0
    (work / "ggufs" / "v4-BF16.gguf").unlink()  # the base of the ladder is not published
    (work / "ggufs" / "v4-BF16.gguf.manifest.json").unlink()
    log = work / "runs.db"
    models = {"base": tiny.path(), "v4": work / "v4", "reap": work / "reap"}
    models |= {f"v4-{tier}": work / "ggufs" / f"v4-{tier}.gguf" for tier in LADDER["tiers"]}  # type: ignore[union-attr]
    for name, model in models.items():
        assert command("eval", model, "--bench", BENCHES, "--limit", LIMIT, "--log", log, "--name", name) == 0, name
    return work


CARDS = {
    "v4": ["--base", "base", "--run", "v4", "--run", "reap"],
    "ggufs": ["--base", "base", "--run", "v4-Q8_0", "--run", "v4-Q6_K", "--run", "v4-Q4_K_M"],
}


@pytest.fixture(scope="module")
def cards(made: Path) -> Path:
    for folder, runs in CARDS.items():
        assert (
            command(
                "card",
                made / folder,
                "--log",
                made / "runs.db",
                *runs,
                "--base-model",
                "org/tiny-moe",
                "--repo",
                f"me/small-{folder}",
                "--license",
                "apache-2.0",
            )
            == 0
        )
    return made


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running(Hub(TOKEN)) as started:
        yield started


@pytest.mark.parametrize("folder", CARDS)
def test_every_number_of_a_card_is_in_the_log(cards: Path, folder: str) -> None:
    runs = [CARDS[folder][i + 1] for i, word in enumerate(CARDS[folder]) if word == "--run"]
    sources = Sources([cards / "runs.db"], "base", runs, read_artifact(cards / folder).facts)
    asked = json.loads((cards / folder / "README.numbers.json").read_text())["numbers"]
    assert len(asked) > 40
    assert changed_numbers(sources, asked) == []
    texts = {one["text"] for one in asked}
    tables = [line for line in (cards / folder / "README.md").read_text().splitlines() if line.startswith("| tiny-")]
    assert len(tables) >= 2 * len(runs) * 2  # scores and audit
    for line in tables:  # no number stands in a table that was not asked for
        for cell in (cell.strip().replace("\\", "") for cell in line.strip("|").split("|")[2:]):
            assert not re.search(r"\d", cell) or any(cell == text.replace("\\", "") for text in texts), cell


@pytest.mark.parametrize("folder", CARDS)
def test_the_hubs_rules_for_a_card(cards: Path, hub: Hub, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What huggingface_hub checks itself, and its `validate` against the stand-in: the real rules need the network."""
    from huggingface_hub import ModelCard, ModelCardData, constants

    card = ModelCard.load(cards / folder / "README.md")
    assert isinstance(card.data, ModelCardData)
    head = card.data.to_dict()
    again = ModelCardData(**head)
    assert again.to_dict() == head
    assert head["license"] == "apache-2.0"
    assert head["base_model"] == "org/tiny-moe"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    card.validate()


def test_publication(
    cards: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("publish", cards / "ggufs", "--to", "ollama") == 0
    assert len(list((cards / "ggufs").glob("Modelfile.*"))) == 3
    capsys.readouterr()
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(cards / "home"),
    }
    for folder in CARDS:
        words = [
            sys.executable,
            "-m",
            "trimoe",
            "publish",
            str(cards / folder),
            "--to",
            "hub",
            "--repo",
            f"me/{folder}",
        ]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert hub.repos[f"me/{folder}"]["README.md"] == (cards / folder / "README.md").read_bytes()
    assert hub.wrong == []
    assert set(hub.repos["me/ggufs"]) >= {"v4-Q8_0.gguf", "v4-Q6_K.gguf", "v4-Q4_K_M.gguf", "Modelfile.Q4_K_M"}
    assert set(hub.repos["me/v4"]) >= {"model.safetensors", "config.json", "tokenizer.json", "trimoe.json"}


def test_the_report(made: Path) -> None:
    assert command("report", made / "runs.db", "-o", made / "report.html") == 0
    assert (made / "report.html").stat().st_size > 10_000


def test_the_viewer(made: Path) -> None:
    """Every score that the viewer shows is the one of a plain query of the log."""
    from helpers.view_server import running

    with sqlite3.connect(made / "runs.db") as db:
        asked = db.execute(
            "SELECT n.name, r.bench, sum(c.correct), count(c.correct) FROM runs r JOIN names n ON n.run_id = r.id "
            "JOIN scores c ON c.run_id = r.id GROUP BY n.name, r.bench"
        ).fetchall()
    assert len(asked) == 12
    with running(made / "runs.db") as site:
        home = site.get("")[2]
        for name, bench, right, scored in asked:
            run = site.id(name, bench)
            score = f"{100 * right / scored:.1f}"
            block = home.split(f'data-run="{run}"')[1].split("</li>")[0]
            assert re.search(r'data-cell="score">([\d.]+)', block)[1] == score, (name, bench)  # type: ignore[index]
            assert f"{right} right of {scored} scored" in site.get(f"run/{run}")[2]
            base = site.id("base", bench)
            status, _, body = site.get(f"diff/{base}/{run}")
            assert status == 200
            assert f"<strong>{score}" in body
