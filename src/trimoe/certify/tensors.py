"""Byte proof of a cut: where the tensors of the pruned model are not what they must be. Torch-free, streamed.

The bytes were compared in one pass by `compare`; here differences are described. Invariant: a tensor that could not be
compared is a finding, because it has not been proven equal.
"""

from collections.abc import Callable, Collection, Iterator
from itertools import islice

import numpy as np

from trimoe.certify.certificate import Check, Finding, make_check
from trimoe.certify.compare import BLOCK, Compared, fill, narrowed_blocks
from trimoe.certify.expected import Expected, Index, row_layout
from trimoe.errors import CheckpointError
from trimoe.model.safetensors import TensorInfo, read_bytes

_NOT_COMPARED = "tensor {} could not be compared"
_ROWS_NAMED = 3  # differing rows of one tensor that are described one by one


def check_tensors(
    expected: dict[str, Expected], pruned: Index, layer_of: Callable[[str], int | None] = lambda name: None
) -> Check:
    """No tensor is missing or extra, and every dtype and shape is right. `layer_of` finds the layer of an extra one."""
    findings = []
    for name, want in expected.items():
        have = pruned.get(name)
        if have is None:
            findings.append(Finding(subject=f"tensor {name} is missing", tensor=name, layer=want.where))
        elif (have.dtype, have.shape) != (want.dtype, want.shape):
            what = "dtype" if have.dtype != want.dtype else "shape"
            findings.append(
                Finding(
                    subject=f"tensor {name} has the wrong {what}",
                    tensor=name,
                    layer=want.where,
                    expected=f"{want.dtype} {list(want.shape)}",
                    actual=f"{have.dtype} {list(have.shape)}",
                )
            )
    for name in sorted(pruned.keys() - expected.keys()):
        findings.append(
            Finding(
                subject=f"tensor {name} is extra",
                tensor=name,
                layer=layer_of(name),
                actual=f"{pruned[name].dtype} {list(pruned[name].shape)}",
            )
        )
    detail = f"{len(expected)} tensors expected, {len(pruned)} present"
    return make_check("tensors", "no tensor is missing or extra, every dtype and shape is right", detail, findings)


def check_untouched(
    expected: dict[str, Expected], pruned: Index, compared: Compared, healed: Collection[str] = ()
) -> Check:
    """Every tensor without an expert axis is byte-identical to the original's, by `compared`. `healed` ones are left
    out."""
    work = [e for e in expected.values() if not e.cut and e.name not in healed]
    findings: list[Finding] = []
    number = _compare(work, pruned, compared, findings)
    return make_check(
        "untouched",
        "every tensor without an expert axis is byte-identical to the original",
        f"{number} of {len(work)} tensors compared",
        findings,
        numbers={"tensors": number, "bytes": sum(e.source.nbytes for e in work)},
    )


def check_cut(expected: dict[str, Expected], pruned: Index, compared: Compared, healed: Collection[str] = ()) -> Check:
    """Every tensor with an expert axis holds exactly the kept experts, in the map's order, by `compared`. `healed` ones
    are left out."""
    work = [e for e in expected.values() if e.cut and e.name not in healed]
    findings: list[Finding] = []
    number = _compare(work, pruned, compared, findings)
    narrower = ", and of these the kept neurons in ascending order" if any(e.entries for e in work) else ""
    return make_check(
        "cut",
        f"every cut tensor holds exactly the kept experts' rows in ascending order of their original ids{narrower}",
        f"{number} of {len(work)} tensors compared",
        findings,
        numbers={"tensors": number, "bytes": sum(pruned[e.name].nbytes for e in work if e.name in pruned)},
    )


def is_not_compared(finding: Finding) -> bool:
    """Whether a finding only says that two tensors could not be compared, because of another finding.

    The whole sentence is compared: names in findings come from the checked model and could contain any words."""
    return finding.tensor is not None and finding.subject == _NOT_COMPARED.format(finding.tensor)


def _compare(work: list[Expected], pruned: Index, compared: Compared, findings: list[Finding]) -> int:
    """Describe the tensors that differ and return the number of those compared. Tensors of another type or shape are
    findings here too, because a tensor that could not be compared has not been proven equal."""
    number = 0
    for want in work:
        have = pruned.get(want.name)
        if have is None or (have.dtype, have.shape) != (want.dtype, want.shape):
            reason = "missing" if have is None else "of another type or shape"
            findings.append(
                Finding(
                    subject=_NOT_COMPARED.format(want.name),
                    actual=reason,
                    tensor=want.name,
                    layer=want.where,
                )
            )
            continue
        number += 1
        if want.name not in compared.equal:
            described = _tensor_findings(want, have)  # reads the tensor again to find the place
            if not described:
                raise CheckpointError(
                    f"tensor {want.name} in {have.file} was written to while it was compared",
                    expected="files that do not change until the command ends",
                    remedy="wait until nothing writes to them and run again",
                )
            findings += described
    return number


