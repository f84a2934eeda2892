"""LiveBoard: where jobs are now; bars on a terminal, one plain line a change anywhere else."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from modelium.report import numbers
from schemas.job import ENDS, JobState

STATE_STYLES: dict[JobState, str] = {
    JobState.DEPLOYED: "green",
    JobState.UNCHANGED: "blue",
    JobState.NEEDS_INPUT: "yellow",
    JobState.FAILED: "red",
    JobState.QUARANTINED: "bold red",
    JobState.CANCELLED: "bright_black",
}
BUSY_STYLE = "cyan"
_STATE_WIDTH = max(len(state.value) for state in JobState)
_LEAST_PRINT_S = 10.0
"""On a plain stream a step that goes on says so at most this often."""


@dataclass
class _Line:
    name: str
    state: JobState
    step: str
    fraction: float | None
    message: str
    since: float = field(default_factory=time.monotonic)
    ended_at: float | None = None


class LiveBoard:
    """One line a job. Use it as a context manager; ``update`` may be called from any thread.

    On a terminal a job that has ended is printed for good and leaves the live part. ``quiet`` shows nothing.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._lines: dict[str, _Line] = {}
        self._lock = threading.RLock()
        self._printed_at: dict[str, float] = {}
        self._live: Live | None = None

    def __enter__(self) -> LiveBoard:
        if self._console.is_terminal and not self._console.is_dumb_terminal and not self._quiet:
            self._live = Live(self, console=self._console, refresh_per_second=8, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        live, self._live = self._live, None
        if live is None:
            return
        live.stop()
        # What had not ended stays readable after the live part is gone.
        for line in self._lines.values():
            self._console.print(self._plain(line), soft_wrap=True)
        self._lines.clear()

    def update(
        self,
        job_id: str,
        name: str,
        state: JobState,
        step: str | None = None,
        fraction: float | None = None,
        message: str = "",
    ) -> None:
        """Show where a job is; ``fraction`` in 0..1 is the present step's own, None when it tells none."""
        if self._quiet:
            return
        with self._lock:
            line = self._lines.get(job_id)
            if line is None:
                line = self._lines[job_id] = _Line(name, state, step or "", fraction, message)
                changed = True
            else:
                changed = (line.state, line.step) != (state, step or "")
                line.name, line.state, line.step = name, state, step or ""
                line.fraction, line.message = fraction, message
            if state in ENDS:
                line.ended_at = time.monotonic()
                del self._lines[job_id]
                self._printed_at.pop(job_id, None)
                self._console.print(self._plain(line), soft_wrap=True)
            elif self._live is None:
                now = time.monotonic()
                if changed or now - self._printed_at.get(job_id, now) >= _LEAST_PRINT_S:
                    self._printed_at[job_id] = now
                    self._console.print(self._plain(line), soft_wrap=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self._lock:
            lines = list(self._lines.values())
        room = max(3, (options.height or console.height) - 2)
        # Those at work before those that wait.
        lines.sort(key=lambda line: (line.state is JobState.RECEIVED, line.since))
        width = options.max_width
        name_width = max(12, min(32, width // 4, max((len(line.name) for line in lines), default=12)))
        bar_width = max(8, min(24, width // 8))
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        grid.add_column(width=name_width, no_wrap=True, overflow="ellipsis")
        grid.add_column(width=len(JobState.ANALYZING.value), no_wrap=True)
        grid.add_column(width=bar_width, no_wrap=True)
        grid.add_column(width=6, no_wrap=True, justify="right")
        grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for line in lines[:room]:
            waiting = line.state is JobState.RECEIVED
            said = ", ".join(part for part in (line.step, line.message) if part)
            grid.add_row(
                Text(numbers.visible(line.name, lines=False), style="bold"),
                Text(line.state.value, style="dim" if waiting else BUSY_STYLE),
                Text() if waiting else _bar(line.fraction, bar_width, console),
                Text("" if waiting else _clock(time.monotonic() - line.since), style="dim"),
                Text(numbers.visible(said, lines=False), style="dim" if waiting else ""),
            )
        yield grid
        if len(lines) > room:
            yield Text(f"and {len(lines) - room} more", style="dim")

    def _plain(self, line: _Line) -> Text:
        ended = line.state in ENDS
        style = STATE_STYLES.get(line.state, BUSY_STYLE)
        text = Text.assemble((line.state.value.replace("_", " ").ljust(_STATE_WIDTH + 2), style))
        text.append(numbers.visible(line.name, lines=False), style="bold")
        if line.step and not ended:
            text.append(f"  {numbers.visible(line.step, lines=False)}")
        if line.fraction is not None and not ended and 0 < line.fraction < 1:
            text.append(f"  {line.fraction:.0%}")
        if line.message:
            text.append(f"  {numbers.visible(line.message, lines=False)}", style="" if ended else "dim")
        seconds = (line.ended_at or time.monotonic()) - line.since
        if ended and seconds >= 1:
            text.append(f"  ({numbers.duration(seconds)})", style="dim")
        return text


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _bar(fraction: float | None, width: int, console: Console) -> Text:
    """Return a bar of ``width`` cells; a piece that wanders where the step tells no fraction."""
    unicode = console.encoding.lower().startswith("utf")
    full, empty = ("━", "─") if unicode else ("#", "-")
    if fraction is None:
        size = max(2, width // 5)
        start = int(time.monotonic() * 8) % (width + size) - size
        head, tail = max(0, start), min(width, start + size)
        return Text.assemble((empty * head, "dim"), (full * (tail - head), BUSY_STYLE), (empty * (width - tail), "dim"))
    done = round(min(1.0, max(0.0, fraction)) * width)
    return Text.assemble((full * done, BUSY_STYLE), (empty * (width - done), "dim"))
