"""Compares the logits of two models that are never in memory together: the original's wait in temporary files.

Logits arrive in parts of a prompt, so that memory does not grow with its length.
"""

from pathlib import Path

import numpy as np

from trimoe.certify.certificate import Check, Finding, make_check
from trimoe.certify.logit_proof import CannotCheck

Array = np.ndarray


class ComparedLogits:
    """`keep` takes the original's logits, prompt by prompt and part by part; `compare` then the pruned model's."""

    def __init__(self, ids: list[list[int]], folder: Path, tolerance: float) -> None:
        self._ids, self._folder, self._tolerance = ids, folder, tolerance
        self._vocabulary = 0
        self._worst, self._where = 0.0, ""
        self._worst_of: dict[int, tuple[float, Finding]] = {}
        self._argmax_equal = self._positions = 0
        self._stopped = False
        self._findings: list[Finding] = []

    def keep(self, number: int, start: int, logits: Array) -> None:
        """The original's logits, float32 [positions, vocabulary], of prompt `number` from position `start`. Raises
        `CannotCheck` if they are not finite."""
        if not np.isfinite(logits).all():
            position = start + int(np.argmin(np.isfinite(logits).all(axis=1)))
            raise CannotCheck(f"the original's own logits are not finite (prompt {number}, position {position})")
        self._vocabulary = logits.shape[1]
        with (self._folder / f"{number}.f32").open("wb" if start == 0 else "ab") as file:
            file.write(np.ascontiguousarray(logits, np.float32).data)

    def compare(self, number: int, start: int, logits: Array) -> None:
        """The pruned model's logits of the same positions; nothing after `stop`."""
        if self._stopped:
            return
        if logits.shape[1] != self._vocabulary:
            expected, actual = (str((len(self._ids[number]), size)) for size in (self._vocabulary, logits.shape[1]))
            self.stop(
                Finding(subject=f"logits of prompt {number} have another shape", expected=expected, actual=actual)
            )
            return
        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            position = start + int(np.argmin(finite))
            self._findings.append(Finding(subject=f"prompt {number}, position {position}: logits are not finite"))
            return
        want = np.fromfile(
            self._folder / f"{number}.f32", np.float32, logits.size, offset=start * self._vocabulary * 4
        ).reshape(logits.shape)
        difference = np.abs(logits - want)
        position, token = (int(i) for i in np.unravel_index(int(difference.argmax()), difference.shape))
        largest, at = float(difference[position, token]), start + position
        if largest > self._tolerance and largest > self._worst_of.get(number, (0.0,))[0]:
            self._worst_of[number] = (
                largest,
                Finding(
                    subject=f"prompt {number}, position {at}, token id {token}: logits differ by {largest:.3g}",
                    expected=f"{want[position, token]:.6g}",
                    actual=f"{logits[position, token]:.6g}",
                ),
            )
        if largest > self._worst:
            self._worst, self._where = largest, f" (prompt {number}, position {at}, token id {token})"
        self._argmax_equal += int((logits.argmax(axis=1) == want.argmax(axis=1)).sum())
        self._positions += len(logits)

    def stop(self, finding: Finding) -> None:
        """The pruned model gives no more logits; why is a finding."""
        self._stopped = True
        self._findings.append(finding)

    @property
    def worst(self) -> float | None:
        """Largest difference of a logit; None if no position was compared."""
        return self._worst if self._positions else None

    @property
    def differs(self) -> bool:
        """Whether a logit differs by more than the tolerance."""
        return bool(self._worst_of)

    def check(self, claim: str) -> Check:
        """The check, with one finding for each prompt that differs."""
        findings = [*self._findings, *(finding for _, finding in self._worst_of.values())]
        detail = (
            f"largest difference {self._worst:.3g}{self._where}, tolerance {self._tolerance:g}; "
            f"same most likely token at {self._argmax_equal} of {self._positions} positions of {len(self._ids)} prompts"
        )
        numbers: dict[str, int | float] = {
            "max_difference": self._worst,
            "positions": self._positions,
            "argmax_equal": self._argmax_equal,
        }
        return make_check("logits", claim, detail, findings, numbers=numbers)
