"""`trimoe certify` and `trimoe infer-map`: parse, call, print."""

from pathlib import Path

import click

from trimoe.certify.certificate import CERTIFICATE, Certificate, Check
from trimoe.certify.files import kept_count
from trimoe.cli.parts.common import emit, json_option, progress
from trimoe.errors import MissingPrerequisite, UsageError

_MARKS = {"passed": "ok", "failed": "FAIL", "not_run": "--"}


@click.command()
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("pruned", type=click.Path(path_type=Path))
@click.option(
    "--map", "map_file", type=click.Path(path_type=Path), help="The drop map; default: the one PRUNED records."
)
@click.option("--prompts", type=click.Path(path_type=Path), help="Prompts: text (one per line), .json or .jsonl.")
@click.option(
    "--tolerance", type=float, default=1e-4, show_default=True, help="Largest allowed logit difference, fp32."
)
@click.option("--no-logits", is_flag=True, help="Compare bytes only. The result is then never a proof.")
@click.option("--keep-going", is_flag=True, help="Compare logits even if the bytes refute the cut.")
@click.option(
    "--reference", type=click.Path(path_type=Path), help="GGUF: the same cut made another way; must be the same bytes."
)
@click.option("--llamacpp", type=click.Path(path_type=Path), metavar="DIR", help="GGUF: the llama.cpp to run.")
@click.option("--device", default="cpu", show_default=True, help="Where the models run: cpu, cuda, cuda:1, ...")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help=f"Certificate file; default: PRUNED/{CERTIFICATE}."
)
@json_option
def certify(
    base: Path,
    pruned: Path,
    map_file: Path | None,
    prompts: Path | None,
    tolerance: float,
    no_logits: bool,
    keep_going: bool,
    reference: Path | None,
    llamacpp: Path | None,
    device: str,
    output: Path | None,
    as_json: bool,
) -> int:
    """Prove that PRUNED is BASE minus the dropped experts.

    Compares every tensor byte by byte, config and tokenizer, and the logits with those of BASE with the dropped
    experts masked. Writes certificate.json. Two GGUF models are compared in the same way: tensors and metadata
    byte by byte, and the logits that llama.cpp computes.

    \b
    Exit codes: 0 proven, 1 refuted or incomplete, 3 bad input.

    \b
    Examples:
      trimoe certify gemma-4-26B-A4B-it pruned-98e
      trimoe certify gemma-4-26B-A4B-it pruned-98e --map map.json --prompts mine.txt
      trimoe certify gemma-4-26B-A4B-it pruned-98e --no-logits --json
      trimoe certify base-Q4_K_M.gguf pruned-Q4_K_M.gguf --map map.json
    """
    from trimoe.certify.certify import certify as run
    from trimoe.model.gguf.file import find_gguf

    if find_gguf(base) is not None:
        return _certify_gguf(
            base, pruned, map_file, prompts, tolerance, not no_logits, keep_going, reference, llamacpp, output, as_json
        )
    if reference is not None or llamacpp is not None:
        raise UsageError("--reference and --llamacpp are for GGUF models", actual=f"{base} is none")
    with progress("certify") as report:
        certificate = run(
            base,
            pruned,
            map=map_file,
            prompts=prompts,
            tolerance=tolerance,
            logits=not no_logits,
            keep_going=keep_going,
            device=device,
            output=output,
            progress=report,
        )
    where = output or pruned / CERTIFICATE
    data = {**certificate.model_dump(mode="json"), "certificate": str(where)}
    emit(data, f"{certificate_text(certificate)}\nwrote {where}", as_json)
    return 0 if certificate.passed else 1


