"""Documentation is a contract: commands parse, Python runs with the output shown, generated pages are current."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

import trimoe
from helpers import notebook
from helpers.llamacpp import llamacpp
from trimoe.cli.main import cli
from trimoe.cli.map import Maps
from trimoe.llamacpp.tools import LlamaCpp
from trimoe.model import tiny

__all__ = ["llamacpp"]

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generator()


def shown(text: str) -> Iterator[str]:
    """Every command line of trimoe in fenced blocks, with continued lines joined."""
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.match(r"\s*(?:\$ )?(?:\.venv/bin/)?(trimoe\s[^#|>&;]*)", line)
            if found:
                yield found.group(1).strip()


def parse(line: str) -> None:
    """Raise unless the command line names an existing command and satisfies its options and arguments."""
    words = shlex.split(line)[1:]
    command: click.Command = cli
    context = click.Context(cli, info_name="trimoe")
    while isinstance(command, click.Group):
        words = command.completed(words) if isinstance(command, Maps) else words
        if words and words[0] in ("--help", "--version"):
            return
        assert words, f"{line}: incomplete"
        found = command.get_command(context, words[0])
        assert found is not None, f"{line}: no such command {words[0]}"
        command, words = found, words[1:]
        context = click.Context(command, info_name=command.name, parent=context)
    if "--help" in words:
        return
    values, rest, _ = command.make_parser(context).parse_args(list(words))
    assert not rest, f"{line}: too many arguments {rest}"
    for parameter in command.params:
        value = values.get(parameter.name or "")
        given = parameter.name in values and isinstance(value, str | int | list | tuple) and value != ()
        assert given or not parameter.required, f"{line}: {parameter.name} is missing"
        if given and isinstance(value, str) and isinstance(parameter.type, click.Choice | click.types.IntParamType):
            parameter.type.convert(value, parameter, context)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_shown_parse(page: Path) -> None:
    for line in shown(page.read_text()):
        if "[OPTIONS]" not in line and "COMMAND" not in line:
            parse(line)


def test_the_check_above_can_fail() -> None:
    for line in (
        "trimoe prunes A B -o C",
        "trimoe prune A B -o C --max-shrd 5GB",
        "trimoe prune A",
        "trimoe doctor extra",
    ):
        with pytest.raises((AssertionError, click.ClickException)):
            parse(line)


@pytest.mark.parametrize("name", sorted(p.name for p in generate.pages() if p.parent.name == "reference"))
def test_generated_page_is_current(name: str) -> None:
    page = ROOT / "docs" / "reference" / name
    assert page.read_text() == generate.pages()[page], "run `make docs`"


def test_every_command_explains_itself() -> None:
    for name, command in generate.commands():
        assert command.help, f"{name} has no description"
        assert isinstance(command, click.Group) or "Examples:" in command.help, f"{name} shows no example"
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.opts[0]} has no help text"


def test_every_command_and_option_is_documented() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text()
    for name, command in generate.commands():
        assert f"# {name}\n" in page
        section = page.split(f"# {name}\n", 1)[1].split("\n## ", 1)[0]
        for parameter in command.params:
            for flag in parameter.opts if isinstance(parameter, click.Option) else ():
                assert f"`{flag}`" in section, f"{name} {flag}"


def test_every_command_that_prints_a_result_offers_json() -> None:
    for name, command in generate.commands():
        if not isinstance(command, click.Group):
            assert any("--json" in p.opts for p in command.params), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_architecture_names_every_module() -> None:
    text = generate.ARCHITECTURE.read_text()
    assert text == generate.architecture(), "run `make docs`"
    tree = text.split("```text\nsrc/trimoe/\n")[1].split("```")[0].splitlines()
    named = {line.split()[0].rstrip("/") for line in tree}
    package = ROOT / "src" / "trimoe"
    for path in package.rglob("*.py"):
        peers = path.parent.relative_to(package).as_posix() in generate.PEERS
        assert path.name.startswith("_") or peers or path.name in named, path
    assert all(len(line.split(None, 1)) == 2 for line in tree), "a line without an explanation"


NOTEBOOK = ROOT / "docs" / "howto" / "python.md"
NEEDS_LLAMACPP = "# needs llama.cpp"


@pytest.mark.slow
def test_the_python_how_to_shows_what_its_code_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All cells that need nothing outside the extras; the others have a test of their own."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    cells = [cell for cell in notebook.cells(NOTEBOOK.read_text()) if NEEDS_LLAMACPP not in cell.code]
    assert len(cells) > 10
    for cell in cells:
        assert notebook.run(cell, names) == (cell.shown or ""), cell.code


@pytest.mark.slow
def test_the_cell_that_needs_llamacpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llamacpp: LlamaCpp) -> None:
    monkeypatch.chdir(tmp_path)
    (cell,) = [cell for cell in notebook.cells(NOTEBOOK.read_text()) if NEEDS_LLAMACPP in cell.code]
    drop = trimoe.DropMap(dict.fromkeys(range(4), (0, 1)))
    names = {"trimoe": trimoe, "small": trimoe.prune(tiny.path(), drop, "small")}
    assert notebook.run(cell, names) == cell.shown
