from __future__ import annotations

import subprocess
import sys
import threading
import time

from modelium import follow
from modelium.context import Context


def test_who_follows_looks_as_soon_as_a_job_has_ended(context: Context) -> None:
    """And not before: the driver lives on, nothing else is written, and the next look would be an hour away."""
    stop = threading.Event()
    driver = threading.Thread(target=stop.wait, daemon=True)
    driver.start()
    before = follow._last_end(context)
    paused = threading.Thread(target=follow._pause, args=(context, driver, 3600.0, before), daemon=True)
    paused.start()
    time.sleep(0.2)
    assert paused.is_alive()
    context.home.ended.touch()
    paused.join(timeout=20)
    assert not paused.is_alive()
    paused = threading.Thread(target=follow._pause, args=(context, driver, 3600.0, before), daemon=True)
    paused.start()  # one that ended between the look and the pause
    paused.join(timeout=20)
    assert not paused.is_alive()
    stop.set()


def test_what_stores_a_drop_loads_no_database_library() -> None:
    """That is loaded while the drop is copied."""
    code = "import sys, modelium.submit, ingestion; print('sqlalchemy' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
