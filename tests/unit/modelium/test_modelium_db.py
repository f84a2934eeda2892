from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path

from modelium.db import Database

_NEW_FILES = 60
_OPENERS = 8


def _open(folder: Path, together: Barrier) -> None:
    for number in range(_NEW_FILES):
        together.wait()
        database = Database(f"sqlite:///{folder / f'{number}.db'}")
        for _ in range(5):
            with database.read():
                pass
        with database.write() as connection:
            connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS t (x INTEGER)")
            connection.exec_driver_sql("INSERT INTO t VALUES (1)")


def test_a_new_database_file_may_be_opened_by_many_processes_at_once(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    together = spawn.Barrier(_OPENERS, timeout=60)
    processes = [spawn.Process(target=_open, args=(tmp_path, together)) for _ in range(_OPENERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * _OPENERS
    with Database(f"sqlite:///{tmp_path / '0.db'}").read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM t").scalar() == _OPENERS
