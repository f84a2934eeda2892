"""Every setting, in one place; the one reader of the environment.

A setting is read from ``MODELIUM_<NAME>``; unknown ``MODELIUM_*`` variables are refused, because a misspelt setting
that does nothing is worse than an error.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from modelium.isolation_policy import IsolationPolicy
from schemas.errors import UsageError
from schemas.step_run import Limits
from schemas.target import TargetProfile

if TYPE_CHECKING:
    from executor.kubernetes_job import Placement
    from executor.warm_bounds import WarmBounds

PREFIX = "MODELIUM_"
NOT_SETTINGS = frozenset({"MODELIUM_TRITON_DIR"})
"""Variables with our prefix that belong to the tests."""


def _cores() -> int:
    return len(os.sched_getaffinity(0))


class Settings(BaseSettings):
    """Every setting with its default; the description is its documentation (``docs/settings.md`` repeats it)."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    home: Path = Field(
        default=Path("~/.modelium"), description="The folder everything lives in; the --home option wins over it"
    )
    database_url: str = Field(
        default="", description="SQLAlchemy URL, for example postgresql+psycopg2://...; empty: SQLite inside the home"
    )
    broker_url: str = Field(
        default="", description="Redis URL; empty: a Redis server of its own on a socket, ending with `modelium up`"
    )
    store_url: str = Field(
        default="",
        description="Bucket that workers on several machines share artifacts through, s3://bucket/prefix; its "
        "credentials are the usual AWS_* variables or profile; empty: a folder inside the home",
    )
    s3_endpoint_url: str = Field(
        default="", description="Where that bucket is served, for example https://s3.example.com; empty: Amazon"
    )
    workers: int = Field(
        default=2, ge=1, le=64, description="Steps that may run at once on the machine (measuring is always alone)"
    )
    threads: int = Field(
        default_factory=_cores,
        ge=1,
        le=512,
        description="Threads a step may use; every contender is timed with as many",
    )
    toolchains: dict[str, Path] = Field(
        default_factory=dict,
        description="Toolchain name to Python interpreter, as JSON; those not named use what "
        "`make setup TOOLCHAINS=...` made, else this interpreter",
    )
    target: TargetProfile = Field(
        default=TargetProfile(),
        description="What models are for unless a sidecar or a command says otherwise, as JSON: "
        '{"runtime": "triton", "precisions": ["fp32", "int8"]}',
    )
    sandbox: Literal["auto", "bubblewrap", "docker", "kubernetes"] = Field(
        default="auto", description="What steps run in: bubblewrap, docker, kubernetes; auto is bubblewrap"
    )
    docker_host: str = Field(
        default="unix:///var/run/docker.sock", description="Socket of the Docker engine, which must be on this machine"
    )
    sandbox_image: str = Field(
        default="",
        description="Image of step sandboxes. Docker: by name or id, as `make image` builds it; empty: a bare one that "
        "shows this machine's toolchains. Kubernetes: by digest, with each interpreter at the path it has here",
    )
    sandbox_runtime: str = Field(
        default="", description="Container runtime, or runtime class in Kubernetes (gVisor, Kata); empty: the default"
    )
    sandbox_gpus: Annotated[tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9:._-]+$")], ...], NoDecode] = Field(
        default=(),
        description="Comma-separated GPUs of which a step that needs one gets the first: numbers (bubblewrap), or ids "
        "as NVIDIA's runtime has them (Docker); empty: of all",
    )
    require_isolation: IsolationPolicy = Field(
        default=IsolationPolicy(),
        description="What `modelium doctor` must show before a model's own code, a pickle or plain weights are opened, "
        'as JSON: {"own_code": ["own_user", "no_network", "read_only_root", "own_pids", "seccomp", "memory"]}',
    )
    allow_no_isolation: bool = Field(
        default=False, description="Run steps without any sandbox when none can be had; never on files you did not make"
    )
    kubernetes_workspace_claim: str = Field(
        default="",
        description="The ReadWriteMany claim, in `namespace`, that workers mount as their home and steps see parts of",
    )
    kubernetes_seccomp_profile: str = Field(
        default="",
        description="Profile below each kubelet's seccomp folder for steps; empty: the container runtime's default",
    )
    kubernetes_gpu_resource: str = Field(
        default="nvidia.com/gpu",
        pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$",
        description="The resource that the pod of a step asks for which needs a GPU, as the device plugin names it",
    )
    allowed_pickle_globals: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Comma-separated module.name globals allowed in pickles beside the built-in list"
    )
    memory_bytes: int = Field(
        default=0,
        ge=0,
        description="Memory that steps may reserve together on the machine; 0: all it has, less an eighth or 2 GiB",
    )
    step_memory_bytes: int = Field(default=8 << 30, ge=256 << 20, description="Memory one step may use")
    step_timeout_s: float = Field(default=900, gt=0, description="Seconds one step may run")
    step_processes: int = Field(default=512, ge=16, description="Processes and threads one step may have")
    step_workspace_bytes: int = Field(default=20 << 30, ge=1 << 20, description="Bytes one step may write")
    warm_parents: int = Field(
        default=3,
        ge=0,
        le=16,
        description="Toolchains that a process which runs steps keeps imported, so that steps start at once; "
        "0: every step starts anew",
    )
    warm_memory_bytes: int = Field(
        default=1 << 30, ge=64 << 20, description="Memory that the imported toolchains of one process may hold together"
    )
    warm_idle_s: float = Field(default=120, gt=0, description="An imported toolchain ends when unused for so long")
    convert_budget_s: float = Field(
        default=300,
        gt=0,
        description="Seconds of converting after which candidates that cannot win (a precision the target does not "
        "allow, or no real samples to prove it on) are left out",
    )
    measure_rounds: int = Field(
        default=15, ge=3, le=200, description="Most rounds of timing; they end once the order is clear"
    )
    measure_budget_s: float = Field(
        default=30, gt=0, le=3600, description="Seconds of timing after which rounds stop early"
    )
    lease_s: float = Field(default=15, gt=0.5, description="A worker silent for so long has lost its job to another")
    max_deliveries: int = Field(
        default=3, ge=1, le=20, description="Workers that may die over one stage of a job before the job fails"
    )
    settle_s: float = Field(
        default=2, ge=0, description="A file whose end of writing was not seen is complete after it"
    )
    folder_quiet_s: float = Field(default=5, ge=0, description="A folder is complete after so many quiet seconds")
    rescan_s: float = Field(default=60, gt=0, description="Seconds between full scans of the watched folder")
    keep_versions: int = Field(default=2, ge=1, le=100, description="Versions of a deployment kept in the repository")
    triton_url: str = Field(default="", description="A Triton that serves the repository, for health; empty: unknown")
    storage_uri: str = Field(
        default="pvc://modelium-models", description="Where a cluster finds the model repository, for KServe manifests"
    )
    namespace: str = Field(default="default", description="Kubernetes namespace of the manifests, and of steps")
    llama_cpp_image: str = Field(
        default="llama.cpp:server", description="Image of llama.cpp's server, as your cluster's registry has it"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least level logged")
    log_format: Literal["text", "json"] = Field(default="text", description="One line a record, for people or machines")

    @field_validator("allowed_pickle_globals", "sandbox_gpus", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("store_url")
    @classmethod
    def _bucket(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme != "s3" or not parts.netloc or "@" in parts.netloc or parts.query or parts.fragment):
            raise ValueError("it is s3://bucket/prefix, and credentials stand in AWS_* variables or a profile only")
        return value

    @field_validator("s3_endpoint_url")
    @classmethod
    def _endpoint(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc):
            raise ValueError("it is http://host:port or https://host, without a name and a password")
        return value

    @model_validator(mode="after")
    def _no_secrets_to_steps(self) -> Settings:
        if self.store_url and self.allow_no_isolation:
            raise ValueError(
                "MODELIUM_STORE_URL and MODELIUM_ALLOW_NO_ISOLATION exclude each other: a step without isolation could "
                "read the bucket's credentials and write what other machines reuse"
            )
        return self

    @field_validator("home")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("toolchains")
    @classmethod
    def _all_absolute(cls, value: dict[str, Path]) -> dict[str, Path]:
        return {name: path.expanduser().absolute() for name, path in value.items()}

    def limits(self) -> Limits:
        """Return the limits of an ordinary step."""
        return Limits(
            memory_bytes=self.step_memory_bytes,
            cpus=float(self.threads),
            processes=self.step_processes,
            timeout_s=self.step_timeout_s,
            workspace_bytes=self.step_workspace_bytes,
        )

    def placement(self) -> Placement:
        """Return where in a cluster steps run. Raises UsageError for what is not set."""
        from executor.kubernetes_job import Placement

        return Placement(
            namespace=self.namespace,
            image=self.sandbox_image,
            claim=self.kubernetes_workspace_claim,
            home=self.home.resolve(),
            runtime_class=self.sandbox_runtime,
            seccomp_profile=self.kubernetes_seccomp_profile,
            gpu_resource=self.kubernetes_gpu_resource,
        )

    def warm(self) -> WarmBounds:
        """Return how much the imported toolchains of one process may take."""
        from executor.warm_bounds import WarmBounds
        from modelium.machine_lease import rest, spare_place

        return WarmBounds(self.warm_parents, self.warm_memory_bytes, self.warm_idle_s, spare_place, rest)

    def interpreter(self, toolchain: str) -> Path:
        """Return the interpreter of ``toolchain``."""
        from executor.toolchain import beside

        return self.toolchains.get(toolchain) or beside(Path(sys.prefix), toolchain) or Path(sys.executable)

    def environment(self) -> dict[str, str]:
        """Return the variables that make a child process read these same settings."""
        defaults = {name: field.get_default(call_default_factory=True) for name, field in Settings.model_fields.items()}
        changed = {n: v for n, v in self.model_dump(mode="json").items() if getattr(self, n) != defaults[n]}
        changed["home"] = str(self.home)
        return {f"{PREFIX}{name.upper()}": _as_variable(name, value) for name, value in changed.items()}


def adopt(chosen: Settings) -> None:
    """Make this process, and every one it starts, load exactly ``chosen``."""
    for variable in [name for name in os.environ if name.startswith(PREFIX) and name not in NOT_SETTINGS]:
        del os.environ[variable]
    os.environ.update(chosen.environment())


def _as_variable(name: str, value: object) -> str:
    import json

    if name in ("allowed_pickle_globals", "sandbox_gpus") and isinstance(value, list):
        return ",".join(value)
    return json.dumps(value) if isinstance(value, dict | list | bool) else str(value)


def load(environ: Mapping[str, str] | None = None, **overrides: object) -> Settings:
    """Return the settings of this process. Raises UsageError for an unknown variable or a bad value."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | NOT_SETTINGS
    variables = os.environ if environ is None else environ
    for variable in sorted(v for v in variables if v.startswith(PREFIX) and v not in known):
        near = difflib.get_close_matches(variable, known, n=1)
        hint = f"Did you mean {near[0]}?" if near else "`modelium doctor` lists every setting."
        raise UsageError(f"There is no setting {variable}.", hint=hint)
    try:
        return Settings(**{k: v for k, v in overrides.items() if v is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = f"{PREFIX}{str(first['loc'][0]).upper()}" if first["loc"] else "What is set together"
        reason = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{name} is not valid: {reason}.", hint="docs/settings.md describes each.") from None