def _certify_gguf(
    base: Path,
    pruned: Path,
    map_file: Path | None,
    prompts: Path | None,
    tolerance: float,
    logits: bool,
    keep_going: bool,
    reference: Path | None,
    llamacpp: Path | None,
    output: Path | None,
    as_json: bool,
) -> int:
    from trimoe.certify.gguf.certify import certificate_path, certify_gguf
    from trimoe.llamacpp.masked import MaskedLogits
    from trimoe.llamacpp.tools import locate

    run, cannot_run = None, ""
    if logits:
        try:
            run = MaskedLogits(locate(llamacpp))
        except MissingPrerequisite as exc:
            cannot_run = f"{exc.subject} ({exc.remedy})"
    with progress("certify") as report:
        certificate = certify_gguf(
            base,
            pruned,
            map=map_file,
            reference=reference,
            run=run,
            cannot_run=cannot_run,
            prompts=prompts,
            tolerance=tolerance,
            logits=logits,
            keep_going=keep_going,
            output=output,
            progress=report,
        )
    where = output or certificate_path(pruned)
    data = {**certificate.model_dump(mode="json"), "certificate": str(where)}
    emit(data, f"{certificate_text(certificate)}\nwrote {where}", as_json)
    return 0 if certificate.passed else 1


def certificate_text(certificate: Certificate) -> str:
    """The certificate for people: one line per check, its findings below it, the verdict last."""
    lines = [line for check in certificate.checks for line in _check_lines(check)]
    reasons = {
        "proven": "PROVEN: the pruned model is the original minus the dropped experts, and nothing else",
        "refuted": "REFUTED: the pruned model is not what the map makes of the original",
        "incomplete": "NOT CERTIFIED: " + "; ".join(c.detail for c in certificate.checks if c.status == "not_run"),
    }
    return "\n".join([*lines, reasons[certificate.status]])


def _check_lines(check: Check) -> list[str]:
    lines = [f"{_MARKS[check.status]:>4}  {check.name:<10} {check.detail}"]
    lines += [f"      - {finding}" for finding in check.findings]
    if check.findings_total > len(check.findings):
        lines.append(f"      - and {check.findings_total - len(check.findings)} more")
    return lines


@click.command(name="infer-map")
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("pruned", type=click.Path(path_type=Path))
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="The drop map to write.")
@json_option
def infer_map(base: Path, pruned: Path, output: Path, as_json: bool) -> int:
    """Recover the drop map of a pruned model; list other changes.

    \b
    Exit codes: 0 map written and nothing but experts differs; 1 a finding: something else was changed
    too (the map is written), or no map leads from BASE to PRUNED (nothing is written); 3 bad input.

    \b
    Examples:
      trimoe infer-map gemma-4-26B-A4B-it someones-98e -o map.json
      trimoe infer-map base-Q6_K.gguf someones-Q6_K.gguf -o map.json
      trimoe certify gemma-4-26B-A4B-it someones-98e --map map.json
    """
    from trimoe.certify.gguf.infer import infer_map_gguf
    from trimoe.certify.infer import infer_map as run
    from trimoe.io.publish import require_absent
    from trimoe.model.gguf.file import find_gguf

    require_absent(output)
    with progress("infer-map") as report:
        infer = infer_map_gguf if find_gguf(base) is not None else run
        result = infer(base, pruned, progress=report)
    if result.map is not None:
        result.map.save(output)
    data = {
        "map": str(output) if result.map is not None else None,
        "map_sha256": result.map.content_hash if result.map is not None else None,
        "exact": result.exact,
        "problems": result.problems,
        "changes": [finding.model_dump(mode="json") for finding in result.changes],
        "scaled": result.scaled,
    }
    lines = [f"no map: {problem}" for problem in result.problems]
    if result.map is not None:
        layers = result.map.drop
        kept = kept_count(result.map)
        lines.append(f"{len(layers)} layers, {result.map.num_experts} -> {kept} experts; wrote {output}")
        lines += [
            f"also changed: {finding}{_factor(result.scaled.get(finding.tensor or ''))}" for finding in result.changes
        ]
        if result.exact:
            lines.append("nothing but experts was changed")
    emit(data, "\n".join(lines), as_json)
    return 0 if result.exact else 1


def _factor(alpha: float | None) -> str:
    return "" if alpha is None else f" (the original times {alpha:.4g})"


COMMANDS = [certify, infer_map]
