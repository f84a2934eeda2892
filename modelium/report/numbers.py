"""Numbers and names as people read them; the report and the command line share these."""

from __future__ import annotations

import math
import unicodedata
from datetime import UTC, datetime

NOTHING = "–"
TIMES = "\N{MULTIPLICATION SIGN}"
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def visible(text: str, *, lines: bool = True) -> str:
    """Return ``text`` with every character that draws nothing or reorders its neighbours written as an escape.

    Control characters drive terminals and bidirectional overrides make a name read as another; neither may come out
    of a model file. Line feeds and tabs stay unless ``lines`` is false.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if _is_visible(c, lines) else _escape(c) for c in text)


def _is_visible(char: str, lines: bool) -> bool:
    if char in "\n\t":
        return lines
    return unicodedata.category(char) not in _HIDDEN


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def significant(value: float, digits: int = 3) -> str:
    """Return ``value`` with at least ``digits`` significant digits, never in scientific notation."""
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    rounded = round(value, decimals)
    # 9.996 rounds up into the next power of ten, which needs a decimal less.
    if rounded and decimals:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}"


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def ms(value: float | None) -> str:
    """Return milliseconds with three significant digits; seconds from ten thousand on."""
    if value is None or not _finite(value):
        return NOTHING
    return f"{significant(value)} ms" if abs(value) < 10_000 else f"{significant(value / 1000)} s"


def size(size_bytes: float | None) -> str:
    """Return bytes in decimal units: 90.9 MB."""
    if size_bytes is None or not _finite(size_bytes):
        return NOTHING
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size_bytes >= scale * 0.9995:
            return f"{significant(size_bytes / scale)} {unit}"
    return f"{size_bytes:.0f} B"


def times(ratio: float | None) -> str:
    """Return a ratio with three significant digits and the sign of multiplication."""
    if ratio is None or not _finite(ratio):
        return NOTHING
    return significant(ratio) + TIMES


def percent(share: float | None) -> str:
    """Return a share in 0..1 as a percentage that never rounds up to 100% nor down to 0%."""
    if share is None or not _finite(share):
        return NOTHING
    if share in (0, 1):
        return f"{share:.0%}"
    for decimals in (1, 2, 3, 4, 6):
        text = f"{share:.{decimals}%}"
        if float(text[:-1]) not in (0, 100):
            return text
    return "<0.000001%" if share < 0.5 else ">99.999999%"


def change(before: float, after: float) -> str:
    """Return how much larger or smaller ``after`` is, in percent with a sign; as a ratio from ten times on."""
    if before <= 0:
        return NOTHING
    if after >= 10 * before:
        return times(after / before)
    ratio = (after - before) / before * 100
    if abs(ratio) < 0.05:
        return "±0%"
    sign = "+" if ratio > 0 else "−"  # noqa: RUF001
    return f"{sign}{abs(ratio):.0f}%" if abs(ratio) >= 9.95 else f"{sign}{abs(ratio):.1f}%"


def difference(value: float | None) -> str:
    """Return a small error: 2.4e-06 as 2.4e-6, 0.013 as 0.013."""
    if value is None or not _finite(value):
        return NOTHING
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e4:
        return significant(value, 2)
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def cosine(value: float | None) -> str:
    """Return a cosine with as many digits as it takes to tell it from 1, at most seven."""
    if value is None or not _finite(value):
        return NOTHING
    gap = 1 - value
    if gap < 5e-8:
        return "1.0000000"
    return f"{value:.{min(7, max(4, 1 - math.floor(math.log10(gap))))}f}"


def count(value: float | None) -> str:
    """Return a large count: 22.7 M."""
    if value is None or not _finite(value):
        return NOTHING
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale * 0.9995 and value >= 9_999.5:
            return f"{significant(value / scale)} {unit}"
    return f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Return a span of time: 0.42 s, 12.3 s, 3 min 12 s, 1 h 4 min."""
    if seconds is None or not _finite(seconds):
        return NOTHING
    if seconds < 0.9995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def when(moment: datetime | None) -> str:
    """Return a moment in UTC to the second; a moment without a zone is taken for UTC."""
    if moment is None:
        return NOTHING
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return f"{aware.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def shorten(text: str, limit: int) -> str:
    """Return ``text`` cut in its middle, so that the beginning and the end of a long name stay readable."""
    if len(text) <= limit:
        return text
    head = (limit - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"
