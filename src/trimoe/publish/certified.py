"""Whether a folder is certified: its certificates, verified against its files, and what a card says about them.

Invariants: a certificate counts only if it is proven and every file is the one that was checked. A pruned model needs
one. Healed and quantized models cannot be proven equal to their original's experts; a certificate that lies beside them
must still not be refuted or of other files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimoe.certify.certificate import CERTIFICATE, Certificate
from trimoe.certify.heal import HEAL_CHECK
from trimoe.cut import checkpoint as cut_checkpoint
from trimoe.cut.gguf.history import KIND as CUT_GGUF
from trimoe.cut.history import read_record
from trimoe.errors import BadInput, MapError, Refused
from trimoe.io.jsonfile import read_json
from trimoe.io.manifest import MANIFEST
from trimoe.model.files import METADATA

_CUT = (cut_checkpoint.KIND, CUT_GGUF)


@dataclass(frozen=True)
class Certification:
    """`proven`: every pruned model here has a proof of exactly these files. `problems` say why the folder must not pass
    for certified. Neither: a model that cannot be proven (healed, quantized)."""

    proven: bool
    problems: tuple[str, ...] = ()

    def require(self, folder: Path, allow: bool) -> None:
        """Raise `Refused` with the problems, unless `allow`."""
        if self.problems and not allow:
            raise Refused(
                f"{folder} is not certified",
                expected="a certificate that is proven, and of exactly these files",
                actual="; ".join(self.problems),
                remedy="run `trimoe certify BASE FOLDER`; --allow-uncertified goes on, and the card says so",
            )


def certification(folder: Path, hashes: Mapping[str, str] | None = None, *, status_only: bool = False) -> Certification:
    """Verify the certificates of a folder. `hashes` (sha256 by name) spares reading files that were hashed already.

    With `status_only` no file is read: only verdicts and missing certificates are found.
    """
    cut = _cut_models(folder)
    problems, proven = [], 0
    for place, model in cut.items():
        if not place.exists():
            problems.append(f"{model.name} has no certificate")
    for place, model in _certificates(folder).items():
        try:
            found = Certificate.load(place)
        except BadInput as exc:
            problems.append(f"{place.name} is unusable: {exc.actual or exc.subject}")
            continue
        if fault := _fault(found):
            problems.append(f"{place.name}: {fault}")
            continue
        proven += found.proven
        if status_only:
            continue
        known = {name: hashes[name] for name in found.pruned.files if name in hashes} if hashes else {}
        stale = found.stale(model) if len(known) < len(found.pruned.files) else found.stale_hashes(model, known)
        problems += [f"{place.name}: {finding}" for finding in stale[:3]]
        problems += _other_base(found, model, place.name)
    return Certification(bool(proven) and not problems, tuple(problems))


def _cut_models(folder: Path) -> dict[Path, Path]:
    """The place of the certificate that each model needs: models that were cut and not changed after that."""
    found = {}
    manifest = _kind(folder / MANIFEST)
    unsigned = not manifest and (folder / METADATA).exists() and (folder / "config.json").exists()
    if manifest in _CUT or unsigned:
        found[folder / CERTIFICATE] = folder
    for file in sorted(folder.glob("*.gguf")):
        if _kind(file.with_name(f"{file.name}.manifest.json")) == CUT_GGUF:
            found[file.with_name(f"{file.name}.{CERTIFICATE}")] = file
    return found


def _certificates(folder: Path) -> dict[Path, Path]:
    """Every certificate in the folder, and the model that it is about."""
    found = {folder / CERTIFICATE: folder} if (folder / CERTIFICATE).exists() else {}
    for place in sorted(folder.glob(f"*.{CERTIFICATE}")):
        found[place] = folder / place.name.removesuffix(f".{CERTIFICATE}")
    return found


def _fault(certificate: Certificate) -> str:
    """Why a certificate does not prove what it can prove; empty if it does."""
    if certificate.status == "refuted":
        failed = ", ".join(check.name for check in certificate.checks if check.status == "failed")
        return f"refuted ({failed})"
    missing = [check.name for check in certificate.checks if check.status == "not_run"]
    if HEAL_CHECK in missing:
        return ""  # a healed model is never proven; its bytes and its record were checked
    return f"incomplete ({', '.join(missing)} not run)" if missing else ""


def _other_base(certificate: Certificate, model: Path, name: str) -> list[str]:
    """A problem if the model's own record names other originals than the certificate."""
    record: dict[str, Any] = {}
    place = model / METADATA if model.is_dir() else model.with_name(f"{model.name}.{METADATA}")
    try:
        record = read_record(place) if place.exists() else {}
    except MapError:
        return []  # certify refutes it
    bases = _bases(record)
    if bases and certificate.base.fingerprint not in bases:
        return [f"{name}: it compares with another original than the one that the model was cut from"]
    return []


def _bases(record: Any) -> set[str]:
    """Fingerprints of all originals in a record: of each step and of the whole."""
    if not isinstance(record, dict):
        return set()
    own = {record["base_fingerprint"]} if isinstance(record.get("base_fingerprint"), str) else set()
    return own | _bases(record.get("previous")) | _bases(record.get("composed"))


def _kind(manifest: Path) -> str:
    data = read_json(manifest, "manifest") if manifest.exists() else {}
    return str(data.get("kind") or "") if isinstance(data, dict) else ""
