"""ZipLayout: a zip read as bytes, where flags, checksums and local headers are evidence and not believed."""

from __future__ import annotations

import io
import stat
import struct
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from analyzer.pickle_scan import printable
from analyzer.scan_stream import Budget, Unpacked
from schemas.descriptor import SecurityFinding, Severity

STORED, DEFLATED = 0, 8
_END, _CENTRAL, _LOCAL = b"PK\x05\x06", b"PK\x01\x02", b"PK\x03\x04"
_END64, _LOCATOR64, _DESCRIPTOR = b"PK\x06\x06", b"PK\x06\x07", b"PK\x07\x08"
_TAIL = (1 << 16) + 22 + 20
_HIDING_FLAGS = 0x2061
"""Encrypted (0), patched (5), strongly encrypted (6), masked headers (13): no framework writes them."""
_HAS_DESCRIPTOR = 0x0008


@dataclass(frozen=True)
class Member:
    """One member as the central directory has it; ``data_offset`` is None when no local header is there."""

    name: str
    method: int
    flags: int
    crc: int
    packed_bytes: int
    size_bytes: int
    header_offset: int
    data_offset: int | None


@dataclass
class ZipLayout:
    """The members and what is wrong with how they lie. ``complete`` says that a central directory was there."""

    members: list[Member] = field(default_factory=list)
    findings: list[SecurityFinding] = field(default_factory=list)
    complete: bool = True
    size_bytes: int = 0
    """Of the whole file: no offset that a header claims is followed beyond it."""

    def fault(self, code: str, severity: Severity, message: str, name: str = "") -> None:
        """Note one fault, about the member ``name`` when given."""
        shown = printable(name)[:300]
        self.findings.append(
            SecurityFinding(code=code, severity=severity, message=message[:1000], where=shown, subject=shown)
        )

    def has(self, ending: str) -> bool:
        """Whether a member's path below its top folder is ``ending``."""
        return any(member.name.split("/", 1)[-1] == ending for member in self.members)

    @property
    def torchscript(self) -> bool:
        """Whether torch reads this as TorchScript: it tells so by constants.pkl; code/ must be there as well."""
        return self.has("constants.pkl") and any(member.name.split("/", 2)[1:2] == ["code"] for member in self.members)


class Section(io.RawIOBase):
    """A window of a seekable handle that others may seek too."""

    def __init__(self, handle: Any, start: int, size_bytes: int) -> None:
        self._handle, self._start, self._size_bytes = handle, start, size_bytes
        self._at = 0

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True

    def seekable(self) -> bool:
        """Whether it can seek: always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move as io says."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size_bytes}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        """Return the position in the window."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` from the window."""
        want = min(len(buffer), max(0, self._size_bytes - self._at))
        self._handle.seek(self._start + self._at)
        data: bytes = self._handle.read(want) if want else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def open_member(handle: BinaryIO, member: Member, budget: Budget) -> Section | Unpacked | None:
    """Return the member's content, whatever its flags and checksum say; None for a method that torch has not either."""
    if member.data_offset is None:
        return None
    packed = Section(handle, member.data_offset, member.packed_bytes)
    if member.method == STORED:
        return packed
    return Unpacked(lambda number: packed.read(number) or b"", "deflate", budget) if member.method == DEFLATED else None


def read_layout(handle: BinaryIO, size_bytes: int, budget: Budget) -> ZipLayout | None:
    """Read where the members lie; None when there is neither a first member nor a directory that a reader would take.

    Raises LimitExceeded for more members than a scan reads.
    """
    handle.seek(0)
    starts = handle.read(4) in (_LOCAL, _END)
    tail_start = max(0, size_bytes - _TAIL)
    handle.seek(tail_start)
    tail = handle.read(_TAIL)
    at = tail.rfind(_END)
    layout = ZipLayout(size_bytes=size_bytes)
    if at < 0 or len(tail) - at < 22:
        if not starts:
            return None
        layout.complete = False
        layout.fault("zip-broken", Severity.UNKNOWN, "This zip archive has no end: it was cut off.")
        _walk(handle, size_bytes, layout, budget)
        return layout
    end = tail_start + at
    count, directory_bytes, directory_at, comment = struct.unpack_from("<HIIH", tail, at + 10)
    directory_end = end
    if at >= 20 and tail[at - 20 : at - 16] == _LOCATOR64:
        handle.seek(min(struct.unpack_from("<Q", tail, at - 12)[0], size_bytes))
        record = handle.read(56)
        if len(record) == 56 and record[:4] == _END64:
            wide = struct.unpack_from("<QQQ", record, 32)
            for narrow, value, sentinel in zip(
                (count, directory_bytes, directory_at), wide, (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF), strict=True
            ):
                if narrow not in (value, sentinel):
                    layout.fault("zip-mismatch", Severity.DANGER, "The two directory records of this zip disagree.")
            count, directory_bytes, directory_at = wide
            directory_end = min(struct.unpack_from("<Q", tail, at - 12)[0], end)
        else:
            layout.fault("zip-mismatch", Severity.DANGER, "This zip points to a directory record that is not there.")
    shift = directory_end - directory_bytes - directory_at
    if not starts:
        handle.seek(min(directory_at, size_bytes))
        reaches_end = end + 22 + comment == size_bytes and shift >= 0
        if not (reaches_end or handle.read(4) == _CENTRAL) or not count:
            return None
        layout.fault("zip-prefix", Severity.DANGER, "A zip archive is hidden behind other data in this file.")
    if end + 22 + comment != size_bytes:
        layout.fault("zip-trailing", Severity.DANGER, "Data follows the end of this zip archive.")
    if shift and starts:
        layout.fault("zip-mismatch", Severity.DANGER, "The directory of this zip is not where its end record says.")
    _directory(handle, directory_at, directory_end, count, max(shift, 0), layout, budget)
    _names(layout)
    _lie_of_the_land(handle, layout, directory_end - directory_bytes if shift >= 0 else directory_at)
    return layout