def _tensor_findings(want: Expected, have: TensorInfo) -> list[Finding]:
    if want.entries is not None:
        return list(islice(_narrowed_findings(want, have), _ROWS_NAMED))
    if want.kept is None:
        at = first_difference(want.source, 0, have, 0, have.nbytes)
        if at is None:
            return []
        whose = f" (layer {want.where})" if want.where is not None else ""
        if want.cut:
            whose = f" (layer {want.layer}, position {want.position}, original expert {want.expert})"
        return [
            Finding(
                subject=f"tensor {want.name} differs from the original at byte {at}{whose}",
                tensor=want.name,
                layer=want.where,
                position=want.position,
                expert=want.expert,
                offset=at,
            )
        ]
    rows = list(_differing_rows(want, have))
    findings = []
    for position, at in rows[:_ROWS_NAMED]:
        expert = want.kept[position]
        findings.append(
            Finding(
                subject=f"tensor {want.name}: layer {want.layer}, position {position} is not original expert {expert}",
                expected=f"the bytes of expert {expert}",
                actual=_whose_row(want, have, position, at),
                tensor=want.name,
                layer=want.layer,
                position=position,
                expert=expert,
                offset=at,
            )
        )
    if len(rows) > _ROWS_NAMED:
        more = [position for position, _ in rows[_ROWS_NAMED:]]
        findings.append(
            Finding(
                subject=f"tensor {want.name}: {len(more)} more kept positions differ",
                actual=f"positions {more}",
                tensor=want.name,
                layer=want.layer,
            )
        )
    return findings


def _narrowed_findings(want: Expected, have: TensorInfo) -> Iterator[Finding]:
    """The first wrong entry of each expert that keeps only some entries of an axis."""
    target = 0
    experts = (want.expert,) if want.kept is None else want.kept
    for number, (start, outer, length, entry, kept) in enumerate(narrowed_blocks(want)):
        expert, position = experts[number], want.position if want.kept is None else number
        row = len(kept) * entry
        for i in range(outer):
            old, new = read_bytes(want.source, start + i * length * entry, length * entry), target + i * row
            cells = np.frombuffer(old, np.uint8).reshape(length, entry)[list(kept)].ravel()
            wrong = np.flatnonzero(cells != np.frombuffer(read_bytes(have, new, row), np.uint8))
            if len(wrong):
                neuron = kept[int(wrong[0]) // entry]
                yield Finding(
                    subject=f"tensor {want.name}: layer {want.layer}, position {position} is not original expert "
                    f"{expert} at entry {int(wrong[0]) // entry}",
                    expected=f"entry {neuron} of expert {expert}",
                    tensor=want.name,
                    layer=want.layer,
                    position=position,
                    expert=expert,
                    offset=new + int(wrong[0]),
                )
                break
        target += outer * row


def _differing_rows(want: Expected, have: TensorInfo) -> Iterator[tuple[int, int]]:
    """(kept position, byte offset in the pruned tensor) of the first difference of every position that differs."""
    kept = want.kept or ()
    outer, row = row_layout(want.source, want.axis)
    experts, seen = want.source.shape[want.axis], set()
    for block in range(outer):
        position = 0
        while position < len(kept):
            # Rows that are adjacent in both files are compared as one run; a difference is then located inside it.
            end = position + 1
            while end < len(kept) and kept[end] == kept[end - 1] + 1:
                end += 1
            source, target = (block * experts + kept[position]) * row, (block * len(kept) + position) * row
            at = first_difference(want.source, source, have, target, (end - position) * row)
            if at is None:
                position = end
                continue
            position += at // row
            if position not in seen:
                seen.add(position)
                yield position, target + at
            position += 1


def _whose_row(want: Expected, have: TensorInfo, position: int, at: int) -> str:
    """Which original expert is at a wrong position, if any: tells a swap from damage."""
    outer, row = row_layout(want.source, want.axis)
    if outer == 1:
        for expert in range(want.source.shape[want.axis]):
            if first_difference(want.source, expert * row, have, position * row, row) is None:
                return f"the bytes of expert {expert}"
    return f"no original expert's bytes (first difference at byte {at} of the tensor)"


def first_difference(a: TensorInfo, a_at: int, b: TensorInfo, b_at: int, length: int) -> int | None:
    """Offset of the first differing byte of two ranges given relative to their tensors, or None if equal."""
    left, right = bytearray(min(BLOCK, length)), bytearray(min(BLOCK, length))
    with a.file.open("rb", buffering=0) as file_a, b.file.open("rb", buffering=0) as file_b:
        done = 0
        while done < length:
            count = min(BLOCK, length - done)
            if count < len(left):
                del left[count:], right[count:]
            fill(file_a.fileno(), memoryview(left), a.file, a.start + a_at + done)
            fill(file_b.fileno(), memoryview(right), b.file, b.start + b_at + done)
            if left != right:
                return done + int(np.argmax(np.frombuffer(left, np.uint8) != np.frombuffer(right, np.uint8)))
            done += count
    return None
