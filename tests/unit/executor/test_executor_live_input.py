"""What the host writes into an input is seen by the step that is running, and cannot be written by it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from executor.sandbox import Observers
from modelium import machine_lease
from modelium.handover import Handover
from schemas.step_io import LEASE_FILE, LEASE_INPUT

_WAITS = f"""
import pathlib, sys, time
path = pathlib.Path("/step/in/{LEASE_INPUT}/{LEASE_FILE}")
print("empty" if not path.read_bytes() else "full", flush=True)
while not path.read_bytes():
    time.sleep(0.004)
print("mine", flush=True)
for mode in ("wb", "ab"):
    try:
        path.open(mode)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""


def test_a_running_step_sees_that_the_machine_is_its_own_and_cannot_say_so_itself(
    box: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(machine_lease, "runtime_root", lambda: tmp_path)
    with (
        machine_lease.hold(exclusive=False) as lease,
        Handover(lease, tmp_path / "workspaces", lambda: False) as handover,
    ):
        path = handover.folder / LEASE_FILE
        timer = threading.Timer(0.2, lambda: path.write_bytes(b"1"))
        heard = Observers(on_log=lambda text: None if timer.ident else timer.start())
        ending = box(_WAITS, heard, inputs={LEASE_INPUT: handover.folder})
        timer.join()
    assert ending.exit_code == 0, ending.log
    assert ending.log.split()[:2] == ["empty", "mine"]
    assert len(ending.log.split()) == 4 and "Error" in ending.log, ending.log
