"""`trimoe prune`: cut a drop map out of a checkpoint."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from trimoe.cli.common import emit, json_option, progress
from trimoe.errors import Interrupted, UsageError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def parse_size(text: str) -> int:
    """Bytes of a size such as 5GB (decimal) or 4GiB (binary). Raises `UsageError`."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([KMG]?I?B?)", text.strip().upper())
    number = float(match[1]) * _UNITS.get(match[2], 0) if match else 0
    if number < 1:
        raise UsageError(f"{text!r} is not a size", expected="a number with B, KB, MB, GB, KiB, MiB or GiB",
                         remedy="for example --max-shard 5GB")  # fmt: skip
    return int(number)


def show_size(size: int) -> str:
    """Bytes for people: decimal units, three digits."""
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= step:
            return f"{size / step:.3g} {unit}" if size < 100 * step else f"{size / step:.0f} {unit}"
    return f"{size} B"


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("map_file", metavar="MAP", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Directory to create.")
@click.option("--max-shard", default="5GB", show_default=True, metavar="SIZE",
              help="Largest output file, or `source` for files as in MODEL.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Check everything and say what would be written; write nothing.")
@click.option("--sync", is_flag=True, help="Wait until the disk holds the output (a power cut loses nothing).")
@click.option("--verify", is_flag=True, help="Read the written weights back from the disk and compare their hashes.")
@click.option("--no-hash", is_flag=True,
              help="Let the kernel or file server move the bytes: unhashed, and a killed run starts over.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1), metavar="N",
              help="Output files written at a time. Default: one per core, at most 4.")  # fmt: skip
@json_option
def prune(
    model: Path,
    map_file: Path,
    out: Path,
    max_shard: str,
    dry_run: bool,
    sync: bool,
    verify: bool,
    no_hash: bool,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Cut the experts that MAP drops out of the checkpoint MODEL.

    Bytes are copied and hashed on their way; torch is not needed and memory does not grow with the model. Weight values
    are not interpreted: `trimoe calibrate` and `trimoe certify` refuse NaN. OUT appears only when it is complete; after
    a kill the same command goes on with what it verifies of the hidden .OUT.partial.

    \b
    Examples:
      trimoe prune gemma-4-26B-A4B-it map.json -o gemma-4-98e
      trimoe prune gemma-4-26B-A4B-it map.json -o gemma-4-98e --dry-run
      trimoe prune MODEL map.json -o OUT --max-shard source --verify
    """
    from trimoe.choose.dropmap import DropMap
    from trimoe.cut.prune import prune as cut

    if verify and no_hash:
        raise UsageError("--verify compares hashes, and --no-hash makes none", expected="one of them")
    limit = None if max_shard.strip().lower() == "source" else parse_size(max_shard)
    drop_map = DropMap.load(map_file)
    with progress("prune") as update, resumable(out):
        report = cut(
            model, drop_map, out, max_shard=limit, dry_run=dry_run, sync=sync, verify=verify, hashed=not no_hash,
            jobs=jobs, progress=update,
        )  # fmt: skip
    verb = "would keep" if dry_run else "kept"
    text = (
        f"{out}: {verb} {report.experts_after} of {report.experts_before} experts in {report.layers} layers; "
        f"{show_size(report.bytes_before)} -> {show_size(report.bytes_after)} in {report.shards} "
        f"file{'s' if report.shards > 1 else ''}"
    )
    if report.files_left_out:
        text += f"\nleft out: {', '.join(report.files_left_out)}"
    if report.bytes_resumed:
        text += f"\nwent on after {show_size(report.bytes_resumed)} of an earlier run, verified by their hashes"
    if not dry_run:
        text += (
            f"\ncopied by {', '.join(report.copied_by)}; prove it with: trimoe certify {model} {out} --map {map_file}"
        )
    emit(report.as_json(), text, as_json)


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Says what an interrupt leaves behind."""
    try:
        yield
    except KeyboardInterrupt as exc:
        left = out.parent / f".{out.name}.partial"
        raise Interrupted(
            "interrupted",
            actual=f"{left} holds what was written so far" if left.exists() else "nothing was left behind",
            remedy="run the same command again to go on" + (f", or remove {left} to give up" if left.exists() else ""),
        ) from exc


COMMANDS = [prune]
