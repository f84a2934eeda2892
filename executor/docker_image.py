"""Images of the Docker sandbox: one that carries toolchains, or a bare one that shows this machine's."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from executor.inside import MERGED, PASSWD
from executor.toolchain import Installation
from schemas.errors import SandboxUnavailable

if TYPE_CHECKING:
    import docker

TOOLCHAINS_LABEL = "modelium.toolchains"
"""What ``make image`` writes into an image: toolchain name to its interpreter and versions, as JSON."""
_BARE = "modelium-bare"


@dataclass(frozen=True)
class Image:
    """An image by its id, which names its bytes. ``host_usr`` is whether ``/usr`` of this machine is shown in it."""

    id: str
    toolchains: dict[str, tuple[Path, Installation]] = field(default_factory=dict)
    variables: tuple[str, ...] = ()
    host_usr: bool = False

    @property
    def interpreters(self) -> set[Path]:
        """The interpreters that it carries."""
        return {interpreter for interpreter, _ in self.toolchains.values()}


def find_image(client: docker.APIClient, name: str) -> Image:
    """Return the image that ``name`` stands for now; without a name the bare one, made here when it is not there.

    Nothing is ever pulled. Raises SandboxUnavailable.
    """
    from docker.errors import ImageNotFound

    try:
        found = client.inspect_image(name or _bare(client))
    except ImageNotFound:
        raise SandboxUnavailable(
            f"The Docker engine has no image {name}, and Modelium pulls none.",
            hint="Run: make image; or unset MODELIUM_SANDBOX_IMAGE to show the steps this machine's toolchains.",
        ) from None
    config = found.get("Config") or {}
    if config.get("Volumes"):
        raise SandboxUnavailable(
            f"The image {name} declares volumes, which are writable and unbounded.",
            hint="Build one without VOLUME: make image.",
        )
    label = (config.get("Labels") or {}).get(TOOLCHAINS_LABEL)
    variables = tuple(pair.partition("=")[0] for pair in config.get("Env") or ())
    return Image(found["Id"], _toolchains(name, label) if label else {}, variables, host_usr=not name)


def _toolchains(name: str, label: str) -> dict[str, tuple[Path, Installation]]:
    try:
        return {
            toolchain: (
                Path(told["interpreter"]),
                Installation({str(k): str(v) for k, v in told["versions"].items()}, ()),
            )
            for toolchain, told in json.loads(label).items()
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        raise SandboxUnavailable(
            f"The label {TOOLCHAINS_LABEL} of the image {name} is not what `make image` writes.", hint="Run: make image"
        ) from None


def _bare(client: docker.APIClient) -> str:
    """Return the name of an image that holds nothing but links into /usr, made when it is not there."""
    from docker.errors import ImageNotFound

    content = _bare_root()
    tag = hashlib.sha256(content).hexdigest()[:12]
    try:
        client.inspect_image(f"{_BARE}:{tag}")
    except ImageNotFound:
        client.import_image_from_data(content, repository=_BARE, tag=tag)
    return f"{_BARE}:{tag}"


def _bare_root() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name in ("usr", "etc", "opt", "proc", "dev", "sys"):
            archive.addfile(_member(name, tarfile.DIRTYPE))
        for name in MERGED:
            place = Path("/", name)
            if place.is_symlink():
                archive.addfile(_member(name, tarfile.SYMTYPE, str(place.readlink())))
        archive.addfile(_member("etc/passwd", tarfile.REGTYPE, size=len(PASSWD)), io.BytesIO(PASSWD))
    return sink.getvalue()


def _member(name: str, kind: bytes, link: str = "", size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, size
    member.mode = 0o644 if kind == tarfile.REGTYPE else 0o755
    return member
