"""Unpack: an archive's model as plain files, so that everything in it can be analysed as if it had been dropped so."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path
from typing import Any, BinaryIO

from analyzer.draft import clean
from analyzer.formats import Seen, recognise
from analyzer.packed_model import choose, sidecar_in
from analyzer.scan_stream import Budget, Unpacked
from analyzer.unpack_room import Room
from analyzer.zip_layout import Section, open_member, read_layout
from analyzer.zstd_stream import open_zstd
from schemas.descriptor import Format, Severity, UnpackReport
from schemas.errors import ModelFailed, Quarantined, Unsupported
from schemas.step_io import StepContext, StepOutcome
from schemas.step_options import UnpackOptions

OUTPUT = "model"
_LAYERS = 2
"""An archive, and one more that is all it holds: ``model.zip`` of a ``model.tar.gz``."""
_SPARE_BYTES = 256 << 20
"""Room on the disk that is left alone."""
_BLOCK = 512
"""What a tar consists of."""
_BROKEN_TAR = (tarfile.TarError, EOFError, ValueError, OverflowError, UnicodeError)
_AGAIN = "Copy it again, or pack it again where the model is whole."


def unpack(context: StepContext) -> StepOutcome:
    """Unpack input ``model`` into output ``model``: the one model file that is inside, or the folder.

    Raises:
        NeedsInput: Several models are inside; the sentence names them.
        Quarantined: A member is a link, a device or a path that leaves the folder, or the archive contradicts itself.
        LimitExceeded: It unpacks to more than the options allow, or than the disk has room for.
        ModelFailed: It is broken or holds no file.
    """
    options: UnpackOptions = context.options
    path, layers = context.input("model"), []
    free = shutil.disk_usage(context.out).free - _SPARE_BYTES
    room = Room(
        max_bytes=max(0, min(options.max_bytes, free)), max_files=options.max_files, max_depth=options.max_depth
    )
    scratch = context.out / "unpacked"
    for layer in range(_LAYERS):
        seen = recognise(path)
        if seen.format is not Format.ARCHIVE:
            break
        context.progress(0.1 + 0.4 * layer, f"Unpacking a {seen.kind} archive")
        folder = scratch / str(layer)
        folder.mkdir(parents=True)
        _extract(path, seen, folder, room, context.request.inputs["model"], options.max_ratio)
        layers.append(seen.kind)
        if layer:
            path.unlink()  # the inner archive itself, whose content now stands beside it
        files = [item for item in folder.rglob("*") if item.is_file()]
        if not files:
            raise ModelFailed("This archive holds no file.", hint=_AGAIN)
        path = files[0] if len(files) == 1 else folder
        if path.is_dir():
            break
    if len(layers) == _LAYERS and path.is_file() and recognise(path).format is Format.ARCHIVE:
        raise Unsupported(
            f"This archive holds an archive that holds an archive; {_LAYERS} are unpacked.",
            hint="Unpack it and drop the model file or folder that is inside.",
        )
    if not layers:
        raise ModelFailed("This file is no archive.", hint="Drop it as it is.")
    context.progress(0.9, "Looking for the model in it")
    found = choose(path)
    target = context.out / OUTPUT
    found.path.rename(target)
    shutil.rmtree(scratch)
    report = UnpackReport(
        layers=tuple(layers),
        files=tuple(room.names[:1000]),
        file_count=room.files,
        size_bytes=room.written,
        skipped=room.skipped,
        sidecar=sidecar_in(target),
        notes=tuple(found.notes),
    )
    context.progress(1.0, f"{room.files} files")
    return StepOutcome(report=report, outputs={OUTPUT: OUTPUT})


def _extract(path: Path, seen: Seen, folder: Path, room: Room, name: str, ratio: int) -> None:
    budget = Budget(unpacked_bytes=room.left, ratio=ratio, members=room.max_files * 4)
    with path.open("rb") as handle:
        if seen.kind in ("zip", "torchserve"):
            _zip(handle, path.stat().st_size, folder, room, budget)
            return
        if seen.kind == "tar" and not seen.detail:
            _tar(handle, folder, room)
            return
        packing = seen.detail or seen.kind
        if packing == "zstd":
            source: Any = open_zstd(handle, budget, path.stat().st_size)
        elif packing in ("gzip", "bzip2", "xz", "lzma", "zlib"):
            source = Unpacked(lambda number: handle.read(number) or b"", packing, budget)
        else:
            raise Unsupported(f"A {packing} archive is not unpacked here.", hint="Pack it as .zip or .tar.gz.")
        stream = io.BufferedReader(source, 1 << 20)
        if seen.kind == "tar" or stream.peek(_BLOCK)[257:262] == b"ustar":
            _tar(stream, folder, room)
            # What follows the tar's own end still has to be whole, or a cut archive would pass for a complete one.
            while stream.read(1 << 20):
                pass
        else:
            room.write(folder, _plain_name(name), stream)
        if source.broken is not None:
            raise ModelFailed(f"This archive is broken: {clean(source.broken, 200)}.", hint=_AGAIN)


def _plain_name(name: str) -> str:
    """Return what to call the one file behind a compression that keeps no name."""
    return Path(name).name or "model"


def _tar(handle: Any, folder: Path, room: Room) -> None:
    """Write the members of a tar, read forward only."""
    try:
        with tarfile.open(fileobj=handle, mode="r|") as archive:
            for item in archive:
                if item.isdir():
                    continue
                if not item.isreg():
                    what = "link" if item.issym() or item.islnk() else "device or pipe"
                    raise Quarantined(
                        f"This archive holds a {what}: {clean(item.name, 120)!r}.",
                        hint="Pack the files themselves: tar --dereference --hard-dereference -czf NAME.tar.gz FOLDER.",
                    )
                content = archive.extractfile(item)
                if content is not None:
                    room.write(folder, item.name, content, size_bytes=item.size)
    except _BROKEN_TAR as error:
        raise ModelFailed(f"This tar archive is broken: {clean(str(error), 200)}.", hint=_AGAIN) from None


def _zip(handle: BinaryIO, size_bytes: int, folder: Path, room: Room, budget: Budget) -> None:
    """Write the members of a zip, every header judged first: one that contradicts itself is not unpacked."""
    layout = read_layout(handle, size_bytes, budget)
    if layout is None or not layout.complete:
        raise ModelFailed("This zip archive has no end: it was cut off.", hint=_AGAIN)
    for finding in layout.findings:
        if finding.severity is Severity.DANGER:
            where = f" ({clean(finding.where, 120)})" if finding.where else ""
            raise Quarantined(f"{finding.message.rstrip('.')}{where}.", hint="Pack it again with an ordinary tool.")
    for member in layout.members:
        if member.name.endswith("/"):
            continue
        content = open_member(handle, member, budget)
        if content is None:
            raise Unsupported(
                f"Member {clean(member.name, 120)!r} of this zip is packed with method {member.method}.",
                hint="Pack it again with deflate, as every zip tool does by default.",
            )
        crc = room.write(folder, member.name, content, size_bytes=member.size_bytes)
        broken = None if isinstance(content, Section) else content.broken
        if crc is not None and (broken or crc != member.crc):
            why = clean(broken or "its checksum is wrong")
            raise ModelFailed(f"Member {clean(member.name, 120)!r} of this zip is damaged: {why}.", hint=_AGAIN)
