"""Build the sandbox's image: `make image`, `make image TOOLCHAINS="openvino boosting" BASE=python:3.11-slim`.

Without BASE the image is made of this interpreter and the libraries that it needs: no registry is asked for anything.
Wheels come from pip, outside; the build itself has no network. Prints the name that MODELIUM_SANDBOX_IMAGE takes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from pathlib import Path

from executor.docker_image import TOOLCHAINS_LABEL
from executor.inside import PASSWD
from executor.toolchain import DEFAULT, NEEDED, PROBE

HERE = Path(__file__).parent
CHECKOUT = HERE.parent.parent
CACHE = CHECKOUT / ".cache" / "image"
BASE = "modelium-base"
CHILD = ("pydantic", "pyyaml", "jsonschema")
"""What our own packages need inside, beside the libraries of a toolchain."""
LIBRARIES = {
    *("libstdc++.so.6", "libgomp.so.1", "libgcc_s.so.1", "libz.so.1", "libc.so.6", "libm.so.6", "libmvec.so.1"),
    *("libdl.so.2", "libpthread.so.0", "librt.so.1", "libutil.so.1", "libresolv.so.2", "libanl.so.1"),
}
"""What wheels expect of any system, beside what the interpreter needs."""
LOAD = """
import importlib, importlib.metadata as metadata, sys
for module, distributions in metadata.packages_distributions().items():
    if set(distributions) & set(sys.argv[1:]) and module.isidentifier() and not module.startswith("_"):
        importlib.import_module(module)
"""
"""Imports all of some distributions: what they lack of the system shows here, not in a person's first step."""
LEFT_OUT = {"test", "idlelib", "tkinter", "lib2to3", "turtledemo", "site-packages", "__pycache__"}


def main() -> None:
    """Build it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="", help="an image with Python in /usr/local that the engine has")
    parser.add_argument("--tag", default="modelium-sandbox:latest")
    parser.add_argument("--docker", default="docker", help="the client, with options: 'docker -H unix:///...'")
    parser.add_argument(
        "toolchains", nargs="*", choices=[*sorted(set(NEEDED) - DEFAULT), []], help="beside the default"
    )
    chosen = parser.parse_args()
    docker, began = chosen.docker.split(), time.monotonic()
    environments = {"default": requirements()} | {name: pins(name) for name in chosen.toolchains}
    for name, wanted in environments.items():
        fetch(name, wanted)
    base = chosen.base or make_base(docker)
    with tempfile.TemporaryDirectory(prefix="modelium-image-") as folder:
        context = Path(folder)
        for file in ("Dockerfile", "install.py"):
            shutil.copy(HERE / file, context)
        for name in environments:
            shutil.copytree(CACHE / "wheels" / name, context / "wheels" / name, copy_function=link)
        build(docker, context, "-t", chosen.tag, "--build-arg", f"BASE={base}")
    label = json.dumps({name: told(docker, chosen.tag, name) for name in [*sorted(DEFAULT), *chosen.toolchains]})
    with tempfile.TemporaryDirectory(prefix="modelium-image-") as folder:
        Path(folder, "Dockerfile").write_text(f"FROM {chosen.tag}\n")
        build(docker, Path(folder), "-t", chosen.tag, "--label", f"{TOOLCHAINS_LABEL}={label}")
    size = json.loads(output([*docker, "image", "inspect", chosen.tag]))[0]["Size"]
    print(f"{chosen.tag}: {size / 1e9:.2f} GB in {time.monotonic() - began:.0f} s; MODELIUM_SANDBOX_IMAGE={chosen.tag}")


def build(docker: list[str], context: Path, *options: str) -> None:
    """Run one build; the classic builder is part of every engine."""
    command = [*docker, "build", "-q", "--network", "none", "--force-rm", *options, str(context)]
    subprocess.run(command, check=True, env=os.environ | {"DOCKER_BUILDKIT": "0"})


def output(command: list[str]) -> str:
    """Return what a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def requirements() -> list[str]:
    """Return what the default toolchains need, as pyproject.toml says it."""
    extras = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = [line for name in sorted(DEFAULT) for line in extras[name] if not line.startswith("modelium[")]
    return [*CHILD, *found]


