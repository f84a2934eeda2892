"""Which reason a person is told, and that the setting it offers really takes the doubt away."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from analyzer import describe
from analyzer.verdict import decide
from schemas.descriptor import SecurityFinding, Severity
from schemas.errors import NeedsInput, Quarantined
from schemas.sidecar import ModuleSource, Sidecar

CODE = """import torch


class Net(torch.nn.Module):
    def forward(self, x):
        open('/tmp/x')
        return x
"""


def finding(code: str, severity: Severity = Severity.UNKNOWN, subject: str = "a.b") -> SecurityFinding:
    return SecurityFinding(code=code, severity=severity, message=f"This is {code}.", subject=subject)


def weights_with_code(tmp_path: Path, source: str = CODE) -> tuple[Path, Path, Sidecar]:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "net.py").write_text(source)
    head = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "net.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(8))
    return (
        tmp_path / "net.safetensors",
        tmp_path / "code",
        Sidecar(module=ModuleSource(file="net.py", class_name="Net")),
    )


def test_the_setting_that_a_question_about_code_offers_lifts_it(tmp_path: Path) -> None:
    path, code, sidecar = weights_with_code(tmp_path)
    asked = describe(path, sidecar=sidecar, code=code).refusal
    assert asked is not None and asked.code == "needs_input"
    assert asked.message == (
        "May this model's code use builtins.open (net.py line 6)? It is among what reaches files or objects."
    )
    name = asked.hint.partition("GLOBALS=")[2].partition(")")[0]
    lifted = describe(path, sidecar=sidecar, code=code, allowed_globals=(name,))
    assert lifted.refusal is None


@pytest.mark.parametrize("code", ["zip-checksum", "hf-auto-map", "pickle-broken"])
def test_no_setting_is_offered_where_none_helps(code: str) -> None:
    asked = decide(None, (finding("pickle-global"), finding(code)))
    assert isinstance(asked, NeedsInput)
    assert code in str(asked.args[0]) and "ALLOWED_PICKLE_GLOBALS" not in asked.hint


@pytest.mark.parametrize(
    ("count", "said"), [(1, ""), (2, "1 more danger was found."), (3, "2 more dangers were found.")]
)
def test_further_dangers_are_counted(count: int, said: str) -> None:
    found = tuple(finding("pickle-global", Severity.DANGER, str(n)) for n in range(count))
    refusal = decide(None, found)
    assert isinstance(refusal, Quarantined)
    assert str(refusal.args[0]).endswith(said or "This is pickle-global.")


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [False, True])
def test_a_whole_module_of_ones_own_class_is_a_question_and_unsupported_in_torchs_old_format(
    tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())

    own = types.ModuleType("own_net")
    own.Net = Net  # type: ignore[attr-defined]
    Net.__module__, Net.__qualname__ = "own_net", "Net"
    monkeypatch.setitem(sys.modules, "own_net", own)
    with pytest.warns(UserWarning) if not zipped else monkeypatch.context():
        torch.save(Net(), tmp_path / "net.pt", _use_new_zipfile_serialization=zipped)
    refusal = describe(tmp_path / "net.pt").refusal
    assert refusal is not None and refusal.code == ("needs_input" if zipped else "unsupported")
    assert "own_net.Net" in refusal.message
    if zipped:
        assert "MODELIUM_ALLOWED_PICKLE_GLOBALS=own_net.Net" in refusal.hint and "class_name: Net" in refusal.hint
        allowed = describe(tmp_path / "net.pt", allowed_globals=("own_net.Net",))
        assert allowed.refusal is None and "own_net.Net" in allowed.descriptor.pickle_globals
