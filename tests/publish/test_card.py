"""Model cards: every number is a query that can be asked again, hand-written parts stay, hostile text stays text."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from trimoe.bench.bench import Verdict
from trimoe.cli.main import main
from trimoe.errors import BadInput, Refused
from trimoe.evaluate.log.records import Sample
from trimoe.evaluate.log.run_log import RunLog
from trimoe.io.jsonfile import write_json
from trimoe.model.checkpoint import open_checkpoint
from trimoe.model.generate import SAMPLER
from trimoe.model.tiny import path as bundled
from trimoe.publish.card import compose
from trimoe.publish.facts import licence_of, read_artifact
from trimoe.publish.numbers import QUERIES, Sources, changed_numbers
from trimoe.publish.sections import CardSettings

REPLY = "The reply number {} walks over the list once and keeps the largest of the sums that it has seen so far."


def put(path: Path, name: str, answers: str, **sampler: Any) -> None:
    with RunLog(path) as log:
        run = log.start(name, "b", {"name": "b", "rows": len(answers)}, f"hash of {name}", sampler, {})
        log.add(
            run,
            [
                (
                    Sample(f"d{i}", i, f"q{i}", REPLY.format(i), "stop", 1, 20),
                    Verdict(a == "1", "correct" if a == "1" else "wrong"),
                )
                for i, a in enumerate(answers)
            ],
            1,
        )


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "runs.db"
    put(path, "base", "1" * 33 + "w" * 7, engine="vllm")
    put(path, "pruned", "1" * 29 + "w" * 9 + "11", engine="vllm")
    put(path, "gguf", "1" * 30 + "w" * 10, engine="llamacpp")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of GGUF files as far as a card looks at them: names and sizes."""
    path = tmp_path / "ggufs"
    path.mkdir()
    for tier, size in (("Q4_K_M", 1234), ("Q8_0", 2345)):
        (path / f"small-{tier}.gguf").write_bytes(b"x" * size)
    keep = {"0": [0, 1, 2], "1": [1, 2, 3]}
    drop = {"0": [3], "1": [0]}
    counts = {"base_model": "x", "original_experts": 4, "target_experts": 3}
    write_json(path / "expert_drop_metadata.json", {**counts, "per_layer_keep": keep, "per_layer_drop": drop})
    return path


ARGUMENTS = ["--base", "base", "--run", "pruned", "--run", "gguf", "--base-model", "org/base", "--repo", "me/small"]


def test_every_number_of_the_card_is_a_query_with_the_same_answer(log: Path, folder: Path) -> None:
    assert main(["card", str(folder), "--log", str(log), *ARGUMENTS, "--license", "gemma"]) == 0
    text = (folder / "README.md").read_text()
    asked = json.loads((folder / "README.numbers.json").read_text())["numbers"]
    sources = Sources([log], "base", ["pruned", "gguf"], read_artifact(folder).facts)
    assert changed_numbers(sources, asked) == []
    # the reverse: no number stands in a table or in the summary that was not asked for
    known = {number for one in asked for number in re.findall(r"\d[\d.,]*", one["text"])}
    known |= set(re.findall(r"\d[\d.,]*", " ".join(f for f, _ in read_artifact(folder).files)))
    tables = "\n".join(
        line for line in text.split("---\n", 2)[2].splitlines() if line.startswith("|") or "experts in each" in line
    )
    tables = tables.replace("95 %", "").replace("p10/p50/p90", "").replace("\\_", "_")
    assert set(re.findall(r"\d[\d.,]*", tables)) <= known
    assert {one["query"] for one in asked} == set(QUERIES)
    put(log, "base2", "1")
    wrong = [{**one, "text": one["text"] + "0"} for one in asked]
    assert len(changed_numbers(sources, wrong)) == len(asked)


