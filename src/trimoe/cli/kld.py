"""`trimoe kld`: KL divergence of quantized files from their base."""

from pathlib import Path
from typing import Any

import click

from trimoe.cli.parts.common import emit, json_option, progress

FILE = click.Path(path_type=Path)


@click.command()
@click.argument("base", type=FILE)
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("--text", required=True, type=FILE, help="Held-out text, not the text of the imatrix.")
@click.option("--chunks", type=click.IntRange(2), default=64, show_default=True, help="Chunks of text to compare on.")
@click.option("--context", type=click.IntRange(32), default=512, show_default=True, help="Tokens of a chunk.")
@click.option("--threads", "-t", type=click.IntRange(1), default=1, show_default=True, help="Threads of llama.cpp.")
@click.option("-o", "--out", "--output", type=FILE, help="Also write the result to this file (JSON, with a manifest).")
@click.option("--llamacpp", "directory", type=FILE, metavar="DIR", help="Directory with llama.cpp's programs.")
@json_option
def kld(
    base: Path,
    files: tuple[Path, ...],
    text: Path,
    chunks: int,
    context: int,
    threads: int,
    out: Path | None,
    directory: Path | None,
    as_json: bool,
) -> None:
    """Measure the KL divergence of quantized FILES from BASE.

    Compares next-token distributions, token by token, on held-out text.

    Gives the mean KL divergence (nats per token) with a 95 % interval over chunks, perplexity, how often the most
    likely token is the same, and how much more each file diverges than the closest one (paired over the same chunks).

    \b
    Examples:
      trimoe kld model-BF16.gguf model-Q4_K_M.gguf model-CD-Q4_K_M.gguf --text held-out.txt
      trimoe kld model-BF16.gguf files/*.gguf --text held-out.txt -o kld.json
    """
    from trimoe.quantize.kld import kld as measure

    with progress("kld") as report:
        made = measure(
            base,
            files,
            text=text,
            chunks=chunks,
            context=context,
            threads=threads,
            out=out,
            llamacpp=directory,
            progress=report,
        )
    data = made.as_dict()
    emit(data, _text(data), as_json)


def _text(data: dict[str, Any]) -> str:
    head = f"{'KLD':>9} {'95 % interval':>20} {'more than best':>29} {'PPL':>9} {'same':>7} {'MB':>10}  file"
    lines = [
        f"{data['base']}, {data['chunks']} chunks of {data['context']} tokens, {data['tokens']} compared",
        "",
        head,
    ]
    for row in sorted(data["files"], key=lambda r: float(r["kld"])):
        low, high = row["kld_interval"]
        less, more = row["more_than_best_interval"]
        difference = "" if row["file"] == data["best"] else f"{row['more_than_best']:+.5f} [{less:+.5f}, {more:+.5f}]"
        lines.append(
            f"{row['kld']:>9.5f} {f'[{low:.5f}, {high:.5f}]':>20} {difference:>29} {row['perplexity']:>9.3f} "
            f"{row['same_top']:>6.2f}% {row['file_bytes'] / 1e6:>10.1f}  {row['file']}"
        )
    return "\n".join(lines)


COMMANDS = [kld]
