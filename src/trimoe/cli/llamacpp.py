"""`trimoe llamacpp`: build llama.cpp into the cache, or show which programs are used."""

from pathlib import Path
from typing import Any

import click

from trimoe.cli.parts.common import emit, json_option, progress
from trimoe.errors import UsageError

FILE = click.Path(path_type=Path)


@click.group()
def llamacpp() -> None:
    """Build llama.cpp, or show which programs are used.

    \b
    Examples:
      trimoe llamacpp install
      trimoe llamacpp where
    """


@llamacpp.command()
@click.option("--cuda", is_flag=True, help="Also for NVIDIA GPUs; needs nvcc.")
@click.option("--vulkan", is_flag=True, help="Also for GPUs through Vulkan; needs glslc.")
@click.option("--native", is_flag=True, help="Use every instruction of this processor; may not run on another.")
@click.option("--archive", type=FILE, help="The source archive, if it cannot be downloaded.")
@click.option("--cache", type=FILE, help="Cache folder. Default: $TRIMOE_CACHE/llamacpp or ~/.cache/trimoe/llamacpp.")
@click.option(
    "--jobs", "-j", type=click.IntRange(1), help="Parallel compilers; default: one per core, if memory allows."
)
@json_option
def install(
    cuda: bool, vulkan: bool, native: bool, archive: Path | None, cache: Path | None, jobs: int | None, as_json: bool
) -> None:
    """Build quantize, imatrix, perplexity, server and cli from the pinned source archive of PyPI.

    The build takes about ten minutes on two cores and is kept in the cache; an interrupted build resumes. It needs a
    C++ compiler, cmake and ninja (pip install 'trimoe[llamacpp]' brings the last two).

    \b
    Examples:
      trimoe llamacpp install
      trimoe llamacpp install --cuda --native
      trimoe llamacpp install --archive llama_cpp_python-0.3.36.tar.gz
    """
    from trimoe.llamacpp.build import install as build
    from trimoe.llamacpp.tools import Flavour

    if cuda and vulkan:
        raise UsageError(
            "--cuda and --vulkan contradict each other", expected="one of them", actual="both", remedy="leave one out"
        )
    flavour = Flavour("cuda" if cuda else "vulkan" if vulkan else "cpu", native)
    with progress("llama.cpp") as report:
        tools = build(flavour, cache=cache, archive=archive, jobs=jobs, progress=report)
    data = tools.describe()
    emit(data, _text(data), as_json)


@llamacpp.command()
@click.option("--llamacpp", "directory", type=FILE, metavar="DIR", help="Directory with llama.cpp's programs.")
@click.option("--cache", type=FILE, help="Cache folder. Default: $TRIMOE_CACHE/llamacpp or ~/.cache/trimoe/llamacpp.")
@json_option
def where(directory: Path | None, cache: Path | None, as_json: bool) -> None:
    """Show which programs are used, with version, build options and sha256.

    Order: --llamacpp or $TRIMOE_LLAMACPP, the builds in the cache, PATH.

    \b
    Examples:
      trimoe llamacpp where
      trimoe llamacpp where --llamacpp ~/llama.cpp/build --json
    """
    from trimoe.llamacpp.tools import locate

    data = locate(directory, cache).describe(hashes=True)
    emit(data, _text(data), as_json)


def _text(data: dict[str, Any]) -> str:
    build = data["build"]
    lines = [f"llama.cpp {data['version'] or 'of unknown version'}, from {data['origin']}"]
    if build:
        on = [name for name, value in build["options"].items() if value == "ON" and name.startswith("GGML")]
        lines.append(
            f"built from {build['release']['package']} {build['release']['version']} with {build['compiler']}"
            f"{', ' + ', '.join(on) if on else ', portable CPU build'}"
        )
    for name, program in data["programs"].items():
        lines.append(f"  {name:<22} {program['path']}" + (f"  {program['sha256'][:16]}" if "sha256" in program else ""))
    if data["missing"]:
        lines.append(f"missing: {', '.join(data['missing'])}")
    lines.append(f"converter: {data['converter'] or 'none'}")
    return "\n".join(lines)


COMMANDS = [llamacpp]
