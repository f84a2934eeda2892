#!/bin/sh
# Make .venv with everything this checkout needs. Idempotent: does nothing when nothing changed.
# usage: setup.sh [dev]      PYTHON=python3.12 setup.sh     to choose the interpreter
#        TOOLCHAINS="openvino boosting" setup.sh            more toolchains, each in an environment of its own
set -eu
cd "$(dirname "$0")"
python=${PYTHON:-python3}
extras=torch,sklearn,docker,examples
[ "${1:-}" = dev ] && extras=$extras,dev

fail() { echo "setup: $1" >&2; exit 1; }
command -v "$python" >/dev/null || fail "there is no $python; install Python 3.11 or newer."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$("$python" -V) is too old; Modelium needs 3.11 or newer."

# What the distribution has to provide: the sandbox, its system-call filter, and virtual environments.
packages=
command -v bwrap >/dev/null || packages="$packages bubblewrap"
command -v setpriv >/dev/null || packages="$packages util-linux"
"$python" -c 'import ctypes.util, sys; sys.exit(ctypes.util.find_library("seccomp") is None)' || packages="$packages libseccomp2"
"$python" -c 'import ensurepip, venv' 2>/dev/null || packages="$packages python3-venv"
if [ -n "$packages" ]; then
  line="apt-get install -y --no-install-recommends$packages"
  if ! command -v apt-get >/dev/null; then fail "install with your package manager:$packages"
  elif [ "$(id -u)" = 0 ]; then sudo=
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo=sudo
  else fail "run this once, then again make: sudo $line"; fi
  $sudo apt-get update -qq && $sudo env DEBIAN_FRONTEND=noninteractive $line
fi

own_environment() {
  pins=executor/toolchains/$1.txt folder=.toolchains/$1
  [ -f "$pins" ] || fail "there is no toolchain $1; choose from: $(ls executor/toolchains | sed -n 's/[.]txt$//p' | tr '\n' ' ')"
  stamp=$(sha256sum < "$pins" | cut -c1-16)
  [ "$(cat "$folder/.ready" 2>/dev/null)" = "$stamp" ] && return
  rm -rf "$folder"
  "$python" -m venv "$folder"
  echo "setup: installing the $1 toolchain into $folder"
  "$folder/bin/python" -m pip --disable-pip-version-check install -q --no-deps -r "$pins"
  echo "$stamp" > "$folder/.ready"
}

main_environment() {
  stamp=$(cat pyproject.toml constraints.txt setup.sh | sha256sum | cut -c1-16)
  have=$(cat .venv/.ready 2>/dev/null || true)
  case " $have " in *" $stamp:$extras "*) return;; esac
  # An environment with the development extras serves everything else too.
  [ "$extras" = "${extras%,dev}" ] && case " $have " in *" $stamp:"*) return;; esac

  free=$(df -Pk . | awk 'NR==2 {print $4}')
  [ "$free" -gt 4194304 ] || [ -d .venv ] || fail "this needs about 4 GB of disk; $((free / 1024)) MB are free here."
  [ -x .venv/bin/python ] && .venv/bin/python -c '' 2>/dev/null || { rm -rf .venv; "$python" -m venv .venv; }
  pip=".venv/bin/python -m pip --disable-pip-version-check"
  echo "setup: installing into .venv (torch, transformers, onnxruntime, scikit-learn; a few minutes)"
  # torch alone and first: its exact version takes a CPU build wherever the package index has one.
  $pip install -q -c constraints.txt torch==2.13.0
  $pip install -q -c constraints.txt -e ".[$extras]"
  echo "$stamp:$extras" > .venv/.ready
  echo "setup: done"
}

main_environment
for toolchain in ${TOOLCHAINS:-}; do own_environment "$toolchain"; done
# Sandboxes see this checkout read-only, and would compile it at every start.
.venv/bin/python -m compileall -q analyzer converters executor schemas