def pins(toolchain: str) -> list[str]:
    """Return the exact versions of a toolchain with an environment of its own."""
    lines = (CHECKOUT / "executor" / "toolchains" / f"{toolchain}.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def fetch(name: str, wanted: list[str]) -> None:
    """Fetch the wheels of one environment, or make them of sources; nothing when they are there."""
    folder = CACHE / "wheels" / name
    stamp = folder / "wanted.txt"
    if stamp.exists() and stamp.read_text().splitlines() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q", "-w", str(folder)]
    if name == "default":
        constraints = ["-c", str(CHECKOUT / "constraints.txt")]
        # torch alone and first: its exact version takes a CPU build wherever the package index has one.
        torch = [line for line in wanted if line.startswith("torch==")]
        subprocess.run([*pip, *constraints, *torch], check=True)
        subprocess.run([*pip, *constraints, "--find-links", str(folder), *wanted], check=True)
    else:
        subprocess.run([*pip, "--no-deps", *wanted], check=True)
    stamp.write_text("\n".join(wanted))


def make_base(docker: list[str]) -> str:
    """Import an image of this interpreter in /usr/local, a shell, and the libraries that both need."""
    prefix = Path(sys.base_prefix)
    python = Path(f"{prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}")
    library = prefix / "lib" / python.name
    shell = Path("/bin/sh").resolve()
    printed = output(["/sbin/ldconfig", "-p"])
    wanted = [Path(line.split("=> ")[1]) for line in printed.splitlines() if line.split()[0] in LIBRARIES]
    needed = libraries_of([python, shell, *library.glob("lib-dynload/*.so"), *wanted]) | set(wanted)
    with tempfile.NamedTemporaryFile(suffix=".tar") as sink:
        with tarfile.open(fileobj=sink, mode="w") as archive:
            archive.add(python.resolve(), f"usr/local/bin/{python.name}")
            for name in ("python3", "python"):
                archive.addfile(link_to(f"usr/local/bin/{name}", python.name))
            for path in sorted(library.iterdir()):
                if path.name not in LEFT_OUT and not path.name.startswith("config-"):
                    archive.add(path, f"usr/local/lib/{python.name}/{path.name}", filter=without_caches)
            archive.add(shell, "bin/sh")
            for path in sorted(needed):
                if path.is_relative_to(prefix):  # where every loader looks
                    archive.add(path.resolve(), f"usr/lib/{path.name}")
                else:
                    archive.add(path.resolve(), str(path).lstrip("/"))
            passwd = Path(sink.name).with_suffix(".passwd")
            passwd.write_bytes(PASSWD)
            archive.add(passwd, "etc/passwd")
            passwd.unlink()
            temporary = tarfile.TarInfo("tmp")
            temporary.type, temporary.mode = tarfile.DIRTYPE, 0o1777
            archive.addfile(temporary)
        sink.flush()
        path = "ENV PATH=/usr/local/bin:/usr/bin:/bin"
        subprocess.run([*docker, "import", "-c", path, sink.name, BASE], check=True, stdout=subprocess.DEVNULL)
    return BASE


def libraries_of(binaries: list[Path]) -> set[Path]:
    """Return the shared libraries that binaries load, and those that these load."""
    printed = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=False).stdout
    return {Path(found) for found in re.findall(r"(/\S+) \(0x", printed)}


def without_caches(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave compiled files out that are for this machine's paths; the build makes them anew."""
    return None if "__pycache__" in member.name else member


def link_to(name: str, target: str) -> tarfile.TarInfo:
    """Return a symbolic link as a member of an archive."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


def link(source: str, place: str) -> None:
    """Put a wheel into the build's context without copying it, where the file system can."""
    try:
        Path(place).hardlink_to(source)
    except OSError:
        shutil.copy2(source, place)


def told(docker: list[str], image: str, toolchain: str) -> dict[str, object]:
    """Ask the image's interpreter of a toolchain what is installed beside it."""
    interpreter = f"/opt/toolchains/{'default' if toolchain in DEFAULT else toolchain}/bin/python"
    command = [*docker, "run", "--rm", "--network", "none", "--entrypoint", interpreter, image, "-P", "-s", "-c"]
    answer = json.loads(output([*command, PROBE, *NEEDED[toolchain]]))
    lacking = [name for name in NEEDED[toolchain] if name not in answer["versions"]]
    if lacking:
        sys.exit(f"image: the {toolchain} toolchain in it lacks {', '.join(lacking)}.")
    subprocess.run([*command, LOAD, *NEEDED[toolchain]], check=True)
    return {"interpreter": interpreter, "versions": answer["versions"]}


if __name__ == "__main__":
    main()
