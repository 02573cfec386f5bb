"""Answers benches with a checkpoint loaded in this process, batch by batch. Needs torch.

Invariants: batches are cut from the bench's whole list of rows, so a resumed run generates the same batches as an
undisturbed one and ends with the same replies. The model is loaded once, and only if a reply is missing.
"""

from collections.abc import Generator as Iteration
from collections.abc import Mapping
from typing import Any

from trimoe.bench.bench import Bench, Doc
from trimoe.errors import UsageError
from trimoe.evaluate.intake import Group, Intake, Job
from trimoe.evaluate.log.records import Arrived, Sample
from trimoe.model.checkpoint import Checkpoint
from trimoe.model.floats import require_floats
from trimoe.model.generate import SAMPLER, Generator, Reply


class InProcess:
    """An `Answerer` around `Generator`. `batch_size` replies are generated at once."""

    event = "generating"
    event_if_complete = False
    overrun_mark = ""  # generation does not look for stop texts, so every reply may go beyond one

    def __init__(self, checkpoint: Checkpoint, *, batch_size: int = 128, device: str = "cpu", path: str = "") -> None:
        if batch_size < 1:
            raise UsageError("the batch size must be positive", actual=f"{batch_size}", remedy="give 1 or more")
        require_floats(checkpoint.path)
        self._checkpoint, self._batch_size, self._device = checkpoint, batch_size, device
        self._generator: Generator | None = None
        self.label = checkpoint.path.resolve().name
        self.model = checkpoint.fingerprint
        self.settings = {"batch_size": batch_size, "device": device, "path": path or str(checkpoint.path)}

    def sampler(self, bench: Bench) -> Mapping[str, Any]:
        """Greedy decoding in fp32, the same for every bench."""
        return SAMPLER

    def prepare(self) -> None:
        """Load the model."""
        self._generator = self._generator or Generator(self._checkpoint.path, self._device)

    def answers(self, job: Job, missing: set[str], intake: Intake) -> Iteration[Group]:
        """The missing replies in batches of prompts of similar length. `BadInput` if a prompt does not fit."""
        assert self._generator is not None
        encoded = {doc.doc_id: self._generator.encode(doc.prompt, doc.history) for doc in job.docs}
        self._generator.require_room(list(encoded.values()), job.bench.max_new_tokens)
        places = {doc.doc_id: place for place, doc in enumerate(job.docs)}
        order = sorted(job.docs, key=lambda doc: (-len(encoded[doc.doc_id]), doc.doc_id))
        for start in range(0, len(order), self._batch_size):
            batch = [doc for doc in order[start : start + self._batch_size] if doc.doc_id in missing]
            if intake.stopped:
                return
            if batch:
                replies = self._generator.reply([encoded[doc.doc_id] for doc in batch], job.bench.max_new_tokens)
                pairs = zip(batch, replies, strict=True)
                yield intake.take([Arrived(_sample(doc, places[doc.doc_id], reply)) for doc, reply in pairs])


def _sample(doc: Doc, position: int, reply: Reply) -> Sample:
    return Sample(
        doc_id=doc.doc_id,
        position=position,
        prompt=doc.asked(),
        reply=reply.text,
        finish_reason=reply.finish_reason,
        prompt_tokens=reply.prompt_tokens,
        reply_tokens=reply.reply_tokens,
    )
