"""Home: where everything of one Modelium lives."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Home:
    """The folders below one root. Two homes share nothing but the machine's measuring lease."""

    root: Path

    @property
    def incoming(self) -> Path:
        """The watched folder."""
        return self.root / "incoming"

    @property
    def artifacts(self) -> Path:
        """The content-addressed store."""
        return self.root / "artifacts"

    @property
    def repository(self) -> Path:
        """The Triton model repository."""
        return self.root / "model_repository"

    @property
    def engines(self) -> Path:
        """TensorRT-RTX engines: a folder a name, with one folder a version and a manifest."""
        return self.root / "engines"

    @property
    def archive(self) -> Path:
        """Configurations of every published version, for rollback."""
        return self.root / "deployments"

    @property
    def model_files(self) -> Path:
        """Language models that a server of their own serves as they are: a folder a name, one in it a version."""
        return self.root / "model_files"

    @property
    def manifests(self) -> Path:
        """KServe manifests."""
        return self.root / "manifests"

    @property
    def reports(self) -> Path:
        """One folder a job with its HTML page and JSON."""
        return self.root / "reports"

    @property
    def workspaces(self) -> Path:
        """Steps' workspaces; empty when nothing runs."""
        return self.root / "workspaces"

    @property
    def logs(self) -> Path:
        """Logs of the worker processes and the embedded broker."""
        return self.root / "logs"

    @property
    def broker(self) -> Path:
        """The embedded broker's append-only file."""
        return self.root / "broker"

    @property
    def database(self) -> Path:
        """The SQLite file, when no other database is set."""
        return self.root / "modelium.db"

    @property
    def up_lock(self) -> Path:
        """Locked while ``modelium up`` runs on this home."""
        return self.root / "up.lock"

    @cached_property
    def runtime(self) -> Path:
        """A short folder for sockets and locks: a unix socket's path ends at 108 bytes."""
        name = hashlib.sha256(str(self.root).encode()).hexdigest()[:12]
        return runtime_root() / name

    @property
    def bell(self) -> Path:
        """The socket that wakes the outbox relay of ``modelium up``."""
        return self.runtime / "bell.sock"

    @property
    def reception(self) -> Path:
        """The socket where ``modelium up`` takes drops that are handed in."""
        return self.runtime / "reception.sock"

    @property
    def ended(self) -> Path:
        """A file that is touched when a job has ended, for whoever follows one on this machine."""
        return self.runtime / "ended"

    @property
    def store_lock(self) -> Path:
        """What keeps the collector from what is not recorded yet."""
        return self.runtime / "store.lock"

    def is_up(self) -> bool:
        """Whether a ``modelium up`` runs on this home."""
        try:
            with self.up_lock.open("r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True

    def prepare(self) -> Home:
        """Make every folder that is missing and return the home."""
        try:
            for folder in (
                self.incoming, self.artifacts, self.repository, self.archive, self.model_files, self.manifests,
                self.reports, self.workspaces, self.logs, self.broker, self.runtime,
            ):  # fmt: skip
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            from schemas.errors import UsageError

            raise UsageError(
                f"The home {self.root} cannot be used: {error.strerror} ({error.filename}).",
                hint="Give another folder with --home or MODELIUM_HOME.",
            ) from None
        return self


def runtime_root() -> Path:
    """Return this user's folder for sockets and locks, mode 0700.

    Raises:
        UsageError: Somebody else made it first.
    """
    root = Path(tempfile.gettempdir()) / f"modelium-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    info = root.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
        from schemas.errors import UsageError

        raise UsageError(f"{root} is not a private folder of this user.", hint="Remove it or set TMPDIR.")
    return root
