"""Tokens: a column of texts as the words and letters that scikit-learn's analyzers count, in ONNX.

A row of tokens is as long as its batch's longest, filled with ``PAD``, and ends with one: no table is without columns.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from converters.boosting_sklearn import Container

PAD = "\x02\x03"
"""Stands where a row has no token: two letters, so that it is none, and such as no pattern for words takes."""
SPACE = r"[\t-\r\x1c-\x20\x85\xa0\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]"
"""What Python's \\s and split take for white space, in RE2's terms."""
_NOT_SPACE = f"[^{SPACE[1:]}"
WORD = r"[\p{L}\p{N}_]"
"""What Python calls a character of a word, in RE2's terms."""
_ONLY_WORDS = re.compile(r"(\\w|[+*?]|\{\d*,?\d*\})+")
_STRING_OPSET = 20
"""The first with operators that join and match strings."""


def pattern_in_re2(pattern: str) -> str:
    """Return what RE2 reads as Python reads ``pattern`` on text of any alphabet."""
    plain = pattern.removeprefix("(?u)")
    inside = plain.removeprefix(r"\b").removesuffix(r"\b")
    if _ONLY_WORDS.fullmatch(inside):
        plain = inside  # takes all the characters that there are, so a boundary follows by itself
    return plain.replace(r"\w", WORD).replace(r"\d", r"\p{Nd}")


def refuse_what_is_own(model: Any) -> None:
    """Raise RuntimeError for a vectoriser that calls Python code of its own or strips accents."""
    for name in ("preprocessor", "tokenizer", "strip_accents"):
        if getattr(model, name) is not None:
            raise RuntimeError(f"{type(model).__name__} with {name}=... has no form in ONNX")
    if callable(model.analyzer):
        raise RuntimeError(f"{type(model).__name__} with a function as analyzer has no form in ONNX")


def texts(writer: Container, operator: Any, *, lowercase: bool) -> str:
    """Return the one column of texts that ``operator`` takes, [N]."""
    flat = writer.node("Reshape", [operator.inputs[0].full_name, writer.constant(np.array([-1], np.int64))])
    return (
        writer.node("StringNormalizer", [flat], case_change_action="LOWER", is_case_sensitive=0) if lowercase else flat
    )


def words(writer: Container, column: str, pattern: str) -> str:
    """Return the words of ``column`` by a token pattern of scikit-learn's, [N, words]."""
    return _ended(writer, _split(writer, column, tokenexp=pattern_in_re2(pattern)))


def letters(writer: Container, column: str) -> str:
    """Return the letters of ``column``, [N, letters]; several of white space in a row are one blank."""
    _ask_for_strings(writer)
    found = _split(writer, column, tokenexp=f"{SPACE}{SPACE}+|(?s:.)")
    spaces = writer.node("RegexFullMatch", [found], pattern=f"{SPACE}{SPACE}+")
    return _ended(writer, writer.node("Where", [spaces, _text(writer, " "), found]))


def letters_of_words(writer: Container, column: str) -> str:
    """Return the letters of every word of ``column`` with a blank on both sides, and then a pad, [N, letters]."""
    _ask_for_strings(writer)
    blank, none = _text(writer, " "), _text(writer, "")
    # No word is a blank, so that stands where there is none.
    found = _ended(writer, _split(writer, column, tokenexp=f"{_NOT_SPACE}+", pad=" "), pad=" ")
    held = writer.node("StringConcat", [writer.node("StringConcat", [blank, found]), blank])
    held = writer.node("Where", [writer.node("Equal", [found, blank]), none, held])
    apart = _split(writer, held, tokenexp="(?s:.)")
    # [N, words, letters] with a pad after each word, across which no letters are neighbours.
    apart = _ended(writer, apart)
    return writer.node("Flatten", [apart], axis=1)


def is_pad(writer: Container, tokens: str) -> str:
    """Return which of ``tokens`` are none."""
    return writer.node("Equal", [tokens, _text(writer, PAD)])


def neighbours(writer: Container, tokens: str, count: int, between: str) -> tuple[str, str]:
    """Return every ``count`` tokens in a row joined by ``between``, and which of them hold a pad, [N, tokens]."""
    _ask_for_strings(writer)
    one = writer.constant(np.array([1], np.int64))
    width = writer.node("Gather", [writer.node("Shape", [tokens]), one], axis=0)
    pads = [_column(writer, tokens) for _ in range(count - 1)]
    longer = writer.node("Concat", [tokens, *pads], axis=1) if pads else tokens
    joined = hold = ""
    for place in range(count):
        start = writer.constant(np.array([place], np.int64))
        part = writer.node("Slice", [longer, start, writer.node("Add", [width, start]), one])
        if not joined:
            joined, hold = part, is_pad(writer, part)
            continue
        joined = writer.node("StringConcat", [joined, _text(writer, between)]) if between else joined
        joined, hold = writer.node("StringConcat", [joined, part]), writer.node("Or", [hold, is_pad(writer, part)])
    return joined, hold


def _split(writer: Container, column: str, *, tokenexp: str, pad: str = PAD) -> str:
    return writer.node(
        "Tokenizer", [column], domain="com.microsoft", tokenexp=tokenexp, pad_value=pad, mark=0, mincharnum=1
    )


def _ended(writer: Container, tokens: str, *, pad: str = PAD) -> str:
    """Return ``tokens`` with a pad more at the end of every row."""
    return writer.node("Concat", [tokens, _column(writer, tokens, pad)], axis=-1)


def _column(writer: Container, tokens: str, pad: str = PAD) -> str:
    """Return pads, as many as ``tokens`` has rows, in one column."""
    shape = writer.node("Shape", [tokens])
    rows = writer.node("Slice", [shape, *(writer.constant(np.array([at], np.int64)) for at in (0, -1))])
    one = writer.constant(np.array([1], np.int64))
    return writer.node("Expand", [_text(writer, pad), writer.node("Concat", [rows, one], axis=0)])


def _text(writer: Container, text: str) -> str:
    return writer.constant(np.array([text], object))


def _ask_for_strings(writer: Container) -> None:
    """Raise what has the conversion begin again at the opset that joins and matches strings."""
    if writer.container.target_opset < _STRING_OPSET:
        raise RuntimeError(
            f"Strings are joined by newer operators: opset {writer.container.target_opset} < {_STRING_OPSET}."
        )
