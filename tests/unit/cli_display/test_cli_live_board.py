from __future__ import annotations

import io
import re
import threading

from rich.console import Console

from modelium.cli.live_board import LiveBoard
from schemas.job import JobState


def plain() -> tuple[io.StringIO, Console]:
    out = io.StringIO()
    return out, Console(file=out, width=80, highlight=False)


def test_without_a_terminal_every_change_is_one_line() -> None:
    out, console = plain()
    with LiveBoard(console) as board:
        board.update("a", "digits", JobState.RECEIVED)
        board.update("a", "digits", JobState.ANALYZING, "probe", 0.1, "trying shapes")
        board.update("a", "digits", JobState.ANALYZING, "probe", 0.4, "trying shapes")
        board.update("a", "digits", JobState.ANALYZING, "reference", None, "")
        board.update("b", "resnet", JobState.RECEIVED)
        board.update("a", "digits", JobState.FAILED, None, None, "It is broken.")
    lines = [re.sub(r" +", " ", line).strip() for line in out.getvalue().splitlines()]
    assert lines == [
        "received digits",
        "analyzing digits probe 10% trying shapes",
        "analyzing digits reference",
        "received resnet",
        "failed digits It is broken.",
    ]


def test_a_quiet_board_shows_nothing() -> None:
    out, console = plain()
    with LiveBoard(console, quiet=True) as board:
        board.update("a", "digits", JobState.ANALYZING, "probe", 0.1, "trying shapes")
    assert out.getvalue() == ""


def test_on_a_terminal_an_ended_job_stays_and_the_rest_is_live() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, height=12, force_terminal=True, highlight=False)
    with LiveBoard(console) as board:
        for i in range(30):
            board.update(f"j{i}", f"model-{i}", JobState.EXECUTING, "onnx_optimize", i / 30, "fusing")
        board.update("j3", "model-3", JobState.DEPLOYED, None, None, "2.84 times as fast")
        assert board._live is not None
        board._live.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "deployed" in text and "2.84 times as fast" in text
    assert re.search(r"and \d+ more", text)


def test_a_name_from_a_model_is_shown_and_never_obeyed() -> None:
    out, console = plain()
    with LiveBoard(console) as board:
        board.update("a", "[bold]x\x1b[2J\nfake line", JobState.FAILED, None, None, "\x1b]0;owned\x07\u202e")
    text = out.getvalue()
    assert len(text.splitlines()) == 1
    assert "[bold]x\\x1b[2J\\x0afake line" in text
    assert "\x1b" not in text and "\u202e" not in text


def test_updates_may_come_from_many_threads() -> None:
    out, console = plain()
    with LiveBoard(console) as board:

        def work(number: int) -> None:
            for step in range(20):
                board.update(f"j{number}", f"m{number}", JobState.EXECUTING, f"step{step}")
            board.update(f"j{number}", f"m{number}", JobState.UNCHANGED)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = out.getvalue().splitlines()
    assert len(lines) == 8 * 21
    assert all(line.split()[0] in ("executing", "unchanged") for line in lines)
