from __future__ import annotations

from pathlib import Path

import pytest

from modelium import settings
from modelium.settings import Settings
from schemas.errors import UsageError

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"


def test_every_setting_is_documented() -> None:
    text = DOCUMENT.read_text()
    for name, field in Settings.model_fields.items():
        assert f"`MODELIUM_{name.upper()}`" in text, name
        assert field.description is not None and field.description in text, name


def test_an_unknown_setting_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="MODELIUM_WORKRES") as caught:
        settings.load({"MODELIUM_WORKRES": "3"})
    assert "MODELIUM_WORKERS" in caught.value.hint


def test_a_bad_value_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELIUM_WORKERS", "many")
    with pytest.raises(UsageError, match="MODELIUM_WORKERS is not valid"):
        settings.load()


def test_a_child_process_reads_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chosen = Settings(
        home=tmp_path, workers=5, allowed_pickle_globals=("a.b", "c.d"), allow_no_isolation=True, log_format="json",
        toolchains={"torch": Path("/opt/x/python")},
    )  # fmt: skip
    for name, value in chosen.environment().items():
        monkeypatch.setenv(name, value)
    assert settings.load() == chosen


def test_the_documented_defaults_are_the_defaults() -> None:
    text = DOCUMENT.read_text()
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=False)
        if isinstance(default, bool | int | float):
            assert f"| `MODELIUM_{name.upper()}` | `{default}` |" in text, name
