"""The replies of a GGUF model to prompts of a calibration set, generated greedily by llama.cpp."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from trimoe.calibrate.gguf.program import Conversation
from trimoe.calibrate.gguf.tokenizer import GgufTokenizer
from trimoe.calibrate.text.rendering import end_of_turn
from trimoe.calibrate.text.replies import Answerer, Answering
from trimoe.llamacpp.tools import LlamaCpp
from trimoe.model.generate import TURN_END, Reply
from trimoe.model.gguf.model import GgufModel


class GgufReplies:
    """A running llama.cpp that answers prompts one after the other. `stops` are ids that end a reply, besides those of
    which llama.cpp knows that they end a generation."""

    def __init__(self, model: GgufModel, tokenizer: GgufTokenizer, conversation: Conversation) -> None:
        self.context = model.gguf.integer(f"{model.architecture}.context_length")
        self._tokenizer, self._conversation = tokenizer, conversation
        named = tokenizer.get_vocab().get(TURN_END)
        self._stops = sorted({*tokenizer.end_ids(), *end_of_turn(tokenizer)[-1:], *([] if named is None else [named])})

    def reply(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Reply]:
        """Greedy replies, in the order of the prompts."""
        return [self._reply(prompt, max_new_tokens) for prompt in prompts]

    def _reply(self, prompt: Sequence[int], most: int) -> Reply:
        answer = self._conversation.ask({"tokens": list(prompt), "most": most, "stop": self._stops})
        tokens, stopped = [int(token) for token in answer["tokens"]], bool(answer["stopped"])
        return Reply(
            text=self._tokenizer.decode(tokens[:-1] if stopped else tokens),
            finish_reason="stop" if stopped else "length",
            prompt_tokens=len(prompt),
            reply_tokens=len(tokens),
            tokens=tuple(tokens),
        )


def gguf_answerer(model: GgufModel, tokenizer: GgufTokenizer, tools: LlamaCpp, threads: int) -> Answerer:
    """A GGUF model as a model that answers."""

    @contextmanager
    def load(longest: int) -> Iterator[Answering]:
        with Conversation(tools, "reply", model.path, longest, threads) as conversation:
            yield GgufReplies(model, tokenizer, conversation)

    return Answerer(model.fingerprint, "gguf", load)
