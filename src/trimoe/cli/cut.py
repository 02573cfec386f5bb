"""`trimoe prune`: cut a drop map out of a checkpoint."""

from pathlib import Path

import click

from trimoe.cli.common import emit, json_option, parse_size, progress, show_size


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("map_file", metavar="MAP", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Directory to create.")
@click.option("--max-shard", default="5GB", show_default=True, metavar="SIZE",
              help="Largest output file, or `source` for files as in MODEL.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Check everything and say what would be written; write nothing.")
@click.option("--sync", is_flag=True, help="Wait until the disk holds the output (a power cut loses nothing).")
@json_option
def prune(model: Path, map_file: Path, out: Path, max_shard: str, dry_run: bool, sync: bool, as_json: bool) -> None:
    """Cut the experts that MAP drops out of the checkpoint MODEL.

    The bytes are copied by the kernel; torch is not needed and memory does not grow with the model. Weight values are
    not read: `trimoe calibrate` and `trimoe certify` refuse NaN. OUT appears only when it is complete.

    \b
    Examples:
      trimoe prune gemma-4-26B-A4B-it map.json -o gemma-4-98e
      trimoe prune gemma-4-26B-A4B-it map.json -o gemma-4-98e --dry-run
      trimoe prune MODEL map.json -o OUT --max-shard source
    """
    from trimoe.choose.dropmap import DropMap
    from trimoe.cut.prune import prune as cut

    limit = None if max_shard.strip().lower() == "source" else parse_size(max_shard, "--max-shard 5GB")
    drop_map = DropMap.load(map_file)
    with progress("prune") as update:
        report = cut(model, drop_map, out, max_shard=limit, dry_run=dry_run, sync=sync, progress=update)
    verb = "would keep" if dry_run else "kept"
    text = (
        f"{out}: {verb} {report.experts_after} of {report.experts_before} experts in {report.layers} layers; "
        f"{show_size(report.bytes_before)} -> {show_size(report.bytes_after)} in {report.shards} "
        f"file{'s' if report.shards > 1 else ''}"
    )
    if report.files_left_out:
        text += f"\nleft out: {', '.join(report.files_left_out)}"
    if not dry_run:
        text += (
            f"\ncopied by {', '.join(report.copied_by)}; prove it with: trimoe certify {model} {out} --map {map_file}"
        )
    emit(report.as_json(), text, as_json)


COMMANDS = [prune]
