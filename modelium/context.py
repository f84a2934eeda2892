"""Context: the settings, home, database and store that commands and workers share in one process."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from modelium.home import Home, runtime_root
from modelium.settings import Settings
from schemas.errors import ModeliumError

if TYPE_CHECKING:
    from executor.find import SandboxOptions
    from executor.sandbox import Sandbox
    from executor.toolchain import Toolchain
    from ingestion.shared_artifacts import SharedArtifacts
    from ingestion.store import Store
    from modelium.db import Database


@dataclass(frozen=True)
class Context:
    """What a process works with. Parts are made on first use; none is carried across a fork."""

    settings: Settings
    _making: threading.RLock = field(default_factory=threading.RLock, init=False, repr=False, compare=False)

    @cached_property
    def home(self) -> Home:
        """The home, with its folders made."""
        return Home(self.settings.home).prepare()

    @property
    def is_new(self) -> bool:
        """Whether nothing was ever recorded in the home. A database elsewhere is never new."""
        return not self.settings.database_url and not self.home.database.exists()

    @cached_property
    def database(self) -> Database:
        """The database, migrated."""
        from modelium.db import Database

        database = Database(self.settings.database_url or f"sqlite:///{self.home.database}")
        database.migrate()
        return database

    @cached_property
    def store(self) -> Store:
        """The artifact store: the home's folder, in front of the bucket where one is set."""
        from ingestion.store import Store

        return Store(self.home.artifacts, shared=self._shared_artifacts())

    def _shared_artifacts(self) -> SharedArtifacts | None:
        if not self.settings.store_url:
            return None
        from ingestion.bucket import Bucket
        from ingestion.shared_artifacts import SharedArtifacts

        return SharedArtifacts(Bucket(self.settings.store_url, endpoint_url=self.settings.s3_endpoint_url))

    @property
    def sandbox(self) -> Sandbox:
        """The best sandbox of this machine, or the cluster's. Raises SandboxUnavailable."""
        with self._making:  # one, whichever thread asks first: it keeps processes to fork from
            return self._sandbox

    @cached_property
    def _sandbox(self) -> Sandbox:
        backend = self.settings.sandbox
        if backend == "kubernetes":
            from executor.find import find_kubernetes

            least = tuple(sorted(self.settings.require_isolation.least))
            return find_kubernetes(self.settings.placement(), self.home.workspaces, least)
        from executor import find_sandbox

        chosen = self.settings
        return find_sandbox(
            allow_none=chosen.allow_no_isolation, required=chosen.require_isolation.least, **self._sandbox_options()
        )

    def _sandbox_options(self) -> SandboxOptions:
        from executor.find import DockerOptions

        chosen = self.settings
        assert chosen.sandbox != "kubernetes"
        return {
            "backend": chosen.sandbox,
            "docker": DockerOptions(
                chosen.docker_host, chosen.sandbox_image, chosen.sandbox_runtime, chosen.sandbox_gpus
            ),
            "warm": chosen.warm(),
            "gpus": chosen.sandbox_gpus,
        }

    @property
    def _sandbox_to_be(self) -> Sandbox:
        """The sandbox, which nobody may have seen to isolate yet: enough to start what steps are forked from."""
        if self.settings.sandbox != "bubblewrap" and self.settings.sandbox != "auto":
            return self.sandbox
        from executor import make_sandbox

        return make_sandbox(**self._sandbox_options())

    @cached_property
    def trust(self) -> str:
        """The level of isolation that steps run under here, for the cache's keys.

        Finding it out starts sandboxes. For looking up what an earlier step gave, it is enough that a process found it
        out since the machine was started, under the same settings; nothing is ever run on that word.
        """
        stamp = [Path("/proc/sys/kernel/random/boot_id").read_text(), sorted(self.settings.environment().items())]
        path = self.home.runtime / "trust.json"
        with contextlib.suppress(OSError, ValueError, KeyError):
            kept = json.loads(path.read_text())
            if kept["stamp"] == json.loads(json.dumps(stamp)):
                return str(kept["level"])
        level = self.sandbox.isolation(self.settings.limits()).level
        if not self.settings.allow_no_isolation:  # then the next process may find a sandbox that this one did not
            aside = path.with_suffix(f".{os.getpid()}")
            aside.write_text(json.dumps({"stamp": stamp, "level": level}))
            aside.replace(path)
        return level

    def prepare(self, *toolchains: str) -> None:
        """Have ready, in a while, what steps of those that are complete start from; waits for nothing."""
        threading.Thread(target=self._prepare, args=(toolchains,), name="prepare", daemon=True).start()

    def _prepare(self, toolchains: Iterable[str]) -> None:
        import executor

        with contextlib.suppress(ModeliumError):  # whatever needs it says why it can't be had
            for toolchain in toolchains:
                if toolchain in self.toolchains:
                    executor.prepare(
                        self.toolchain(toolchain),
                        workspaces=self.home.workspaces,
                        sandbox=self._sandbox_to_be,
                        limits=self.settings.limits(),
                        threads=self.settings.threads,
                    )

    @property
    def toolchains(self) -> Installed:
        """The toolchains that are complete here."""
        return Installed(self)

    def toolchain(self, name: str) -> Toolchain:
        """Return the toolchain of that name: in the sandbox's image, or as the settings map it."""
        from executor.toolchain import Toolchain, remember_in

        if self.settings.sandbox_image and (carried := self.sandbox.carried(name)) is not None:
            interpreter, installed = carried
            return Toolchain(name, interpreter, installed)
        remember_in(runtime_root())
        return Toolchain(name=name, interpreter=self.settings.interpreter(name))


@dataclass(frozen=True)
class Installed:
    """The names of the complete toolchains; each is looked at when it is asked for, since that starts a process."""

    context: Context

    def __contains__(self, name: object) -> bool:
        from executor.toolchain import missing

        return isinstance(name, str) and missing(self.context.toolchain(name)) is None
