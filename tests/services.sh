#!/bin/sh
# Make ready what the tests need beside Python: distribution packages where we may install them, and a real Triton.
# What stays missing makes its tests skip with the reason; in CI it makes them fail.
set -eu
cd "$(dirname "$0")/.."
packages=
command -v redis-server >/dev/null || packages="$packages redis-server"
command -v chromium >/dev/null || packages="$packages chromium"
command -v dockerd >/dev/null || packages="$packages docker.io"
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || packages="$packages postgresql"
{ command -v ceph-mon && command -v ceph-osd && command -v radosgw; } >/dev/null || packages="$packages ceph-mon ceph-osd ceph-common radosgw"
if [ -n "$packages" ] && command -v apt-get >/dev/null; then
  line="apt-get install -y --no-install-recommends$packages"
  if [ "$(id -u)" = 0 ]; then sudo=; elif sudo -n true 2>/dev/null; then sudo=sudo; else sudo=none; fi
  if [ "$sudo" = none ]; then
    echo "services: tests of$packages will be skipped; for them run: sudo $line" >&2
  else
    $sudo apt-get update -qq && $sudo env DEBIAN_FRONTEND=noninteractive $line >/dev/null
  fi
fi
triton=${MODELIUM_TRITON_DIR:-.cache/triton}
if [ ! -e "$triton/.ready-backends" ]; then
  echo "services: setting up a Triton server in $triton"
  if PATH="$PWD/.venv/bin:$PATH" sh tests/tools/triton/setup.sh "$triton" backends; then touch "$triton/.ready-backends"
  else echo "services: no Triton here; its tests will be skipped" >&2; fi
fi
