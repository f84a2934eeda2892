from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelium.report import numbers
from modelium.report.charts import noise_interval


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.0213, "0.0213 ms"), (5.0412, "5.04 ms"), (14.318, "14.3 ms"), (999.6, "1,000 ms"), (9.996, "10.0 ms"),
        (0.09996, "0.100 ms"), (12_345, "12.3 s"), (0, "0 ms"), (None, numbers.NOTHING), (math.nan, numbers.NOTHING),
    ],
)  # fmt: skip
def test_latency_has_three_significant_digits(value: float | None, written: str) -> None:
    assert numbers.ms(value) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [(0, "0 B"), (312, "312 B"), (999, "999 B"), (1000, "1.00 KB"), (214_332, "214 KB"), (999_999, "1.00 MB"),
     (90_868_376, "90.9 MB"), (10**13, "10.0 TB"), (None, numbers.NOTHING)],
)  # fmt: skip
def test_sizes_are_decimal(value: int | None, written: str) -> None:
    assert numbers.size(value) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [(1.0, "100%"), (0.0, "0%"), (0.9722, "97.2%"), (0.9996, "99.96%"), (0.99999, "99.999%"), (0.0001, "0.01%")],
)
def test_a_share_never_rounds_to_all_or_nothing(value: float, written: str) -> None:
    assert numbers.percent(value) == written


@given(st.floats(min_value=0, max_value=1))
def test_only_all_is_written_as_all(value: float) -> None:
    assert (numbers.percent(value) == "100%") == (value == 1)
    assert (numbers.percent(value) == "0%") == (value == 0)


@pytest.mark.parametrize(
    ("value", "written"), [(1.0, "1.0000000"), (0.9999999991, "1.0000000"), (0.99137, "0.9914"), (0.99998, "0.999980")]
)
def test_a_cosine_has_the_digits_that_tell_it_from_one(value: float, written: str) -> None:
    assert numbers.cosine(value) == written


def test_differences_changes_counts_and_times_read_well() -> None:
    assert [numbers.difference(v) for v in (0, 2.4e-6, 0.0812)] == ["0", "2.4e-6", "0.081"]
    assert numbers.change(100, 26) == "\N{MINUS SIGN}74%"
    assert numbers.change(100, 145) == "+45%"
    assert numbers.change(10, 2132) == "213\N{MULTIPLICATION SIGN}"
    assert [numbers.count(v) for v in (0, 9_999, 22_713_216, 693_633_024_000)] == ["0", "9,999", "22.7 M", "694 G"]
    assert [numbers.duration(v) for v in (0.42, 12.34, 192, 3840)] == ["0.42 s", "12.3 s", "3 min 12 s", "1 h 4 min"]
    assert numbers.times(0.8234) == "0.823\N{MULTIPLICATION SIGN}"


def test_moments_are_told_in_utc() -> None:
    moment = datetime(2026, 3, 14, 9, 26, 53, tzinfo=timezone(timedelta(hours=2)))
    assert numbers.when(moment) == "2026-03-14 07:26:53 UTC"
    assert numbers.when(moment.replace(tzinfo=None)) == "2026-03-14 09:26:53 UTC"
    assert numbers.when(moment.astimezone(UTC)) == numbers.when(moment)


@given(st.text(max_size=80), st.integers(min_value=4, max_value=40))
def test_a_shortened_text_fits_and_keeps_both_its_ends(text: str, limit: int) -> None:
    short = numbers.shorten(text, limit)
    assert len(short) <= max(limit, 0) or short == text
    if len(text) > limit:
        assert short.startswith(text[0]) and short.endswith(text[-1])


@given(st.text(max_size=80))
def test_what_is_visible_is_visible(text: str) -> None:
    shown = numbers.visible(text, lines=False)
    assert shown == numbers.visible(shown, lines=False)
    assert not any(c in shown for c in "\x1b\r\n\x07\u202e\u2066\x9b")


@given(st.lists(st.floats(min_value=0.01, max_value=1e3), min_size=6, max_size=200))
def test_the_noise_interval_holds_the_median(rounds: list[float]) -> None:
    found = noise_interval(rounds)
    assert found is not None
    ordered = sorted(rounds)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    assert found[0] <= middle <= found[1]


def test_the_noise_interval_has_the_ranks_of_the_sign_test() -> None:
    # n = 15: ranks 4 and 12, the widest tail with 2 P(Binomial(15, 1/2) < 4) = 3.5% (Conover, table A3).
    assert noise_interval(range(1, 16)) == (4, 12)
    assert noise_interval(range(1, 7)) == (1, 6)
    assert noise_interval(range(1, 6)) is None
