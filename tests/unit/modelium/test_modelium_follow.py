from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

from modelium import follow
from modelium.context import Context


def test_who_follows_looks_as_soon_as_a_job_has_ended(context: Context) -> None:
    """And not before: it is not over, nothing else is written, and the next look would be an hour away."""
    before = follow._last_end(context)

    def pausing() -> threading.Thread:
        thread = threading.Thread(target=follow._pause, args=(context, lambda: False, 3600.0, before), daemon=True)
        thread.start()
        return thread

    paused = pausing()
    time.sleep(0.2)
    assert paused.is_alive()
    context.home.ended.touch()
    paused.join(timeout=20)
    assert not paused.is_alive()
    paused = pausing()  # one that ended between the look and the pause
    paused.join(timeout=20)
    assert not paused.is_alive()


def test_what_stores_a_drop_loads_no_database_library() -> None:
    """That is loaded while the drop is copied."""
    code = "import sys, modelium.submit, ingestion; print('sqlalchemy' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_in_a_new_home_what_steps_start_from_is_made_ready_before_the_database_library_is_loaded(
    tmp_path: Path,
) -> None:
    (tmp_path / "net.onnx").write_bytes(b"x")
    code = f"""
import pathlib, sys
from ingestion.drops import drops
from modelium import submit
from modelium.context import Context
from modelium.settings import Settings
Context.prepare = lambda self, *toolchains: print(*toolchains, "sqlalchemy" in sys.modules)
[arrival] = drops(pathlib.Path({str(tmp_path / "net.onnx")!r}))
submit._expect(Context(Settings(home=pathlib.Path({str(tmp_path / "home")!r}))), arrival)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "onnx False\n"
