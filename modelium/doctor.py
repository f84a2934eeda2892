"""Doctor: what this machine can do, found out by trying, each with how to mend it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from modelium import broker
from modelium.context import Context
from schemas.catalog import GPU_FORMATS, SERVED_FORMATS
from schemas.errors import ModeliumError, ToolchainMissing
from schemas.step_run import Isolation

LEAST_FREE_BYTES = 5 << 30
CLOCK_SKEW_S = 600


@dataclass(frozen=True)
class Check:
    """One finding: ``fail`` stops Modelium from working, ``warn`` takes something away."""

    name: str
    level: Literal["ok", "warn", "fail"]
    found: str
    mend: str = ""

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


def examine(context: Context) -> Iterator[Check]:
    """Yield every check, as soon as it is done."""
    yield _python()
    yield _guarded("home", lambda: Check("home", "ok", str(context.home.root)))
    from executor.toolchain import NEEDED

    for name in NEEDED:
        yield _guarded(f"toolchain {name}", lambda name=name: _toolchain(context, name))  # type: ignore[misc]
    yield _guarded("isolation", lambda: _isolation(context))
    yield _guarded("warm starts", lambda: _warm_starts(context))
    yield _guarded("broker", lambda: _broker(context))
    yield _guarded("database", lambda: _database(context))
    if context.settings.store_url:
        yield _guarded("bucket", lambda: _bucket(context))
    yield _guarded("gpu", lambda: _gpu(context))
    yield _guarded("disk", lambda: _disk(context))


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except ModeliumError as error:
        return Check(name, "fail", str(error.args[0]), error.hint)


def _python() -> Check:
    found = f"{sys.version.split()[0]} at {sys.executable}"
    return Check("python", "ok", found)


def _toolchain(context: Context, name: str) -> Check:
    from executor.toolchain import DEFAULT, NEEDED, mending, missing, versions

    toolchain = context.toolchain(name)
    label = f"toolchain {name}"
    lacking = missing(toolchain)
    if lacking and name not in DEFAULT and toolchain.interpreter == Path(sys.executable):
        return Check(label, "ok", "not installed; optional", mending(toolchain))
    if lacking:
        return Check(label, "warn", lacking, mending(toolchain))
    has = versions(toolchain)
    return Check(label, "ok", ", ".join(f"{k} {has[k]}" for k in ("python", *NEEDED[name])))


def _isolation(context: Context) -> Check:
    found: Isolation = context.sandbox.isolation(context.settings.limits())
    held = [
        f"memory by {found.memory}",
        f"processes by {found.processes}",
        f"CPU by {found.cpu}",
        *(["no network"] if found.no_network else []),
        *(["read-only root"] if found.read_only_root else []),
        *(["own user"] if found.own_user else []),
        *(["own processes"] if found.own_pids else []),
        *(["seccomp"] if found.seccomp else []),
        *([f"Landlock {found.landlock}"] if found.landlock else []),
        *([f"run by {found.runtime}"] if found.runtime else []),
        *([f"image {found.image}"] if found.image else []),
    ]
    whole = all((found.no_network, found.read_only_root, found.own_user, found.own_pids, found.seccomp))
    notes = " ".join(found.notes)
    return Check("isolation", "ok" if whole else "warn", f"{found.backend}: {', '.join(held)}", notes)


def _warm_starts(context: Context) -> Check:
    from executor.bwrap_sandbox import BwrapSandbox
    from executor.docker_sandbox import DockerSandbox
    from executor.execution import step_environment

    sandbox, toolchain = context.sandbox, context.toolchain("onnx")
    if not isinstance(sandbox, BwrapSandbox | DockerSandbox):
        return Check("warm starts", "ok", f"none; the sandbox {sandbox.name} starts every step anew")
    if not context.settings.warm_parents:
        return Check("warm starts", "ok", "switched off; every step starts anew", "Unset MODELIUM_WARM_PARENTS.")
    variables = step_environment(context.settings.threads, toolchain.name)
    took_s = sandbox.try_warm(toolchain.name, toolchain.interpreter, variables)
    if isinstance(took_s, str):
        return Check("warm starts", "warn", f"none, which costs each step a second or more: {took_s}")
    return Check("warm starts", "ok", f"an empty step took {took_s * 1000:.0f} ms, and is confined like any other")


def _broker(context: Context) -> Check:
    if context.settings.broker_url:
        import redis

        try:
            redis.Redis.from_url(context.settings.broker_url).ping()
        except redis.RedisError as error:
            return Check(
                "broker", "fail", str(error), "Start Redis, or unset MODELIUM_BROKER_URL to use the embedded one."
            )
        return Check("broker", "ok", context.settings.broker_url.rsplit("@", 1)[-1])
    running = "running" if context.home.is_up() else "starts with `modelium up`"
    return Check("broker", "ok", f"embedded, {broker.server_binary()}, {running}")


def _database(context: Context) -> Check:
    from modelium.db import HEAD

    engine = context.database.engine
    return Check("database", "ok", f"{engine.url.render_as_string(hide_password=True)}, revision {HEAD}")


def _bucket(context: Context) -> Check:
    shared = context.store.shared
    assert shared is not None
    began = time.monotonic()
    skew_s = shared.bucket.try_out()
    took_ms = (time.monotonic() - began) * 1000
    found = f"{shared.bucket.url}: written, read, listed and removed in {took_ms:.0f} ms"
    if abs(skew_s) > CLOCK_SKEW_S:
        return Check("bucket", "warn", f"{found}; its clock is {skew_s:+.0f} s from here", "Set this machine's clock.")
    return Check("bucket", "ok", found)


def _gpu(context: Context) -> Check:
    """Say whether a step that needs a GPU can run in this sandbox, found out by asking CUDA in it."""
    from executor.gpu_probing import gpus_in

    sandbox, target = context.sandbox, context.settings.target
    if sandbox.name == "kubernetes":
        resource = context.settings.kubernetes_gpu_resource
        return Check("gpu", "ok", f"a step that needs one asks for {resource}; not tried, as a pod may have to wait")
    try:
        found = gpus_in(sandbox, context.toolchain("onnx").interpreter)
    except ToolchainMissing as error:
        asked_for = target.hardware == "gpu" or SERVED_FORMATS[target.runtime] <= GPU_FORMATS
        wanted = asked_for or shutil.which("nvidia-smi") is not None
        end = "" if wanted else " Nothing here needs one."
        return Check("gpu", "warn" if wanted else "ok", f"{error.args[0]}{end}", error.hint if wanted else "")
    return Check("gpu", "ok", f"{_gpu_names()}; CUDA finds {found} in {sandbox.name}, when a step needs one")


def _gpu_names() -> str:
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "one that nvidia-smi does not tell of"
    return "; ".join(done.stdout.strip().splitlines())[:200]


def _disk(context: Context) -> Check:
    free = shutil.disk_usage(context.home.root).free
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = f"{free / 1e9:.1f} GB free, {memory / 1e9:.1f} GB of memory, {len(os.sched_getaffinity(0))} cores"
    if free < LEAST_FREE_BYTES:
        return Check("disk", "warn", found, "`modelium gc` frees what finished jobs left.")
    return Check("disk", "ok", found)
