"""ContentScan: go through files, members and nestings by content, and collect what each reader finds."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from analyzer.folder_code import code_findings, json_findings
from analyzer.npy_header import object_array
from analyzer.onnx_locations import locations
from analyzer.pickle_allowlist import Judgement, judge
from analyzer.pickle_scan import (
    LEGACY_TORCH_PICKLES,
    MAX_PICKLES,
    TORCH_MAGIC,
    PickleRules,
    family,
    findings_of,
    place,
    printable,
)
from analyzer.pickle_trace import PickleTrace
from analyzer.scan_stream import UNREADABLE, Budget, ScanStream, Unpacked, packing_of
from analyzer.torchscript_code import MAX_CODE_BYTES, script_findings
from analyzer.traced_values import Blob
from analyzer.zip_layout import Member, open_member, read_layout, unsafe_path
from schemas.descriptor import SecurityFinding, Severity
from schemas.errors import LimitExceeded

MAX_DEPTH = 6
MAX_FINDINGS = 500
MAX_SPOOL_BYTES = 1 << 30
MAX_CHECKED_BYTES = 8 << 30
MAX_JSON_BYTES = 64 << 20
_ORDER = {Severity.DANGER: 0, Severity.UNKNOWN: 1, Severity.INFO: 2}
_NATIVE = ((b"\x7fELF", "an ELF"), (b"MZ\x90\x00", "a Windows"), (b"\xcf\xfa\xed\xfe", "a macOS"),
           (b"\xca\xfe\xba\xbe", "a macOS or Java"))  # fmt: skip
_PICKLE_SUFFIXES = (".pkl", ".pickle", ".joblib", ".p")
_STARTS = b"(]}ciINSVXKJMLFGUTBCP)\x80\x82\x83\x84\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x95\x96"
"""Opcodes that a pickle may start with: all that need nothing on the stack. Unpicklers ask for no header."""


class ContentScan:
    """One scan under one budget. Call ``file`` or ``folder``, then ``result``."""

    def __init__(self, allowed_globals: frozenset[str] = frozenset(), budget: Budget | None = None) -> None:
        self._allowed = allowed_globals
        self._budget = budget or Budget()
        self._found: dict[tuple[str, Severity, str, str], SecurityFinding] = {}
        self._checked_bytes = 0

    def result(self) -> tuple[SecurityFinding, ...]:
        """Return the findings, the worst first; the least are left out beyond MAX_FINDINGS."""
        ordered = sorted(self._found.values(), key=lambda f: _ORDER[f.severity])
        return tuple(ordered[:MAX_FINDINGS])

    def note(self, code: str, severity: Severity, message: str, where: str = "", subject: str = "") -> None:
        """Add one finding, its texts made printable and cut to the schema's sizes."""
        self._add(
            SecurityFinding(
                code=code,
                severity=severity,
                message=printable(message)[:1000],
                where=printable(where)[:500],
                subject=printable(subject)[:300],
            )
        )

    def limit(self, error: LimitExceeded, where: str = "") -> None:
        """Note that a budget is spent: what was not read can't be clean, and a bomb is meant to harm."""
        bomb = bool(error.facts.get("bomb"))
        self.note("scan-limit", Severity.DANGER if bomb else Severity.UNKNOWN, str(error.args[0]), where)

    def _add(self, *findings: SecurityFinding) -> None:
        for finding in findings:
            # One name is asked for in many places; the first is enough.
            at = finding.where if not finding.subject else ""
            key = (finding.code, finding.severity, finding.subject, at)
            if len(self._found) < 20 * MAX_FINDINGS or finding.severity is Severity.DANGER:
                self._found.setdefault(key, finding)

    # Files and folders

    def file(self, path: Path, where: str = "", root: Path | None = None) -> None:
        """Scan one file; ``root`` is the folder that its external data may not leave."""
        state = path.lstat()
        if not stat.S_ISREG(state.st_mode):
            kind = "a link" if stat.S_ISLNK(state.st_mode) else "no plain file"
            self.note("special-file", Severity.DANGER, f"This is {kind}.", where or path.name, where or path.name)
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as handle:
            self.content(handle, state.st_size, where, name=path.name, depth=0)
        if state.st_size:
            self._external_data(path, where, root)

    def folder(self, folder: Path, user_files: frozenset[str] = frozenset()) -> None:
        """Scan every file below ``folder``; ``user_files`` are those that a sidecar names, judged as its code."""
        for base, names, files in os.walk(folder, followlinks=False):
            names.sort()
            for name in [*names, *sorted(files)]:
                path = Path(base) / name
                where = path.relative_to(folder).as_posix()
                if name in names and not path.is_symlink():
                    continue
                self._budget.spend_member()
                reason = unsafe_path(where)
                if reason is not None:
                    self.note("archive-path", Severity.DANGER, f"A path of this folder {reason}.", where, where)
                self.file(path, where, folder)
                if path.is_file() and not path.is_symlink():
                    self._folder_member(path, where, user_files)

    def code_folder(self, folder: Path) -> None:
        """Scan the companions of a sidecar: Python is judged as the user's own code, the rest by content."""
        python = frozenset(p.relative_to(folder).as_posix() for p in folder.rglob("*.py"))
        self.folder(folder, python)

    def _folder_member(self, path: Path, where: str, user_files: frozenset[str]) -> None:
        suffix = path.suffix.lower()
        if suffix in (".py", ".pyw", ".ipynb", ".pth") and (suffix != ".pth" or where in user_files):
            with path.open("rb") as handle:
                source = handle.read((4 << 20) + 1)
            self._add(*code_findings(source, where, own=where in user_files, allowed=self._allowed))
        elif suffix in (".pyc", ".pyo", ".pyd", ".so", ".dll", ".dylib"):
            self.note("binary-code", Severity.UNKNOWN, "This folder carries compiled code.", where, where)
        elif suffix in (".json", ".jinja") and path.stat().st_size <= MAX_JSON_BYTES:
            self._add(*json_findings(path.read_bytes(), where, path.name))

    def _external_data(self, path: Path, where: str, root: Path | None) -> None:
        # A path inside the model's own folder may still pass through a link.
        for location in locations(path) or ():
            reason = unsafe_path(location) or ("is empty" if not location else None)
            if reason is not None or "://" in location:
                message = f"This ONNX file keeps weights at a path that {reason or 'is an address'}: {location}."
                self.note("onnx-external-path", Severity.DANGER, message, where, location)
                continue
            step = path.parent
            for part in location.split("/"):
                step = step / part
                if step.is_symlink():
                    message = f"This ONNX file keeps weights behind a link: {location}."
                    self.note("onnx-external-path", Severity.DANGER, message, where, location)
                    break

    # Content

    def content(
        self, handle: Any, size_bytes: int, where: str, *, name: str, depth: int, rules: PickleRules | None = None
    ) -> None:
        """Scan what stands in a seekable ``handle``, whatever it is called."""
        try:
            self._content(handle, size_bytes, where, name, depth, rules or PickleRules(self._allowed))
        except LimitExceeded as error:
            self.limit(error, where)

    def _content(self, handle: Any, size: int, where: str, name: str, depth: int, rules: PickleRules) -> None:
        if depth > MAX_DEPTH:
            self.note("scan-limit", Severity.UNKNOWN, "This is nested deeper than the scan goes.", where)
            return
        if not size:
            return
        if self._zip(handle, size, where, depth):
            return
        handle.seek(0)
        head: bytes = handle.read(1024) or b""
        handle.seek(0)
        packing = packing_of(head)
        if packing is not None:
            unpacked = Unpacked(lambda number: handle.read(number) or b"", packing, self._budget)
            certain = depth == 0 or name.endswith(_PICKLE_SUFFIXES)
            self._packed(unpacked, where, name, depth, rules, certain)
            if packing != "zlib":
                return
            # The two bytes of zlib may be chance: read it as what else it may be, too.
            handle.seek(0)
        if _is_tar(head):
            self._tar(handle, where, depth, rules)
            return
        self._flat(ScanStream(handle, size), head, where, name, depth, rules)

    def _flat(self, stream: ScanStream, head: bytes, where: str, name: str, depth: int, rules: PickleRules) -> None:
        """Scan what is neither archive nor packed; ``stream`` stands at its start."""
        for magic, what in UNREADABLE:
            if head.startswith(magic):
                message = f"This is {what} data, which cannot be looked into."
                self.note("archive-unreadable", Severity.UNKNOWN, message, where)
                return
        for magic, what in _NATIVE:
            if head.startswith(magic):
                self.note("binary-code", Severity.UNKNOWN, f"This is {what} program or library.", where, where)
                return
        if head.startswith(b"\x93NUMPY"):
            self._npy(stream, where, depth, rules)
            return
        if head.startswith(b"\x89HDF\r\n\x1a\n"):
            self._hdf5(stream, where)
            return
        self._pickles(stream, where, name, depth, rules)

    def _packed(self, unpacked: Unpacked, where: str, name: str, depth: int, rules: PickleRules, certain: bool) -> None:
        stream = ScanStream(unpacked)
        head = stream.peek(1024)
        if _is_tar(head) or head[:4] in (b"PK\3\4", b"PK\5\6") or packing_of(head) or depth >= MAX_DEPTH:
            with tempfile.TemporaryFile() as spool:
                while part := stream.peek(1 << 20):
                    stream.skip(len(part))
                    spool.write(part)
                    if spool.tell() > MAX_SPOOL_BYTES:
                        # Large, not a bomb: those are told by their ratio, while they unpack.
                        raise LimitExceeded("An archive in it unpacks to more than the scan reads.")
                self.content(spool, spool.tell(), where, name=name, depth=depth + 1, rules=rules)
        else:
            self._flat(stream, head, where, name, depth, rules)
        if certain:
            # What no reader asked for counts against the budget as well: a bomb behind a short pickle is one.
            while part := stream.peek(1 << 20):
                stream.skip(len(part))
        if unpacked.broken is not None and certain:
            self.note("packed-broken", Severity.UNKNOWN, f"This packed file is broken: {unpacked.broken}.", where)

    def _zip(self, handle: Any, size: int, where: str, depth: int) -> bool:
        layout = read_layout(handle, size, self._budget)
        if layout is None:
            return False
        found = layout.findings
        self._add(*(f.model_copy(update={"where": _inside(where, f.where)}) for f in found))
        rules = PickleRules(self._allowed, torchscript=layout.torchscript)
        for member in layout.members:
            self._member(handle, member, _inside(where, member.name), depth, rules, layout.complete)
        # What else it may be: a pickle with a zip behind it is both.
        handle.seek(0)
        return bool(handle.read(2) == b"PK")

    def _member(
        self, handle: BinaryIO, member: Member, where: str, depth: int, rules: PickleRules, complete: bool
    ) -> None:
        opened = open_member(handle, member, self._budget)
        if opened is None or member.name.endswith("/"):
            return
        try:
            if isinstance(opened, Unpacked):
                with tempfile.SpooledTemporaryFile(max_size=32 << 20) as spool:
                    # One byte more than announced tells that the announcement is a lie.
                    size = _spill(opened, spool, min(member.size_bytes + 1, MAX_SPOOL_BYTES))
                    if opened.broken and complete:
                        self.note("zip-broken", Severity.UNKNOWN, f"A member is broken: {opened.broken}.", where)
                    if complete and size != member.size_bytes:
                        message = f"A member unpacks to {size} bytes or more and announces {member.size_bytes}."
                        self.note("zip-mismatch", Severity.DANGER, message, where)
                    self._one(spool, size, where, member, depth, rules, complete)
            else:
                self._one(opened, member.packed_bytes, where, member, depth, rules, complete)
        except LimitExceeded as error:
            self.limit(error, where)

    def _one(
        self, handle: Any, size: int, where: str, member: Member, depth: int, rules: PickleRules, complete: bool
    ) -> None:
        name = member.name.rsplit("/", 1)[-1]
        if complete and self._checked_bytes + size <= MAX_CHECKED_BYTES:
            self._checked_bytes += size
            handle.seek(0)
            crc = 0
            while part := handle.read(1 << 20):
                crc = zlib.crc32(part, crc)
            if crc != member.crc:
                message = "The checksum of this member is wrong: it was changed, damaged or written without one."
                self.note("zip-checksum", Severity.UNKNOWN, message, where)
        self._content(handle, size, where, name, depth + 1, rules)
        if name.endswith((".json", ".jinja")) and size <= MAX_JSON_BYTES:
            handle.seek(0)
            self._add(*json_findings(handle.read(size) or b"", where, name))
        if rules.torchscript and "/code/" in member.name and name.endswith(".py"):
            handle.seek(0)
            self._add(*script_findings(handle.read(min(size, MAX_CODE_BYTES)) or b"", where))

    def _tar(self, handle: Any, where: str, depth: int, rules: PickleRules) -> None:
        names: set[str] = set()
        buffered = io.BufferedReader(handle) if isinstance(handle, io.RawIOBase) else handle
        try:
            with tarfile.open(fileobj=buffered, mode="r:") as archive:
                for item in archive:
                    self._budget.spend_member()
                    inside = _inside(where, item.name)
                    reason = unsafe_path(item.name)
                    if reason is not None:
                        self.note("archive-path", Severity.DANGER, f"The path of an archive member {reason}.", inside)
                    if not (item.isreg() or item.isdir()):
                        inner_link = (item.issym() or item.islnk()) and unsafe_path(item.linkname) is None
                        severity = Severity.UNKNOWN if inner_link else Severity.DANGER
                        self.note("archive-link", severity, "An archive member is a link or a device.", inside)
                    if item.name in names and item.isreg():
                        self.note("archive-duplicate", Severity.DANGER, "Two members have one name.", inside)
                    names.add(item.name)
                    if item.isreg():
                        member = archive.extractfile(item)
                        if member is not None:
                            base = item.name.rsplit("/", 1)[-1]
                            self.content(member, item.size, inside, name=base, depth=depth + 1, rules=rules)
        except (tarfile.TarError, EOFError, ValueError, OverflowError, OSError, RecursionError) as error:
            self.note("archive-broken", Severity.UNKNOWN, f"This tar archive is broken ({error}).", where)
        if {"storages", "tensors", "pickle"} <= names:
            message = "This is torch's oldest format, whose storages cannot be looked into."
            self.note("archive-unreadable", Severity.UNKNOWN, message, where)

    # Flat formats

    def _pickles(self, stream: ScanStream, where: str, name: str, depth: int, rules: PickleRules) -> None:
        """Follow the pickles that stand one after another; chance bytes are told from pickles by what they do."""
        legacy_left = None
        for index in range(MAX_PICKLES):
            head = stream.peek(9)
            if not head:
                return
            # A safetensors header of 640 bytes begins as a pickle of protocol 2 does; what it does tells them apart.
            counted = not index and head[4:9] == b"\0\0\0\0{"
            marked = head[:1] == b"\x80" and head[1:2] <= b"\x05"
            if not marked and head[0] not in _STARTS:
                if index:
                    self._trailing(stream, where)
                return
            named = name.lower().endswith(_PICKLE_SUFFIXES)
            # A file that is the whole artifact will be handed to a loader; a labels.txt in a folder will not.
            certain = (marked and depth == 0 and not counted) or named or legacy_left is not None
            before = stream.offset
            # Only the file itself is given to joblib; torch reads its own pickles, and members, without it.
            trace = PickleTrace(stream, self._budget, joblib=depth == 0 and legacy_left is None).run()
            if index and not certain and not trace.complete and not _acts(trace, rules):
                self._trailing(stream, where)
                return
            alone = (
                depth == 0
                and not where
                and any(each.globals or (each.anomalies and trace.complete) for each in family(trace))
            )
            if certain or alone or _acts(trace, rules):
                self._add(*findings_of(trace, where, rules, lambda blob, at: self._blob(blob, at, depth)))
            elif not marked:
                return
            if not trace.complete or stream.offset == before:
                return
            if index == 0 and trace.value == TORCH_MAGIC and type(trace.value) is int:
                legacy_left = LEGACY_TORCH_PICKLES - 1
            elif legacy_left is not None:
                legacy_left -= 1
                if not legacy_left:
                    return
        self.note("pickle-trailing", Severity.UNKNOWN, "More pickles follow one another than the scan reads.", where)

    def _trailing(self, stream: ScanStream, where: str) -> None:
        rest = stream.peek(1 << 16)
        if rest.strip(b"\0\r\n "):
            message = "Data that is no pickle follows the end of this pickle."
            self.note("pickle-trailing", Severity.UNKNOWN, message, place(where, stream.offset))

    def _blob(self, blob: Blob, where: str, depth: int) -> list[SecurityFinding]:
        """Scan a bytes constant; what is only chance there says nothing."""
        inner = ContentScan(self._allowed, self._budget)
        with suppress(LimitExceeded):
            inner._content(io.BytesIO(blob.head), len(blob.head), where, "", depth + 1, PickleRules(self._allowed))
        quiet = {
            "zip-broken",
            "zip-trailing",
            "packed-broken",
            "archive-broken",
            "pickle-trailing",
            "archive-unreadable",
        }
        return [f for f in inner.result() if f.code not in quiet]

    def _npy(self, stream: ScanStream, where: str, depth: int, rules: PickleRules) -> None:
        holds_objects = object_array(stream)
        if holds_objects is None:
            self.note("npy-broken", Severity.UNKNOWN, "The header of this .npy array cannot be read.", where)
        elif holds_objects:
            self.note(
                "npy-objects", Severity.UNKNOWN,
                "This .npy array holds Python objects, which only a pickle loader reads.", where, where,
            )  # fmt: skip
            trace = PickleTrace(stream, self._budget).run()
            self._add(*findings_of(trace, where, rules, lambda blob, at: self._blob(blob, at, depth)))

    def _hdf5(self, stream: ScanStream, where: str) -> None:
        carry = b""
        while part := stream.peek(1 << 20):
            stream.skip(len(part))
            window = carry + part
            if b'"class_name": "Lambda"' in window or b'"__lambda__"' in window:
                message = "A Keras Lambda layer in this file carries compiled Python code."
                self.note("keras-lambda", Severity.DANGER, message, where)
                return
            carry = window[-64:]


