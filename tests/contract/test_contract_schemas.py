from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from schemas import catalog, published
from schemas.errors import InvalidDocument, ModeliumError, from_document
from schemas.job import ENDS, LEGAL_CHANGES, JobState
from schemas.sidecar import Sidecar


@pytest.mark.parametrize("name", published.PUBLISHED)
def test_a_published_schema_is_in_step_with_its_document(name: str) -> None:
    path = published.FOLDER / f"{name}.schema.json"
    assert json.loads(path.read_text()) == published.json_schema(name), "run `make schemas`"
    Draft202012Validator.check_schema(published.json_schema(name))


def test_no_schema_is_published_that_no_document_has() -> None:
    assert {p.name for p in published.FOLDER.iterdir()} == {f"{n}.schema.json" for n in published.PUBLISHED}


@pytest.mark.parametrize(
    ("data", "pointer"),
    [
        ({"nam": "x"}, "/"),
        ({"name": "Not A Label"}, "/name"),
        ({"inputs": [{"name": "x", "shape": ["batch", 1.5]}]}, "/inputs/0/shape/1"),
        ({"module": {"file": "../../etc/passwd", "class_name": "A"}}, "/module/file"),
        ({"target": {"precisions": ["fp4"]}}, "/target/precisions/0"),
        ([], "/"),
        ("name: x", "/"),
    ],
)
def test_an_invalid_document_names_the_json_pointer(data: object, pointer: str) -> None:
    with pytest.raises(InvalidDocument) as caught:
        published.validate(Sidecar, data, what="The sidecar")
    assert caught.value.facts["pointer"] == pointer
    assert str(caught.value).startswith("The sidecar is not valid")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
)


@given(PLAIN)
def test_whatever_a_sidecar_holds_it_is_valid_or_refused_with_a_sentence(data: object) -> None:
    try:
        published.validate(Sidecar, data, what="The sidecar")
    except InvalidDocument as error:
        assert error.facts["pointer"]


def test_every_state_can_be_left_and_only_by_known_ways() -> None:
    assert set(LEGAL_CHANGES) == set(JobState)
    assert all(LEGAL_CHANGES[state] for state in JobState)
    assert len(ENDS) == 6


def test_every_error_survives_the_journey_as_a_document() -> None:
    def classes(cls: type[ModeliumError]) -> list[type[ModeliumError]]:
        return [cls, *(c for sub in cls.__subclasses__() for c in classes(sub))]

    for cls in (c for c in classes(ModeliumError) if c.__module__ == "schemas.errors"):
        back = from_document(cls("fact.", hint="hint.", limit=3).document())
        assert (type(back), str(back), back.facts) == (cls, "fact. hint.", {"limit": 3})


@pytest.mark.parametrize("kind", catalog.CATALOG)
def test_the_default_options_of_every_step_kind_are_valid(kind: str) -> None:
    required = {"parity": {"precision": "fp32"}}
    assert catalog.parse_options(kind, required.get(kind, {})) is not None


@pytest.mark.parametrize("kind", catalog.CATALOG)
def test_every_step_kind_has_its_function(kind: str) -> None:
    import importlib

    module, _, function = catalog.entry(kind).function.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
