"""Markers of chat templates and of thinking in the content of a reply: one list (`markers.toml`) and a shape check.

Invariants: answers, guards and audit use the same list. A text that the prompt contains is not a marker. The shape
check knows no names: it finds an opening and a switch to the answer that most replies of a run share. Every check is
linear in the length of a reply. Pure.
Not guaranteed: thinking without any opening and without a switch, in words that differ from reply to reply, looks like
an answer.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Annotated, Literal

from msgspec import Meta

from trimoe.errors import BenchError
from trimoe.io.datafile import Data, load

Text = Annotated[str, Meta(min_length=1)]
Share = Annotated[float, Meta(gt=0, le=1)]
Count = Annotated[int, Meta(ge=1)]

_BRACKETS = r"<>\[\]\u25c1\u25b7\u27e8\u27e9\u3010\u3011"
_BODY = rf"[^\s{_BRACKETS}\"'=]{{0,40}}[^\W\d_][^\s{_BRACKETS}\"'=]{{0,40}}"  # a tag's name: at least one letter
_TAG = re.compile(rf"<{_BODY}>|\[{_BODY}\]|\u25c1{_BODY}\u25b7|\u27e8{_BODY}\u27e9|\u3010{_BODY}\u3011")
_GLUED = re.compile(r"(?<![a-z])[a-z]{5,40}(?=[A-Z0-9$*#])|(?<=[.!?)\d])[a-z]{5,40}(?![a-z])")
_LABEL = re.compile(r"[#*_>\s]{0,8}([^\n:*]{1,60})[*_]{0,3}(?::|\n|$)")
_FIRST = re.compile(r"[#*_>\s]{0,8}([^\W\d_]{1,40})")
_WORD = re.compile(r"[a-z]{4,40}")
_SHORTEST = 5  # letters of a word that the text of a thought is glued to
_MOST = 400  # switches kept of one reply
_MARKUP = tuple("`*#$\\")  # first characters of code, emphasis, headings and formulas


class Thought(Data, frozen=True, kw_only=True):
    """Tags around a thought; `markers.toml` documents each key."""

    opens: Text
    closes: Text
    anywhere: bool = True


class Remainder(Data, frozen=True, kw_only=True):
    """What remains of a thought without its special tokens."""

    name: Text
    begins: Text
    then: tuple[Text, ...] = ()
    glued: bool = False


class ShapeLimits(Data, frozen=True, kw_only=True):
    """Thresholds of the check without names."""

    after: Count
    share: Share
    words: tuple[Text, ...]


class Markers(Data, frozen=True, kw_only=True):
    """The whole file."""

    version: Literal[1]
    control: tuple[Text, ...]
    turns: tuple[Text, ...]
    thought: tuple[Thought, ...]
    remainder: tuple[Remainder, ...]
    shape: ShapeLimits


@cache
def markers() -> Markers:
    """The shipped list."""
    source = resources.files("trimoe.evaluate") / "markers.toml"
    return load(Markers, source, "markers.toml", error=BenchError)


def found(text: str, prompt: str = "", *, turns: bool = False) -> list[str]:
    """Markers in a reply's content that its prompt does not have; `turns` includes those that begin or end a turn."""
    known = markers()
    controls = known.control + known.turns if turns else known.control
    out = [mark for mark in controls if mark in text and mark not in prompt]
    lower, asked = text.lower(), prompt.lower()
    for tag in known.thought:
        out += _of_tag(tag, lower, asked)
    start = text.lstrip()
    out += [rest.name for rest in known.remainder if _remains(rest, start)]
    return list(dict.fromkeys(out))


def half_open(text: str) -> bool:
    """Whether a text opens a thought without closing it."""
    lower = text.lower()
    return any(
        lower.rfind(tag.opens.lower()) > lower.rfind(tag.closes.lower()) for tag in markers().thought if tag.anywhere
    )


def _of_tag(tag: Thought, text: str, prompt: str) -> list[str]:
    opens, closes = tag.opens.lower(), tag.closes.lower()
    if tag.anywhere:
        return [name for name, low in ((tag.opens, opens), (tag.closes, closes)) if low in text and low not in prompt]
    if opens in prompt or closes in prompt:
        return []
    begins, ends = text.lstrip().startswith(opens), closes in text
    return [name for name, hit in ((tag.opens, begins), (tag.closes, ends)) if hit]


def _remains(rest: Remainder, start: str) -> bool:
    if not start.startswith(rest.begins):
        return False
    after = start[len(rest.begins) :]
    return (
        (not rest.then and not rest.glued)
        or (bool(rest.then) and any(_joined(switch) in _joined(after) for switch in rest.then))
        or (rest.glued and after[:1].isupper())
    )


def _joined(text: str) -> str:
    """The text without white space, which servers put in the place of a dropped token or not."""
    return "".join(text.split())


