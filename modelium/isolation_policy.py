"""IsolationPolicy: the isolation that must be enforced before a kind of input is opened."""

from __future__ import annotations

from pydantic import Field

from schemas.descriptor import Format, ModelDescriptor
from schemas.document import Document
from schemas.errors import SandboxUnavailable
from schemas.sidecar import Sidecar
from schemas.step_run import Isolation, Property

_ALL_THAT_HOLDS_EVERYWHERE: tuple[Property, ...] = ("own_user", "no_network", "read_only_root", "own_pids", "seccomp")
_PICKLED = frozenset({Format.PICKLE, Format.SKLEARN, Format.TORCH_MODULE})
_READS_BYTES_ONLY = frozenset({"analyze", "unpack"})


class IsolationPolicy(Document):
    """Names of Isolation's fields by kind of input; a bound (memory, processes, cpu) holds by a control group only."""

    own_code: tuple[Property, ...] = Field(default=_ALL_THAT_HOLDS_EVERYWHERE, description="A sidecar names Python")
    pickle: tuple[Property, ...] = Field(default=_ALL_THAT_HOLDS_EVERYWHERE, description="Loading calls what it names")
    weights: tuple[Property, ...] = Field(default=_ALL_THAT_HOLDS_EVERYWHERE, description="Everything else")

    @property
    def least(self) -> frozenset[str]:
        """What every kind of input needs: below it nothing runs at all."""
        return frozenset(self.own_code) & frozenset(self.pickle) & frozenset(self.weights)

    def check(
        self, isolation: Isolation, kind: str, sidecar: Sidecar | None, descriptor: ModelDescriptor | None
    ) -> None:
        """Raise SandboxUnavailable when a step of ``kind`` would run such a model under less than is required.

        With no isolation at all, which an operator has to insist on, there is nothing to compare.
        """
        what, required = self._required(kind, sidecar, descriptor)
        lacking = isolation.lacking(required)
        if lacking and isolation.backend != "none":
            raise SandboxUnavailable(
                f"Step {kind} opens {what}, and the {isolation.backend} sandbox here does not enforce: "
                f"{', '.join(lacking)}.",
                hint="Run it where `modelium doctor` shows that, or lower MODELIUM_REQUIRE_ISOLATION.",
            )

    def _required(
        self, kind: str, sidecar: Sidecar | None, descriptor: ModelDescriptor | None
    ) -> tuple[str, tuple[Property, ...]]:
        if kind not in _READS_BYTES_ONLY:
            if sidecar is not None and sidecar.module is not None:
                return "a model's own code", self.own_code
            if descriptor is not None and (descriptor.format in _PICKLED or descriptor.pickle_globals):
                return "a pickle", self.pickle
        return "a model", self.weights
