"""The report: one self-contained HTML page a job, and the same account as JSON beside it.

Nothing in a page is loaded from elsewhere and nothing in it runs: no scripts, no external styles, fonts or images. The
page's own content policy says so, and every text that came out of a model file is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from modelium.home import runtime_root
from modelium.report.numbers import visible

if TYPE_CHECKING:
    from jinja2 import Template

    from schemas.account import JobAccount

PAGE_FILE = "index.html"
DATA_FILE = "report.json"


def render(account: JobAccount) -> str:
    """Return the page of ``account``: complete for an ended job, what is known so far for a running one."""
    from modelium.report import page

    css = _css()
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    return _template().render(page.context(account), css=css, policy=policy)


def write(account: JobAccount, folder: Path) -> Path:
    """Write ``folder``/index.html and ``folder``/report.json, each replaced in one step; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / DATA_FILE, account.model_dump_json(indent=2) + "\n")
    _replace(folder / PAGE_FILE, render(account))
    return folder / PAGE_FILE


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    # 0o666 less the umask: who may read a report is the owner's choice, as for any other file.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@cache
def _css() -> str:
    # Kept without a closing angle bracket, so that the text inside <style> is the text that is hashed.
    return (Path(__file__).parent / "templates" / "report.css").read_text(encoding="utf-8").replace("\r\n", "\n")


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemBytecodeCache, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: object) -> object:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
        # Compiling takes longer than drawing a page. What is compiled depends on what is said here, too.
        bytecode_cache=FileSystemBytecodeCache(
            str(runtime_root()), f"report-{hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]}-%s"
        ),
    )
    return environment.get_template("report.html.j2")
