"""``make run``: start the pipeline, drop the example models in, show them deployed.

usage: demo.py [NAME ...]      only those examples
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import catalog  # noqa: E402

MODELIUM = Path(sys.executable).parent / "modelium"
START_S = 60


def main() -> int:
    """Run the demonstration; the exit status is 0 when every job ended as it should."""
    names = sys.argv[1:]
    home = Path(os.environ.get("MODELIUM_HOME") or Path.home() / ".modelium")
    made = HERE.parent / ".cache" / "examples"
    print(f"Starting the pipeline on {home}")
    home.mkdir(parents=True, exist_ok=True)
    with (home / "up.log").open("ab") as log:
        up = subprocess.Popen([MODELIUM, "--home", home, "up", "--json"], stdout=log, stderr=log)
    try:
        _wait_until_up(up, home)
        print("Making the example models (seconds, nothing is downloaded)")
        only = [part for name in names for part in ("--only", name)]
        subprocess.run([sys.executable, "-P", HERE / "make.py", made, *only], check=True)
        placed = catalog.copy(made, home / "incoming", names)
        print(f"Dropped {len(placed)} models into {home / 'incoming'}\n")
        return subprocess.run(
            [MODELIUM, "--home", home, "jobs", "--follow", "--expect", str(len(placed))], check=False
        ).returncode
    except KeyboardInterrupt:
        return 130
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(timeout=60)
        print(f"\nThe pipeline has stopped. To go on: {_shown(MODELIUM)} --home {_shown(home)} up")


def _wait_until_up(up: subprocess.Popen[bytes], home: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if up.poll() is not None:
            print((home / "up.log").read_text().strip().splitlines()[-1], file=sys.stderr)
            raise SystemExit(up.returncode or 1)
        status = subprocess.run([MODELIUM, "--home", home, "status", "--json"], capture_output=True, check=False)
        if b'"up": true' in status.stdout:
            return
        time.sleep(0.2)
    raise SystemExit(f"The pipeline did not start within {START_S} s; {home / 'up.log'} says why.")


def _shown(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


if __name__ == "__main__":
    sys.exit(main())