def test_engines_have_tables_of_their_own(log: Path, folder: Path) -> None:
    found = read_artifact(folder)
    text, _ = compose(
        found,
        Sources([log], "base", ["pruned", "gguf"], found.facts),
        CardSettings("t", "org/base", "me/small", {"license": "gemma"}),
    )
    scores = text.split("## Scores")[1].split("<!--")[0]
    vllm, llamacpp = scores.split("Measured with ")[1:]
    assert "pruned" in vllm
    assert "gguf" not in vllm
    assert "-5.00 (" in vllm  # 2 gained, 4 lost of 40
    assert "pruned" not in llamacpp
    assert re.search(r"\| gguf \| 40 \| 75\.00 \| 6\.8 \| [^|]+ \|  \|  \|  \|", llamacpp)  # no pair on this engine


def test_the_front_matter_is_what_the_hub_reads(log: Path, folder: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    assert main(["card", str(folder), "--log", str(log), *ARGUMENTS, "--license", "gemma", "--tag", "code"]) == 0
    data = hub.ModelCard((folder / "README.md").read_text()).data
    assert (data.license, data.base_model, data.library_name) == ("gemma", "org/base", "gguf")
    assert data.tags == ["moe", "expert-pruning", "trimoe", "code", "gguf"]
    assert data.to_dict()["base_model_relation"] == "quantized"


def test_hand_written_parts_stay(log: Path, folder: Path) -> None:
    command = ["card", str(folder), "--log", str(log), *ARGUMENTS, "--license", "gemma"]
    assert main(command) == 0
    readme = folder / "README.md"
    first = readme.read_text()
    assert main(command) == 0
    assert readme.read_text() == first
    mine = first.replace("tags:\n", "thumbnail: mine.png\ntags:\n- my-tag\n")
    mine = mine.replace("<!-- trimoe:begin audit -->", "## My words\n\nHand-written.\n\n<!-- trimoe:begin audit -->")
    usage = re.search(r"<!-- trimoe:begin usage -->.*?<!-- trimoe:end usage -->", mine, re.DOTALL)
    assert usage is not None
    readme.write_text(mine.replace(usage.group(), "My own usage.").replace("33", "99"))
    (folder / "small-Q2_K.gguf").write_bytes(b"x" * 999)
    assert main(command) == 0
    again = readme.read_text()
    for kept in ("## My words\n\nHand-written.", "My own usage.", "thumbnail: mine.png", "- my-tag"):
        assert kept in again
    assert "trimoe:begin usage" not in again
    assert "| 999 |" in again
    readme.write_text(again.replace("<!-- trimoe:end audit -->", ""))
    assert main(command) == 3


def test_a_curated_readme_is_not_overwritten(log: Path, folder: Path) -> None:
    (folder / "README.md").write_text("# Curated\n")
    command = ["card", str(folder), "--log", str(log), *ARGUMENTS, "--license", "gemma"]
    assert main(command) == 3
    assert (folder / "README.md").read_text() == "# Curated\n"
    assert main([*command, "--force"]) == 0


def test_refusals(log: Path, folder: Path, tmp_path: Path) -> None:
    command = ["card", str(folder), "--log", str(log), *ARGUMENTS]
    assert main(command) == 3  # no licence is guessed
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: mine\n---\n# Base\n")
    assert licence_of(base) == {"license": "other", "license_name": "mine"}
    assert main([*command, "--base-dir", str(base)]) == 0
    assert main([*command[:-1], "no name", "--license", "gemma"]) == 2
    put(log, "broken", "w" * 40, engine="vllm")
    found = read_artifact(folder)
    with pytest.raises(Refused, match="audit refuses"):
        compose(
            found,
            Sources([log], "base", ["broken"], found.facts),
            CardSettings("t", "org/base", "me/small", {"license": "gemma"}),
        )
    with pytest.raises(BadInput, match="has no weight files"):
        read_artifact(base)


def test_a_card_has_the_numbers_of_its_own_checkpoint(tmp_path: Path) -> None:
    """A run in this process knows which checkpoint it was made with."""
    model = tmp_path / "model"
    shutil.copytree(bundled(), model)
    log = tmp_path / "r.db"
    with RunLog(log) as opened:
        for name, checkpoint in (("base", "base"), ("own", open_checkpoint(model).fingerprint), ("other", "other")):
            run = opened.start(name, "b", {"name": "b", "rows": 40}, checkpoint, dict(SAMPLER), {})
            opened.add(
                run,
                [
                    (Sample(f"d{i}", i, f"q{i}", REPLY.format(i), "stop", 1, 20), Verdict(True, "correct"))
                    for i in range(40)
                ],
                1,
            )
    command = [
        "card",
        str(model),
        "--log",
        str(log),
        "--base",
        "base",
        "--base-model",
        "org/base",
        "--repo",
        "me/small",
        "--license",
        "gemma",
        "-o",
        str(tmp_path / "README.md"),
    ]
    assert main([*command, "--run", "own"]) == 0
    assert main([*command, "--run", "other"]) == 5
    assert main([*command, "--run", "base"]) == 2
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    assert main([*command, "--run", "own"]) == 3


def test_hostile_names_stay_text(tmp_path: Path, folder: Path) -> None:
    evil = "<img src=x onerror=alert(1)>|[a](javascript:b)\x1b"
    put(tmp_path / "evil.db", "base", "1" * 40)
    put(tmp_path / "evil.db", evil, "1" * 39 + "w")
    found = read_artifact(folder)
    text, _ = compose(
        found,
        Sources([tmp_path / "evil.db"], "base", [evil], found.facts),
        CardSettings(evil, "org/base", "me/small", {"license": "gemma"}),
    )
    assert "<img" not in text
    assert "\x1b" not in text
    assert "[a](javascript" not in text


def test_what_was_done_after_the_cut_is_not_called_a_cut(log: Path, folder: Path) -> None:
    found = read_artifact(folder)
    text, _ = compose(
        found,
        Sources([log], "base", ["pruned"], found.facts),
        CardSettings("t", "org/base", "me/small", {"license": "gemma"}),
    )
    assert "unchanged to the byte" not in text
    assert "Nothing was trained" not in text


def test_a_name_in_two_logs_is_refused(log: Path, folder: Path, tmp_path: Path) -> None:
    put(tmp_path / "two.db", "pruned", "1" * 40, engine="vllm")
    with pytest.raises(BadInput, match="is in more than one log"):
        Sources([log, tmp_path / "two.db"], "base", ["pruned@runs"], read_artifact(folder).facts)


@pytest.mark.slow
def test_the_recipe_in_the_card_of_a_real_prune_makes_the_same_map(tmp_path: Path) -> None:
    from trimoe.calibrate.engine import calibrate
    from trimoe.choose.dropmap import DropMap
    from trimoe.choose.recipe import load_recipe
    from trimoe.choose.select import make_map
    from trimoe.cut.prune import prune
    from trimoe.model import tiny

    chosen = tmp_path / "set.yaml"
    chosen.write_text(
        "name: s\nclasses:\n  generic_math: [{kind: tiny, domain: math, count: 4}]\n"
        "  targeted_code: [{kind: tiny, domain: code, count: 4}]\n"
    )
    stats = calibrate(tiny.path(), chosen, tmp_path / "stats.safetensors")
    made = make_map(stats, load_recipe("v5-coder"), keep=24, force_keep={1: [3, 4, 5]})
    prune(tiny.path(), made, tmp_path / "pruned")
    put(tmp_path / "r.db", "base", "1" * 40)
    put(tmp_path / "r.db", "pruned", "1" * 39 + "w")
    found = read_artifact(tmp_path / "pruned")
    text, _ = compose(
        found,
        Sources([tmp_path / "r.db"], "base", ["pruned"], found.facts),
        CardSettings("t", "org/base", "me/small", {"license": "gemma"}),
    )
    assert "unchanged to the byte" in text
    recipe = text.split("```toml\n")[1].split("```")[0]
    (tmp_path / "recipe.toml").write_text(recipe)
    (tmp_path / "keep.txt").write_text(text.split("`keep.txt`:\n\n```\n")[1].split("```")[0])
    line = next(line for line in text.splitlines() if line.startswith("trimoe map STATS")).split()[3:-2]
    place = {name: str(tmp_path / name) for name in ("recipe.toml", "keep.txt")}
    command = ["map", str(tmp_path / "stats.safetensors"), *(place.get(word, word) for word in line)]
    assert main([*command, "-o", str(tmp_path / "again.json")]) == 0
    assert DropMap.load(tmp_path / "again.json").drop == made.drop