def _directory(
    handle: BinaryIO, start: int, end: int, count: int, shift: int, layout: ZipLayout, budget: Budget
) -> None:
    # Python's reader adds the shift to every offset and torch's does not: read what is really there.
    for base in dict.fromkeys((shift, 0)):
        handle.seek(min(start + base, layout.size_bytes))
        if handle.read(4) == _CENTRAL or not count:
            break
    handle.seek(min(start + base, layout.size_bytes))
    directory = handle.read(min(max(end - start - base, 0), 256 << 20))
    at = 0
    while at + 46 <= len(directory) and directory[at : at + 4] == _CENTRAL:
        budget.spend_member()
        flags, method = struct.unpack_from("<HH", directory, at + 8)
        crc, packed, size, name_size, extra_size, comment_size = struct.unpack_from("<IIIHHH", directory, at + 16)
        external, offset = struct.unpack_from("<II", directory, at + 38)
        raw_name = directory[at + 46 : at + 46 + name_size]
        extra = directory[at + 46 + name_size : at + 46 + name_size + extra_size]
        size, packed, offset = _wide(extra, size, packed, offset)
        name = raw_name.decode("utf-8", "backslashreplace")
        if stat.S_ISLNK(external >> 16):
            layout.fault("zip-link", Severity.DANGER, "A member of this archive is a symbolic link.", name)
        data_offset = _local(handle, offset + base, raw_name, name, (flags, method, crc, packed, size), layout)
        layout.members.append(Member(name, method, flags, crc, packed, size, offset + base, data_offset))
        at += 46 + name_size + extra_size + comment_size
    if len(layout.members) != count or at != len(directory):
        layout.fault(
            "zip-mismatch", Severity.DANGER,
            f"The directory of this zip announces {count} members and lists {len(layout.members)}.",
        )  # fmt: skip


def _wide(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Return the sizes and the offset with zip64's extra field applied."""
    values = [size, packed, offset]
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, at)
        if tag == 1:
            body = extra[at + 4 : at + 4 + length]
            for index, value in enumerate(values):
                if value == 0xFFFFFFFF and len(body) >= 8:
                    values[index], body = int.from_bytes(body[:8], "little"), body[8:]
            break
        at += 4 + length
    return values[0], values[1], values[2]


def _local(
    handle: BinaryIO, offset: int, raw_name: bytes, name: str, central: tuple[int, int, int, int, int],
    layout: ZipLayout,
) -> int | None:  # fmt: skip
    """Check the local header against the central one; return where the data starts."""
    flags, method, crc, packed, size = central
    handle.seek(min(offset, layout.size_bytes))
    head = handle.read(30)
    if len(head) < 30 or head[:4] != _LOCAL:
        layout.fault("zip-mismatch", Severity.DANGER, "A member of this zip is not where its directory says.", name)
        return None
    own_flags, own_method = struct.unpack_from("<HH", head, 6)
    own_crc, own_packed, own_size = struct.unpack_from("<III", head, 14)
    name_size, extra_size = (int.from_bytes(head[at : at + 2], "little") for at in (26, 28))
    own_name = handle.read(name_size)
    own_size, own_packed, _ = _wide(handle.read(extra_size), own_size, own_packed, 0)
    if (flags | own_flags) & _HIDING_FLAGS:
        layout.fault(
            "zip-flags", Severity.DANGER,
            "A member of this zip says that it is encrypted or patched, which blinds scanners and which torch ignores.",
            name,
        )  # fmt: skip
    differs = [
        word for word, one, other in (("name", raw_name, own_name), ("method", method, own_method)) if one != other
    ]
    for word, one, other in (("checksum", crc, own_crc), ("packed size", packed, own_packed), ("size", size, own_size)):
        # Where a descriptor follows the data, the local header may leave these at zero.
        if one != other and (other or not own_flags & _HAS_DESCRIPTOR):
            differs.append(word)
    if differs:
        layout.fault(
            "zip-mismatch", Severity.DANGER,
            f"A member of this zip has two headers that disagree about its {' and '.join(differs)}.", name,
        )  # fmt: skip
    if method == STORED and packed != size:
        layout.fault("zip-mismatch", Severity.DANGER, "A stored member of this zip has two different sizes.", name)
    if method not in (STORED, DEFLATED):
        layout.fault("zip-method", Severity.UNKNOWN, f"A member of this zip is packed with method {method}.", name)
    return offset + 30 + name_size + extra_size


