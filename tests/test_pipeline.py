"""The pipeline on a model of its own, with its own calibration set, recipes and benches; reruns and refusals."""

from pathlib import Path

import pytest

from trimoe.choose.dropmap import DropMap
from trimoe.cut.prune import prune
from trimoe.errors import BadInput, UsageError
from trimoe.evaluate.guards import NAMES
from trimoe.model import tiny
from trimoe.pipeline import run_pipeline
from trimoe.report.story import Story, page_data

SET = "name: {name}\nwindow: 256\nclasses:\n  generic_math: [{{kind: tiny, domain: math, count: 6}}]\n"


@pytest.mark.slow
def test_any_model_set_recipe_and_bench(tmp_path: Path) -> None:
    model, chosen, recipe = tmp_path / "other", tmp_path / "mine.yaml", tmp_path / "own.toml"
    prune(tiny.path(), DropMap(dict.fromkeys(range(4), tuple(range(8)))), model)
    chosen.write_text(SET.format(name="mine"))
    recipe.write_text('name = "own"\ncriterion = "frequency"\ndescription = "most used"\n')
    steps: list[str] = []

    def run(out: str = "out", calibration: Path = chosen, keep: int = 20) -> Story:
        return run_pipeline(
            str(model),
            str(calibration),
            str(tmp_path / out),
            recipes=[str(recipe), "random-0"],
            benches=["tiny-math"],
            keep=keep,
            limit=4,
            ignore_guards=NAMES,
            progress=lambda step, done, total, text: steps.append(step),
        )

    story = run()
    assert list(dict.fromkeys(steps)) == ["calibrate", "map", "prune", "certify", "eval", "compare"]
    assert {name: made.status for name, made in story.certificates.items()} == {"own": "proven", "random-0": "proven"}
    assert list(story.overall) == ["base", "own", "random-0"]
    assert [row.score.n for row in story.comparison.rows] == [4, 4, 4]
    page = page_data(story)
    assert (page.model.name, page.model.experts, page.model.keep) == ("other", 24, 20)
    assert page.methods[0].note == "most used"
    files = {path: path.read_bytes() for path in (tmp_path / "out" / "models").rglob("*.safetensors")}
    again = run()
    assert again.comparison == story.comparison
    assert {path: path.read_bytes() for path in files} == files
    with pytest.raises(BadInput, match="by another map"):
        run(keep=22)
    other = tmp_path / "other.yaml"
    other.write_text(SET.format(name="other"))
    with pytest.raises(BadInput, match="another model or calibration set"):
        run(calibration=other)


def test_a_pipeline_without_recipes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a recipe and a bench"):
        run_pipeline(tiny.path(), "generic", tmp_path / "out", recipes=[], benches=["tiny-math"], keep=24)
    assert not (tmp_path / "out").exists()
