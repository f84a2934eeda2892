"""``make attacks``: every attack in a real sandbox of every backend; writes the table into ``docs/security.md``.

usage: attacks.py [PYTEST ARGUMENTS]      exits with pytest's status; without arguments the page is written

A row is a test, whose name is the claim; a cell says whether it held in that backend, this time, on this machine.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

CHECKOUT = Path(__file__).parent.parent
PAGE = CHECKOUT / "docs/security.md"
BEGIN, END = "<!-- attacks: begin -->", "<!-- attacks: end -->"
FOLDER = "tests/unit/executor"
BACKENDS = {"bubblewrap": "bubblewrap", "warm": "bubblewrap, warm", "docker": "docker", "docker_warm": "docker, warm"}
"""Parameters of the fixture ``sandbox``, and the columns that they head."""
FIRST = next(iter(BACKENDS))
_ATTACKS = re.compile(r"attacks|owner|warm|docker_sandbox")


def main() -> int:
    """Run the attacks, print the table, and write it unless only some were asked for."""
    arguments = sys.argv[1:]
    files = [str(path) for path in sorted((CHECKOUT / FOLDER).glob("test_*.py")) if _ATTACKS.search(path.stem)]
    with tempfile.TemporaryDirectory(prefix="attacks-") as folder:
        report = Path(folder) / "report.xml"
        command = [Path(sys.executable).parent / "pytest", "-q", f"--junitxml={report}", *files, *arguments]
        status = subprocess.run(command, cwd=CHECKOUT, check=False).returncode
        if not report.exists():
            return status
        table = _table(ElementTree.parse(report))
    print("\n".join(table))
    if not arguments:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text("\n".join([f"{before}{BEGIN}", *table, f"{END}{after}"]))
    return status


def _table(report: ElementTree.ElementTree[ElementTree.Element]) -> list[str]:
    verdicts: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for case in report.iter("testcase"):
        name, _, parameters = case.get("name", "").removesuffix("]").partition("[")
        known = [part for part in parameters.split("-") if part in BACKENDS]
        # The longest name: "docker_warm" holds two others.
        own = max((backend for backend in BACKENDS if backend in case.get("classname", "")), key=len, default=FIRST)
        backend = known[0] if known else own
        verdicts[name][backend].append(_verdict(case))
    columns = [backend for backend in BACKENDS if any(backend in found for found in verdicts.values())]
    lines = [
        f"Made by `make attacks`, {date.today()}; each row is a test of that name in `{FOLDER}`.",
        "",
        f"| what is tried, and must hold | {' | '.join(BACKENDS[column] for column in columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for name, found in verdicts.items():
        claim = name.removeprefix("test_").replace("_", " ")
        lines.append(f"| {claim} | {' | '.join(_cell(found[column]) for column in columns)} |")
    return lines


def _verdict(case: ElementTree.Element) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return "FAILED"
    return "not run" if case.find("skipped") is not None else "held"


def _cell(verdicts: list[str]) -> str:
    if not verdicts:
        return "–"
    worst = next(verdict for verdict in ("FAILED", "not run", "held") if verdict in verdicts)
    return worst if len(verdicts) == 1 or worst != "held" else f"held ({len(verdicts)} ways)"


if __name__ == "__main__":
    sys.exit(main())
