"""Numbers of a verdict as a person says them."""

from __future__ import annotations

from validator.paired import CONFIDENCE, LEAST_ROUNDS, Ratio


def cut(text: str, most: int = 500) -> str:
    """Return ``text`` in at most ``most`` characters."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def size_in_words(size_bytes: int) -> str:
    """Return a size in decimal units: ``90.4 MB``."""
    if size_bytes < 1000:
        return f"{size_bytes} bytes"
    size, unit = size_bytes / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}" if size < 1000 else f"{size:,.0f} {unit}"


def time_in_words(milliseconds: float) -> str:
    """Return a latency with three digits: ``9.43 ms``, ``84 µs``."""
    if milliseconds < 0.1:
        return f"{milliseconds * 1000:.3g} µs"
    return f"{milliseconds:.3g} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.3g} s"


def times_in_words(ratio: float) -> str:
    """Return a ratio: ``2.14x``; more digits where it is close to 1."""
    return f"{ratio:.3f}x" if 0.95 < ratio < 1.05 else f"{ratio:.3g}x"


def interval_in_words(ratio: Ratio) -> str:
    """Return ``1.31x (95% interval 1.28x to 1.34x, 15 paired rounds)``."""
    rounds = f"{ratio.rounds} paired round{'' if ratio.rounds == 1 else 's'}"
    if ratio.low is None or ratio.high is None:
        return f"{times_in_words(ratio.median)} ({rounds}, too few for an interval)"
    name = "lowest to highest" if ratio.rounds <= LEAST_ROUNDS else f"{CONFIDENCE:.0%} interval"
    return (
        f"{times_in_words(ratio.median)} ({name} {times_in_words(ratio.low)} to {times_in_words(ratio.high)}, {rounds})"
    )


def speed_in_words(ratio: Ratio) -> str:
    """Return how fast something is against the original, with the interval."""
    if ratio.faster:
        return f"faster than the original, {interval_in_words(ratio)}"
    if ratio.slower:
        return f"slower than the original, {interval_in_words(ratio)}"
    return f"as fast as the original within the noise, {interval_in_words(ratio)}"
