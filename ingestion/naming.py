"""A deployment's name: the drop's path below the watched folder, made a DNS label."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata

MAX_LENGTH = 63
"""RFC 1123: a label has 1 to 63 of a-z, 0-9 and '-', and neither begins nor ends with '-'."""
_DIGEST_LENGTH = 8
# A suffix begins with a letter: "resnet.onnx" has one, "qwen2.5" and "model-v1.0" have none.
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9_]{0,11}$")
_DOUBLE = re.compile(r"\.(tar|pth|pkl|joblib|onnx|npy)\.(gz|bz2|xz|zst|lzma|z|tar)$", re.IGNORECASE)


def dns_label(relative: str, *, folder: bool = False) -> str:
    """Return a DNS label for ``relative``; a file's extension is dropped, a folder's name is kept whole.

    A path that lost letters on the way (another script, too long) ends in a digest of the whole path, so that two
    such paths stay apart; others may collide, which the caller refuses.
    """
    stem = relative if folder else _SUFFIX.sub("", _DOUBLE.sub("", relative))
    if not stem.rsplit("/", 1)[-1]:
        stem = relative
    folded = unicodedata.normalize("NFKD", stem.casefold())
    ascii_only = folded.encode("ascii", "ignore").decode().lower()
    lost = any(unicodedata.category(c)[0] in "LN" for c in folded if not c.isascii()) or not ascii_only
    label = re.sub(r"[^a-z0-9]+", "-", ascii_only).strip("-")
    if label and not lost and len(label) <= MAX_LENGTH:
        return label
    digest = hashlib.sha256(os.fsencode(relative)).hexdigest()[:_DIGEST_LENGTH]
    kept = label[: MAX_LENGTH - _DIGEST_LENGTH - 1].strip("-")
    return f"{kept or 'model'}-{digest}"
