from __future__ import annotations

import io
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from modelium.cli import display
from modelium.report import numbers
from schemas.account import JobAccount

STATES = (
    "deployed", "labels", "unchanged", "failed", "quarantined", "needs_input", "causal_lm", "cancelled", "running",
)  # fmt: skip


def drawn(draw: Callable[..., None], *arguments: Any, width: int = 80, terminal: bool = False) -> str:
    out = io.StringIO()
    draw(Console(file=out, width=width, force_terminal=terminal, highlight=False), *arguments)
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", STATES)
def test_the_account_of_every_state_keeps_within_the_width(accounts: ModuleType, name: str, width: int) -> None:
    account: JobAccount = accounts.EVERY[name]()
    text = drawn(display.account, account, width=width)
    # A path or a command stays in one piece, so that it can be copied.
    wide = [line for line in text.splitlines() if len(line.rstrip()) > width and "/srv/" not in line]
    assert wide == []
    assert account.state.value.replace("_", " ") in text
    assert "\x1b" not in text


@pytest.mark.parametrize("name", ["failed", "quarantined", "needs_input", "causal_lm"])
def test_an_account_says_why_and_what_to_do(accounts: ModuleType, name: str) -> None:
    account: JobAccount = accounts.EVERY[name]()
    text = " ".join(drawn(display.account, account).split())
    assert account.reason and " ".join(account.reason.split()) in text
    assert account.hint and " ".join(account.hint.split()) in text


def test_an_account_shows_each_candidate_the_winner_and_why_others_were_not_allowed(accounts: ModuleType) -> None:
    text = drawn(display.account, accounts.minilm())
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith("on") or line.startswith("orig")}
    assert "winner" in rows["onnx-optimized"] and "2.84" in rows["onnx-optimized"]
    assert re.search(r"onnx-int8 +int8 +2\.19 +17\.0 .*23\.0 MB +cosine 0\.9914 +not allowed", text)
    assert "add int8 to target.precisions" in " ".join(text.split())
    assert "tritonserver --model-repository /srv/modelium/model_repository" in text
    assert "/srv/modelium/reports/all-minilm-l6-v2/index.html" in text


def test_a_failed_candidate_is_told_with_its_reason(accounts: ModuleType) -> None:
    account: JobAccount = accounts.running()
    failed = account.candidates[1].model_copy(update={"state": "failed", "reason": "Operator aten::foo is unknown."})
    updated = account.model_copy(update={"candidates": (account.candidates[0], failed)})
    assert "Operator aten::foo is unknown." in drawn(display.account, updated)


@pytest.mark.parametrize("width", [80, 120])
def test_the_summary_has_one_line_a_winner_and_a_place_or_reason_for_every_model(
    accounts: ModuleType, width: int
) -> None:
    told: list[JobAccount] = [accounts.EVERY[name]() for name in STATES]
    text = drawn(display.summary_table, told, width=width)
    assert re.search(r"14\.3 → 5\.04 ms", text)
    assert re.search(r"91\.6 → 90\.4 MB", text)
    assert re.search(r"214 → 311 KB", text)
    assert "/srv/modelium/model_repository/wine-pipeline\n" in text
    flat = " ".join(text.split())
    for account in told:
        if account.deployment is None and account.reason:
            assert " ".join(account.reason.split()) in flat
    assert all(len(line.rstrip()) <= width or "/srv/" in line for line in text.splitlines())


def test_a_summary_without_jobs_says_so() -> None:
    assert drawn(display.summary_table, []) == "No jobs yet.\n"
    assert drawn(display.jobs_table, []) == "No jobs yet.\n"
    assert drawn(display.deployments_table, []) == "Nothing is deployed yet.\n"


def test_the_jobs_table_is_one_line_a_job(accounts: ModuleType) -> None:
    jobs = [accounts.EVERY[name]().job for name in STATES]
    text = drawn(display.jobs_table, jobs)
    assert len(text.splitlines()) == 1 + len(jobs)
    assert all(job.id[:12] in text for job in jobs)


def test_the_deployments_table_names_version_health_and_folder(accounts: ModuleType) -> None:
    text = drawn(display.deployments_table, [accounts.minilm().deployment.deployment])
    assert re.search(r"all-minilm-l6-v2 +3 +active +onnx-optimized +ready +8", text)
    assert "/srv/modelium/model_repository/all-minilm-l6-v2" in text


def test_the_doctor_says_how_to_mend_what_is_not_well() -> None:
    checks = [
        {"name": "python", "level": "ok", "found": "3.11.2", "mend": "not needed"},
        {"name": "isolation", "level": "fail", "found": "no bubblewrap", "mend": "apt-get install bubblewrap"},
    ]
    text = drawn(display.doctor_table, checks)
    assert "apt-get install bubblewrap" in text
    assert "not needed" not in text


def test_a_plan_shows_each_candidate_step_and_fallback_with_its_reason(accounts: ModuleType) -> None:
    text = " ".join(drawn(display.plan, accounts.minilm()).split())
    assert "onnx-int8 int8 A quarter of the size" in text
    assert "else huggingface_onnx exporter=dynamo, opset=20" in text
    assert "8-bit weights halve the time of matrix products." in text
    assert "onnx-int8 cannot win" in text


def test_a_plan_that_was_refused_says_why(accounts: ModuleType) -> None:
    text = drawn(display.plan, accounts.quarantined())
    assert "os.system" in text
    assert "Delete it" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_from_a_model_drives_the_terminal(accounts: ModuleType, attacks: ModuleType, terminal: bool) -> None:
    attack = "[link=https://attacker.example][blink]:skull:[/][/link]\x1b]8;;x\x07\x1b[2J\x9b31m\u202egnp\r"
    account: JobAccount = attacks.hostile(accounts.minilm(), (attack, *attacks.ATTACKS))
    text = "".join(
        (
            drawn(display.account, account, terminal=terminal),
            drawn(display.plan, account, terminal=terminal),
            drawn(display.summary_table, [account], terminal=terminal),
            drawn(display.jobs_table, [account.job], terminal=terminal),
            drawn(display.deployments_table, [account.deployment and account.deployment.deployment], terminal=terminal),
        )
    )
    # What is left of escapes once our own colours are taken away: none.
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert numbers.visible(text) == text
    assert "[blink]:skull:" in text


def test_an_ascii_terminal_gets_ascii_arrows(accounts: ModuleType) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    display.summary_table(Console(file=out, width=100, highlight=False), [accounts.truncated(), accounts.running()])
    out.flush()
    arrow = display._arrow(Console(file=out))
    assert arrow == "->"