def unsafe_path(name: str) -> str | None:
    """Return why ``name`` may leave the folder it is unpacked into, None when it may not."""
    if name.startswith(("/", "\\")) or (len(name) > 1 and name[1] == ":" and name[0].isalpha()):
        return "is absolute"
    if ".." in name.replace("\\", "/").split("/"):
        return "leaves its folder with '..'"
    if "\\" in name:
        return "has a backslash"
    if any(ord(c) < 32 or ord(c) == 127 for c in name):
        return "has control characters"
    return None


def _names(layout: ZipLayout) -> None:
    seen: set[str] = set()
    for member in layout.members:
        reason = unsafe_path(member.name)
        if reason is not None:
            layout.fault("archive-path", Severity.DANGER, f"The path of an archive member {reason}.", member.name)
        # torch finds its records without looking at case.
        key = member.name.lower() if member.name.lower().endswith(".pkl") else member.name
        if key in seen:
            layout.fault("zip-duplicate", Severity.DANGER, "Two members of this zip have one name.", member.name)
        seen.add(key)


def _lie_of_the_land(handle: BinaryIO, layout: ZipLayout, directory_at: int) -> None:
    """Check that members follow one another without overlap, and that nothing is between them."""
    position = 0
    for member in sorted(layout.members, key=lambda m: m.header_offset):
        if member.data_offset is None:
            continue
        if member.header_offset < position:
            layout.fault("zip-overlap", Severity.DANGER, "Members of this zip overlap.", member.name)
        elif member.header_offset > position:
            _gap(handle, position, member.header_offset, layout)
        position = max(position, member.data_offset + member.packed_bytes)
    if position > directory_at:
        layout.fault("zip-overlap", Severity.DANGER, "A member of this zip overlaps its directory.")
    elif position < directory_at:
        _gap(handle, position, directory_at, layout)


def _gap(handle: BinaryIO, start: int, end: int, layout: ZipLayout) -> None:
    handle.seek(start)
    gap = handle.read(min(end - start, 1 << 20))
    if gap[:4] == _DESCRIPTOR:
        gap = gap[24:] if len(gap) >= 24 and gap[16:20] != _LOCAL else gap[16:]
    if start == 0:
        layout.fault("zip-prefix", Severity.DANGER, "Data stands before the first member of this zip.")
    elif _LOCAL in gap:
        layout.fault("zip-hidden", Severity.DANGER, "A member of this zip is not in its directory.")
    elif gap.strip(b"\0") and len(gap) > 24:
        layout.fault("zip-gap", Severity.UNKNOWN, "Unexplained data stands between the members of this zip.")


def _walk(handle: BinaryIO, size_bytes: int, layout: ZipLayout, budget: Budget) -> None:
    """List what local headers tell, for a zip without an end: what is there may still be dangerous."""
    at = 0
    while True:
        handle.seek(at)
        head = handle.read(30)
        if len(head) < 30 or head[:4] != _LOCAL:
            return
        budget.spend_member()
        flags, method = struct.unpack_from("<HH", head, 6)
        crc, packed, size, name_size, extra_size = struct.unpack_from("<IIIHH", head, 14)
        name = handle.read(name_size).decode("utf-8", "backslashreplace")
        size, packed, _ = _wide(handle.read(extra_size), size, packed, 0)
        start = at + 30 + name_size + extra_size
        if flags & _HAS_DESCRIPTOR and not packed:
            packed = _until_descriptor(handle, start, size_bytes) - start
        packed = min(packed, max(0, size_bytes - start))
        layout.members.append(Member(name, method, flags, crc, packed, max(size, packed), at, start))
        at = start + packed
        handle.seek(at)
        if handle.read(4) == _DESCRIPTOR:
            handle.seek(at + 16)
            at += 16 if handle.read(4) == _LOCAL else 24


def _until_descriptor(handle: BinaryIO, start: int, size_bytes: int) -> int:
    """Return where the next descriptor is, or the end."""
    position, carry = start, b""
    while position < size_bytes:
        handle.seek(position)
        chunk = carry + handle.read(1 << 20)
        found = chunk.find(_DESCRIPTOR)
        if found >= 0:
            return position - len(carry) + found
        position += len(chunk) - len(carry)
        carry = chunk[-3:]
    return size_bytes