# ---------------------------------------------------------------- without names


@dataclass(frozen=True)
class Form:
    """How one reply begins, and texts that may switch to its answer (`switches`).

    `openings`: its tag or label. `word`: its first letters, if they are in lower case; `apart`: a space or punctuation
    follows them, so they are an ordinary word; `glued`: a capital letter or a mark-up character does.
    """

    openings: frozenset[str]
    word: str
    apart: bool
    glued: bool
    switches: frozenset[str]

    def opens(self, opening: str) -> bool:
        """Whether the reply begins with this opening."""
        return opening in self.openings or (self.word.startswith(opening) and not (self.apart and self.word == opening))


@dataclass(frozen=True)
class Shape:
    """An opening and a switch that `hits` of `of` replies share.

    The opening is empty where a server cut it off; the switch, where only the name of a channel is left of it.
    """

    opening: str
    switch: str
    hits: int
    of: int

    @property
    def text(self) -> str:
        """For messages."""
        parts = [f"begin with {self.opening!r}"] if self.opening else []
        parts += [f"switch to the answer with {self.switch!r}"] if self.switch else ["go on without a space"]
        return f"{self.hits} of {self.of} replies {' and '.join(parts)}"


def form_of(text: str, prompt: str = "") -> Form:
    """The form of one reply's content. Texts that the prompt has do not count."""
    start = text.lstrip()
    openings = frozenset(one for one in _openings(start) if one not in prompt)
    word = _WORD.match(start)
    first = word.group() if word else ""
    follows = start[len(first) : len(first) + 1]
    apart = bool(first) and follows != "\n" and not follows.isalnum()
    switches = [one for one in _switches(start[max(1, len(first)) :], bool(openings or first)) if one not in prompt]
    return Form(openings, first, apart, follows.isupper() or follows in _MARKUP, frozenset(switches[:_MOST]))


def shape(forms: Sequence[Form], limits: ShapeLimits | None = None) -> Shape | None:
    """The shape of thinking that most replies share, or None. Pass the forms of replies with content."""
    limits = limits or markers().shape
    if len(forms) < limits.after:
        return None
    least = limits.share * len(forms)
    counted = Counter(one for form in forms for one in form.openings)
    openings = [one for one, hits in counted.items() if hits >= least] + _glued(forms, least)
    for opening in openings:
        alike = [form for form in forms if form.opens(opening)]
        switches = Counter(one for form in alike for one in form.switches if one.casefold() != opening.casefold())
        if switches and (best := switches.most_common(1)[0])[1] >= least:
            return Shape(opening, best[0], best[1], len(forms))
    channels = Counter(form.word for form in forms if form.glued and len(form.word) >= _SHORTEST)
    if channels and (channel := channels.most_common(1)[0])[1] >= least:
        return Shape(channel[0], "", channel[1], len(forms))
    closers = Counter(one for form in forms if not form.openings for one in form.switches if one[1:2] == "/")
    if closers and (last := closers.most_common(1)[0])[1] >= least:
        return Shape("", last[0], last[1], len(forms))
    return None


def has_shape(form: Form, common: Shape) -> bool:
    """Whether a reply has the common opening and switch."""
    if not common.switch:
        return form.glued and form.word == common.opening
    return common.switch in form.switches and (not common.opening or form.opens(common.opening))


def _glued(forms: Sequence[Form], least: float) -> list[str]:
    """The longest word that most replies begin with, if text follows it without a space or it has a line of its own."""
    prefixes = Counter(form.word[:size] for form in forms for size in range(_SHORTEST, len(form.word) + 1))
    common = [prefix for prefix, hits in prefixes.items() if hits >= least]
    longest = max(common, key=len, default="")
    return [longest] if longest and sum(form.opens(longest) for form in forms) >= least else []


def _openings(start: str) -> list[str]:
    """The tag that a reply begins with, and its first label or word if it has the stem of a word for thinking."""
    tag, line, word = _TAG.match(start), _LABEL.match(start), _FIRST.match(start)
    texts = [line.group(1).strip() if line else "", word.group(1) if word else ""]
    stems = markers().shape.words
    return [*([tag.group()] if tag else []), *(one for one in texts if any(stem in one.lower() for stem in stems))]


def _switches(rest: str, opened: bool) -> list[str]:
    """Closing tags whose opening tag is missing; after an opening also other tags, glued words, and short lines."""
    tags = dict.fromkeys(tag.group() for tag in _TAG.finditer(rest))
    if not opened:
        return [tag for tag in tags if tag[1] == "/" and tag.replace("/", "", 1) not in rest]
    glued = (word.group() for word in _GLUED.finditer(rest))
    labels = (label.group(1).strip() for label in map(_LABEL.match, rest.split("\n")[1:]) if label)
    return list(dict.fromkeys([*tags, *glued, *filter(None, labels)]))
