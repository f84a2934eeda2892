#!/bin/bash
# Real tritonserver 2.51.0 on a CPU-only machine, from the nvidia-pytriton wheel (55 MB; 144 MB unpacked).
# usage: setup.sh DIR [backends]      Needs python3 with venv and a shared libpython (pyenv's has one; Debian's is libpython3.11).
# The wheel carries only the python backend. backends/onnxruntime/ below, and with "backends" also backends/openvino/
# and backends/pytorch/, are stand-ins for NVIDIA's C++ ones: the server, its config parser, schedulers and HTTP/gRPC
# front ends are the real ones.
set -eu
here=$(cd "$(dirname "$0")" && pwd); dir=$(mkdir -p "$1" && cd "$1" && pwd)
server=$dir/tsrv/pytriton/tritonserver
python=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
pip download -q --no-deps -d "$dir/wheel" nvidia-pytriton==0.7.0
rm -rf "$dir/tsrv"; python3 -m zipfile -e "$dir"/wheel/nvidia_pytriton-0.7.0-*.whl "$dir/tsrv"   # drops the run bits
cp "$server/python_backend_stubs/$python/triton_python_backend_stub" "$server/backends/python/"
chmod +x "$server/bin/tritonserver" "$server/backends/python/triton_python_backend_stub"
for backend in onnxruntime openvino pytorch; do
  mkdir -p "$server/backends/$backend"
  cp "$here/${backend}_model.py" "$server/backends/$backend/model.py"
done
# tritonclient[http] is what the snippets for users import.
# numpy 2 in the stub's environment gives silently wrong inputs: keep numpy<2 there, apart from the project's own venv.
[ -x "$dir/venv/bin/python" ] || { python3 -m venv "$dir/venv"; "$dir/venv/bin/pip" install -q 'numpy<2' onnxruntime 'tritonclient[http]==2.51.0'; }
# About 1 GB, for two stand-ins that import what they stand in for; torch in this spelling is the CPU build.
[ "${2:-}" != backends ] || "$dir/venv/bin/pip" install -q 'numpy<2' torch==2.13.0 openvino==2026.4.1
