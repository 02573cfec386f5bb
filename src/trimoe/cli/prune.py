"""`trimoe prune`: parse, call, print."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import click

from trimoe.cli.parts.common import emit, json_option, progress, show_size
from trimoe.errors import Interrupted
from trimoe.io.sizes import parse_bytes

# What a method of `report.copied_by` means.
COPIED_BY = {
    "read/write, hashed": "read and written in one pass, hashed on the way",
    "read/write": "read and written, not hashed",
    "gather": "small ranges joined before writing",
    "entries": "kept neurons picked out of blocks",
    "copy_file_range": "copied by the kernel or file server (copy_file_range), not hashed",
    "sendfile": "copied by the kernel (sendfile), not hashed",
}


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("map_file", metavar="MAP", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Directory to create. For a GGUF model: a .gguf file, or a directory for several files.",
)
@click.option(
    "--max-shard",
    metavar="SIZE",
    show_default="5GB; GGUF: source",
    help="Largest output file, or `source` for files as in MODEL.",
)
@click.option("--imatrix", type=click.Path(path_type=Path), help="GGUF: cut this importance matrix too.")
@click.option("--imatrix-out", type=click.Path(path_type=Path), help="GGUF: where to write the cut importance matrix.")
@click.option("--dry-run", is_flag=True, help="Check everything and report what would be written; write nothing.")
@click.option("--sync", is_flag=True, help="Wait until the disk holds the output (a power cut loses nothing).")
@click.option("--verify", is_flag=True, help="Read the written weights back from the disk and compare their hashes.")
@click.option(
    "--no-hash",
    is_flag=True,
    help="Let the kernel or file server copy the bytes: nothing is hashed, and a killed run starts over.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    metavar="N",
    help="Output files written at a time. Default: one per core, at most 4.",
)
@json_option
def prune(
    model: Path,
    map_file: Path,
    out: Path,
    max_shard: str | None,
    imatrix: Path | None,
    imatrix_out: Path | None,
    dry_run: bool,
    sync: bool,
    verify: bool,
    no_hash: bool,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Remove the experts that MAP drops from MODEL.

    Bytes are copied and hashed on the way; torch is not needed, and memory does not grow with the model. Weight values
    are not interpreted: `trimoe calibrate` and `trimoe certify` refuse NaN. OUT appears only when it is complete. After
    a kill, the same command verifies the hidden .OUT.partial and resumes.

    MODEL can be a GGUF file in any quantization (for a split model, any part): nothing is converted, and no unquantized
    weights are needed.

    \b
    Examples:
      trimoe prune gemma-4-26B-A4B-it map.json -o gemma-4-98e
      trimoe prune gemma-4-26B-A4B-it map.json -o gemma-4-98e --dry-run
      trimoe prune MODEL map.json -o OUT --max-shard source --verify
      trimoe prune base-Q4_K_M.gguf map.json -o pruned-Q4_K_M.gguf
      trimoe prune base-Q4_K_M.gguf map.json -o pruned.gguf --imatrix imatrix.gguf --imatrix-out imatrix-pruned.gguf
    """
    from trimoe.cut.prune import prune as run

    with progress("prune") as update, resumable(out):
        report = run(
            model,
            map_file,
            out,
            max_shard=shard_limit(max_shard),
            imatrix=imatrix,
            imatrix_out=imatrix_out,
            dry_run=dry_run,
            sync=sync,
            verify=verify,
            hashed=not no_hash,
            jobs=jobs,
            progress=update,
        )
    verb = "would keep" if dry_run else "kept"
    narrower = f", {report.width_after} of {report.width_before} neurons of each" if report.width_after else ""
    text = (
        f"{out}: {verb} {report.experts_after} of {report.experts_before} experts in {report.layers} layers{narrower}; "
        f"{show_size(report.bytes_before)} -> {show_size(report.bytes_after)} in {report.shards} "
        f"file{'s' if report.shards > 1 else ''}"
    )
    if report.files_left_out:
        text += "".join(f"\nleft out: {name} ({reason})" for name, reason in report.files_left_out.items())
    text += "".join(f"\nwarning: {warning}" for warning in report.warnings)
    if report.bytes_resumed:
        text += f"\nresumed: reused {show_size(report.bytes_resumed)} of an earlier run, hashes verified"
    if not dry_run:
        text += f"\nhow bytes were copied: {'; '.join(COPIED_BY.get(name, name) for name in report.copied_by)}"
        text += f"\nprove it with: trimoe certify {model} {out} --map {map_file}"
    emit(report.as_dict(), text, as_json)


def shard_limit(text: str | None) -> int | Literal["source"] | None:
    """The value of --max-shard: bytes, "source", or None if the option is not given."""
    if text is None:
        return None
    return "source" if text.strip().lower() == "source" else parse_bytes(text, "--max-shard 5GB")


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Turn an interrupt into an error that states what was left behind."""
    try:
        yield
    except KeyboardInterrupt as exc:
        left = out.parent / f".{out.name}.partial"
        raise Interrupted(
            "interrupted",
            actual=f"{left} holds what was written so far" if left.exists() else "nothing was left behind",
            remedy="run the same command again to resume" + (f", or remove {left} to give up" if left.exists() else ""),
        ) from exc


COMMANDS = [prune]
