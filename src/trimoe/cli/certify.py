"""`trimoe certify`: parse, call, print."""

from functools import partial
from pathlib import Path

import click

from trimoe.certify.certificate import CERTIFICATE, MAX_FINDINGS, Certificate, Check, certificate_path
from trimoe.cli.parts.common import emit, json_option, progress
from trimoe.errors import UsageError

_MARKS = {"passed": "ok", "failed": "FAIL", "not_run": "--"}


@click.command()
@click.argument("base", type=click.Path(path_type=Path), required=False)
@click.argument("pruned", type=click.Path(path_type=Path), required=False)
@click.option(
    "--check",
    "check",
    type=click.Path(path_type=Path, exists=True),
    metavar="PRUNED",
    help="Only verify that the certificate of PRUNED is proven and about exactly these files; needs no BASE.",
)
@click.option(
    "--map", "map_file", type=click.Path(path_type=Path), help="The drop map; default: the one recorded in PRUNED."
)
@click.option("--prompts", type=click.Path(path_type=Path), help="Prompts: text (one per line), .json or .jsonl.")
@click.option(
    "--tolerance",
    type=float,
    default=1e-4,
    show_default=True,
    help="Largest allowed logit difference; 0: exactly equal.",
)
@click.option("--no-logits", is_flag=True, help="Compare bytes only. The verdict is then never `proven`.")
@click.option("--keep-going", is_flag=True, help="Compare logits even if the bytes refute the cut.")
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="GGUF: the same cut made another way; must have the same bytes.",
)
@click.option(
    "--llamacpp", type=click.Path(path_type=Path), metavar="DIR", help="GGUF: directory of the llama.cpp programs."
)
@click.option("--device", default="cpu", show_default=True, help="Device that runs the models: cpu, cuda, cuda:1, ...")
@click.option(
    "-o",
    "--out",
    "--output",
    "output",
    type=click.Path(path_type=Path),
    help=f"Certificate file; default: PRUNED/{CERTIFICATE}.",
)
@json_option
def certify(
    base: Path | None,
    pruned: Path | None,
    check: Path | None,
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

    Compares every tensor, the config and the tokenizer byte by byte, and the logits with those of BASE with the dropped
    experts masked. Writes certificate.json. Two GGUF models are compared in the same way: tensors and metadata byte by
    byte, and the logits that llama.cpp computes.

    \b
    Exit codes: 0 proven, 1 refuted, incomplete or (--check) of other files, 3 bad input.

    \b
    Examples:
      trimoe certify gemma-4-26B-A4B-it pruned-98e
      trimoe certify gemma-4-26B-A4B-it pruned-98e --map map.json --prompts mine.txt
      trimoe certify gemma-4-26B-A4B-it pruned-98e --no-logits --json
      trimoe certify base-Q4_K_M.gguf pruned-Q4_K_M.gguf --map map.json
      trimoe certify --check pruned-98e
    """
    if check is not None:
        if base is not None:
            raise UsageError("--check takes no models besides its own", expected="trimoe certify --check PRUNED")
        return _verify(check, output or certificate_path(check), as_json)
    if base is None or pruned is None:
        raise UsageError(
            "certify needs two models", expected="trimoe certify BASE PRUNED, or trimoe certify --check PRUNED"
        )
    from trimoe.certify.certify import certify as run

    with progress("certify") as report:
        certificate = run(
            base,
            pruned,
            map=map_file,
            prompts=prompts,
            tolerance=tolerance,
            logits=not no_logits,
            keep_going=keep_going,
            reference=reference,
            llamacpp=llamacpp,
            device=device,
            output=output,
            warn=partial(click.echo, err=True),
            progress=report,
        )
    where = output or certificate_path(pruned)
    text = f"{certificate_text(certificate)}\nwrote {where}"
    emit({**certificate.as_dict(), "certificate": str(where)}, text, as_json)
    return 0 if certificate.proven else 1


def _verify(model: Path, place: Path, as_json: bool) -> int:
    """Compare a certificate with the files of its model; 0 if it is proven and every file is the one checked."""
    certificate = Certificate.load(place)
    stale = certificate.stale(model)
    valid = certificate.proven and not stale
    lines = [f"      - {finding}" for finding in stale[:MAX_FINDINGS]]
    if len(stale) > MAX_FINDINGS:
        lines.append(f"      - and {len(stale) - MAX_FINDINGS} more")
    verdict = (
        f"VALID: proven, and all {len(certificate.pruned.files)} files are those that were checked"
        if valid
        else f"STALE: {len(stale)} files are not those that were checked; certify the model again"
        if stale
        else f"NOT PROVEN: the files are those that were checked, and the verdict was {certificate.status}"
    )
    found = {"certificate": str(place), "status": certificate.status, "valid": valid}
    emit({**found, "stale": [finding.as_dict() for finding in stale]}, "\n".join([*lines, verdict]), as_json)
    return 0 if valid else 1


def certificate_text(certificate: Certificate) -> str:
    """The certificate as text: one line per check, its findings below it, the verdict last."""
    lines = [line for check in certificate.checks for line in _check_lines(check)]
    narrow = certificate.map.width
    neurons = "" if narrow is None else f" and all but {narrow} of {certificate.map.width_before} neurons of the others"
    reasons = {
        "proven": f"PROVEN: the pruned model is the original minus the dropped experts{neurons}, and nothing else",
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


COMMANDS = [certify]
