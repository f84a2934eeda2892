from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from modelium import report
from modelium.report import numbers, page, recipe
from schemas.account import JobAccount
from schemas.step_io import StepRequest

EVERY = (
    "deployed", "labels", "unchanged", "failed", "quarantined", "needs_input", "causal_lm", "cancelled", "running",
    "stress",
)  # fmt: skip


def visible_text(html: str) -> str:
    body = html.partition("<body")[2]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


@pytest.mark.parametrize("name", EVERY)
def test_every_state_has_a_page_with_its_name_and_state(accounts: ModuleType, name: str) -> None:
    account = accounts.EVERY[name]()
    html = report.render(account)
    assert html.startswith("<!doctype html>")
    text = visible_text(html)
    assert account.state.value.replace("_", " ").capitalize() in text
    assert numbers.shorten(page.story.name_of(account), 120) in text


@pytest.mark.parametrize("name", ["failed", "quarantined", "needs_input", "causal_lm", "cancelled"])
def test_the_reason_and_what_to_do_stand_at_the_top_of_a_job_that_did_not_end_well(
    accounts: ModuleType, name: str
) -> None:
    account: JobAccount = accounts.EVERY[name]()
    header = report.render(account).partition("</header>")[0]
    html = header.replace("&#39;", "'").replace("&amp;", "&")
    assert account.reason and account.reason in html
    assert not account.hint or account.hint in html


def test_the_top_of_a_deployed_page_says_how_much_faster_smaller_and_how_equal(accounts: ModuleType) -> None:
    top = visible_text(report.render(accounts.minilm()).partition("</header>")[0])
    assert "2.84×" in top
    assert "14.3 ms → 5.04 ms" in top
    assert "91.6 MB → 90.4 MB" in top
    assert "3.1e-6 largest difference" in top


def test_accuracy_before_and_after_is_shown_where_samples_have_labels(accounts: ModuleType) -> None:
    assert "97.2% 97.2% before" in visible_text(report.render(accounts.sklearn_labels()))


def test_a_quarantined_page_says_that_nothing_was_run_only_when_nothing_was(accounts: ModuleType) -> None:
    account: JobAccount = accounts.quarantined()
    assert "Was it run?" in report.render(account)
    later = account.model_copy(update={"steps": (*account.steps, accounts.run("probe", 1.0))})
    assert "Was it run?" not in report.render(later)


def test_every_candidate_stands_in_the_table_even_when_the_charts_leave_some_out(accounts: ModuleType) -> None:
    account: JobAccount = accounts.stress()
    html = report.render(account)
    assert all(f">{candidate.id}</th>" in html for candidate in account.candidates)
    assert "more stand in the table." in html
    assert len(html) < 700_000


def test_each_step_is_reproduced_by_a_step_file_that_the_child_reads(accounts: ModuleType) -> None:
    account: JobAccount = accounts.minilm()
    recipes = recipe.write_down(account)
    assert [r.run.kind for r in recipes] == [step.kind for step in account.steps]
    for r in recipes:
        text = r.commands.partition("<<'END'\n")[2].partition("\nEND\n")[0]
        request = StepRequest.model_validate_json(text)
        assert request.kind == r.run.kind
        assert request.options == r.run.options
        assert request.descriptor is None if r.run.kind == "analyze" else request.descriptor == account.descriptor
        assert "python -P -m executor.child" in r.commands


def test_a_huge_descriptor_is_taken_from_the_json_beside_the_page(accounts: ModuleType) -> None:
    account: JobAccount = accounts.stress()
    measured = recipe.write_down(account)[-1]
    assert measured.shortened
    assert "input.descriptor" in measured.commands
    assert len(measured.commands) < 4000


def test_the_isolation_that_was_enforced_is_named_wall_by_wall(accounts: ModuleType) -> None:
    account: JobAccount = accounts.minilm()
    open_network = accounts.ISOLATION.model_copy(update={"no_network": False, "seccomp": False})
    steps = (account.steps[0].model_copy(update={"isolation": open_network}), *account.steps[1:])
    text = visible_text(report.render(account.model_copy(update={"steps": steps})))
    assert "network open" in text
    assert "not system call filter" in text
    assert "no network" in text


def test_the_page_is_allowed_its_own_style_and_nothing_else(accounts: ModuleType) -> None:
    html = report.render(accounts.minilm())
    styles = re.findall(r"<style>(.*?)</style>", html, flags=re.DOTALL)
    assert len(styles) == 1
    digest = base64.b64encode(hashlib.sha256(styles[0].encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)
    assert policy is not None
    said = policy.group(1).replace("&#39;", "'")
    assert said == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    # The policy binds what follows it, so it comes before the style and the title.
    assert html.index("Content-Security-Policy") < html.index("<title>") < html.index("<style>")


def test_a_page_is_the_same_for_the_same_account(accounts: ModuleType) -> None:
    assert report.render(accounts.minilm()) == report.render(accounts.minilm())


def test_the_page_and_its_data_are_written_beside_each_other(accounts: ModuleType, tmp_path: Path) -> None:
    account: JobAccount = accounts.minilm()
    written = report.write(account, tmp_path / "a" / "b")
    assert written == tmp_path / "a" / "b" / "index.html"
    assert written.read_text(encoding="utf-8") == report.render(account)
    data = json.loads((written.parent / "report.json").read_text(encoding="utf-8"))
    assert JobAccount.model_validate(data) == account
    assert sorted(p.name for p in written.parent.iterdir()) == ["index.html", "report.json"]


def test_a_report_is_readable_as_the_umask_says(accounts: ModuleType, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        written = report.write(accounts.truncated(), tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(written.stat().st_mode) == 0o640


def test_a_page_that_cannot_be_written_leaves_the_old_one_whole(
    accounts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = report.write(accounts.truncated(), tmp_path)
    before = written.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        report.write(accounts.minilm(), tmp_path)
    assert written.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index.html", "report.json"]


@pytest.mark.browser
def test_a_browser_shows_the_page_as_it_was_written(accounts: ModuleType, dump_dom: Callable[[str], str]) -> None:
    dom = dump_dom(report.render(accounts.minilm()))
    assert "<title>all-minilm-l6-v2 · deployed · Modelium</title>" in dom
    # Nothing was cut off or moved out of its section by unbalanced markup.
    assert dom.count("<section") == dom.count("</section>") == report.render(accounts.minilm()).count("<section")


def test_a_factor_that_the_medians_contradict_is_called_unsteady(accounts: ModuleType) -> None:
    account: JobAccount = accounts.minilm()
    assert "not steady" not in report.render(account)
    assert account.verdict is not None
    wild = tuple(v.model_copy(update={"speedup": v.speedup and v.speedup * 400}) for v in account.verdict.contenders)
    verdict = account.verdict.model_copy(update={"contenders": wild})
    text = visible_text(report.render(account.model_copy(update={"verdict": verdict})))
    assert "The machine was not steady." in text
    assert "the medians of all runs say 2.84" in text
