"""The two grammars in which batches are typed, and where a text goes wrong. Floor 0: standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

LONGEST_NUMBER = 12
"""Digits: more than any batch's count or length has, refused before it is read as a number."""


class WorkloadError(ValueError):
    """A batch that does not parse, or that no engine could run."""


@dataclass(frozen=True, slots=True)
class Segment:
    """``count`` requests of ``new`` and ``total`` tokens, as written at ``offset`` of the text."""

    count: int
    new: int
    total: int
    offset: int


def segments(text: str) -> Iterator[Segment]:
    """Read a batch in either grammar; see ``Workload.parse``.

    Raises:
        WorkloadError: pointing at the first character that does not fit.
    """
    named = _NAME.match(text)
    start = named.end() if named else 0
    grammar = _FORWARD if named or "q" not in text else _BATCH
    for part in text[start:].split(grammar.separator):
        yield grammar.read(text, part, start)
        start += len(part) + 1


def point_at(text: str, position: int, problem: str) -> str:
    """Return the sentence that says what is wrong at a position of a batch."""
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return f"batch {shown!r}, character {position + 1}: {problem}"


@dataclass(frozen=True, slots=True)
class _Grammar:
    """One way to write a segment.

    Args:
        separator: between segments.
        pattern: of a whole segment: count, new, second.
        tokens: the same piece by piece, each with the words for what is missing where it does not match.
        second_is_context: whether the second length leaves out the new tokens.
    """

    separator: str
    pattern: re.Pattern[str]
    tokens: tuple[tuple[str, re.Pattern[str]], ...]
    second_is_context: bool

    def read(self, text: str, part: str, offset: int) -> Segment:
        match = self.pattern.fullmatch(part)
        if match is None:
            raise WorkloadError(self._complaint(text, part, offset))
        if any(len(number) > LONGEST_NUMBER for number in match.groupdict("").values()):
            raise WorkloadError(
                point_at(text, offset, f"the segment {part[:40]!r} holds a number that no batch can have")
            )
        count = int(match["count"]) if match["count"] else 1
        new = _length(match["new"])
        second = _length(match["second"]) if match["second"] else (0 if self.second_is_context else new)
        return Segment(count, new, new + second if self.second_is_context else second, offset)

    def _complaint(self, text: str, part: str, offset: int) -> str:
        at, expected = 0, f"{self.separator!r} or the end"
        for word, token in self.tokens:
            found = token.match(part, at)
            if found is None:
                expected = word
                break
            at = found.end()
        seen = repr(text[offset + at]) if offset + at < len(text) else "the end"
        return point_at(text, offset + at, f"{seen} where {expected} should stand")


def _grammar(separator: str, before_new: str, before_second: str, second_is_context: bool) -> _Grammar:
    length = r"[0-9]+k?"
    count = rf"[0-9]+(?={re.escape(before_new)})" if before_new == "*" else r"[0-9]+"
    if before_new == "*":
        pattern = rf"(?:(?P<count>[0-9]+)\*)?(?P<new>{length})(?:@(?P<second>{length}))?"
        tokens = [("a count", rf"(?:{count}\*)?"), ("a number of new tokens, as in 32*1@8192,", length)]
    else:
        pattern = rf"(?P<count>[0-9]+)?q(?P<new>{length})(?:s(?P<second>{length}))?"
        tokens = [("a count", rf"(?:{count})?"), ("'q', as in 8q1s32k,", "q"), ("a number of new tokens", length)]
    # A segment that is right up to here and ends is right, so what fails at one of these is what stands there instead.
    tokens += [(f"{before_second!r}, {separator!r} or the end", before_second), ("a length", length)]
    compiled = tuple((word, re.compile(token)) for word, token in tokens)
    return _Grammar(separator, re.compile(pattern), compiled, second_is_context)


_NAME = re.compile(r"[A-Za-z0-9_.-]+=")
_BATCH = _grammar("_", "q", "s", second_is_context=False)
_FORWARD = _grammar(",", "*", "@", second_is_context=True)


def _length(text: str) -> int:
    return int(text[:-1]) * 1024 if text.endswith("k") else int(text)
