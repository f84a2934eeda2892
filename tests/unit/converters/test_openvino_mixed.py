from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters import openvino_mixed
from converters.openvino_mixed import Search, Trial
from schemas.step_options import OpenvinoInt8Options

NAMES = tuple(f"operator{number}" for number in range(40))


def searched(needed: int, trials: int, budget_s: float = 60) -> tuple[Trial, list[str], list[int]]:
    """Search where a model passes once so many of the costliest are in float; return also how many were tried."""
    tried: list[int] = []
    search = object.__new__(Search)
    options = OpenvinoInt8Options(search_trials=trials, search_budget_s=budget_s)
    search._context = SimpleNamespace(options=options, progress=lambda fraction, message: None)
    search._model = None

    def judged(names: tuple[str, ...]) -> Trial:
        tried.append(len(names))
        return Trial(names, "" if len(names) >= needed else "it misses", 1.0)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Search, "_rank", lambda self, model, names, deadline: list(names))
        patched.setattr(Search, "judged", lambda self, model: judged(model))
        patched.setattr(openvino_mixed, "in_float", lambda model, original, names: tuple(names))
        trial, notes = search.run(Trial((), "it misses", 2.0), NAMES)
    return trial, notes, tried


@given(needed=st.integers(1, 20))
def test_no_more_operators_stay_in_float_than_it_takes(needed: int) -> None:
    trial, notes, tried = searched(needed, 50)
    assert trial.model == NAMES[:needed]
    assert notes[-1].startswith("Stay in float, as they cost the most accuracy: operator0")
    assert len(tried) == len(set(tried)) <= 10


@given(needed=st.integers(1, 20), trials=st.integers(2, 8))
def test_a_search_that_ends_early_gives_a_model_that_passed(needed: int, trials: int) -> None:
    trial, _, tried = searched(needed, trials)
    assert not trial.missed
    assert len(trial.model) >= needed
    assert len(tried) <= trials - 1


@given(needed=st.integers(1, 20))
def test_nothing_more_is_tried_when_the_time_is_spent(needed: int) -> None:
    trial, _, tried = searched(needed, 50, budget_s=1e-9)
    assert tried == [20] and len(trial.model) == 20


def test_out_of_reach_the_first_is_given_and_the_note_says_why() -> None:
    trial, notes, tried = searched(21, 50)
    assert trial.model == () and tried == [20]
    assert notes == [
        "With all of them in int8: it misses",
        "With 20 of 40 in float it misses the tolerance too: it misses",
    ]
