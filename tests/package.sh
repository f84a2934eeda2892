#!/bin/sh
# Build the wheel and test it, not the checkout, in an environment of its own.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
.venv/bin/python -m build --wheel --sdist --outdir "$work/dist" . >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
.venv/bin/python -m venv "$work/venv"
# The control plane alone: no toolchain, so that an import of one is an error.
"$work/venv/bin/pip" install -q --disable-pip-version-check -c constraints.txt "$work"/dist/*.whl pytest pytest-timeout hypothesis
cp -r tests "$work/tests"
cp pyproject.toml "$work/"
cd "$work"
MODELIUM_PACKAGED=1 "$work/venv/bin/pytest" -q -c pyproject.toml --rootdir "$work" tests/test_packaging.py
"$work/venv/bin/modelium" --version