def _acts(trace: PickleTrace, rules: PickleRules) -> bool:
    """Whether bytes of unsure kind behave as a pickle: ended and named globals, called something, or are dangerous."""
    traces = family(trace)
    named = [asked for each in traces for asked in each.globals.values()]
    if trace.complete and (named or any(each.nested for each in traces)):
        return True
    if named and any(each.calls for each in traces):
        return True
    return any(judge(asked, torchscript=rules.torchscript) is Judgement.DANGER for asked in named if _plausible(asked))


def _plausible(asked: Any) -> bool:
    return all(part.isidentifier() for text in (asked.module, asked.name) for part in text.split("."))


def _spill(source: Unpacked, spool: Any, most: int) -> int:
    while (left := most - spool.tell()) > 0:
        part = source.read(min(left, 1 << 20))
        if not part:
            break
        spool.write(part)
    size = int(spool.tell())
    spool.seek(0)
    return size


def _inside(where: str, name: str) -> str:
    return f"{where}!{name}" if where and name else where or name


def _is_tar(head: bytes) -> bool:
    """Whether a tar header stands here, told by its checksum as tar readers do: the oldest have no magic."""
    if len(head) < 512 or not head[0]:
        return False
    try:
        claimed = int(head[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    return claimed == sum(head[:148]) + 8 * 32 + sum(head[156:512])
