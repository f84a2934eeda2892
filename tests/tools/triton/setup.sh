#!/bin/bash
# Real tritonserver 2.51.0 on a CPU-only machine, from the nvidia-pytriton wheel (55 MB; 144 MB unpacked).
# usage: setup.sh DIR      Needs python3 with venv and a shared libpython (pyenv's has one; Debian's is libpython3.11).
# The wheel carries only the python backend. backends/onnxruntime/ below is a stand-in for NVIDIA's C++ one:
# the server, its config parser, schedulers and HTTP/gRPC front ends are the real ones.
set -eu
here=$(cd "$(dirname "$0")" && pwd); dir=$(mkdir -p "$1" && cd "$1" && pwd)
server=$dir/tsrv/pytriton/tritonserver
python=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
pip download -q --no-deps -d "$dir/wheel" nvidia-pytriton==0.7.0
rm -rf "$dir/tsrv"; python3 -m zipfile -e "$dir"/wheel/nvidia_pytriton-0.7.0-*.whl "$dir/tsrv"   # drops the run bits
cp "$server/python_backend_stubs/$python/triton_python_backend_stub" "$server/backends/python/"
chmod +x "$server/bin/tritonserver" "$server/backends/python/triton_python_backend_stub"
mkdir -p "$server/backends/onnxruntime"
cp "$here/onnxruntime_model.py" "$server/backends/onnxruntime/model.py"
# tritonclient[http] is what the snippets for users import.
# numpy 2 in the stub's environment gives silently wrong inputs: keep numpy<2 there, apart from the project's own venv.
[ -x "$dir/venv/bin/python" ] || { python3 -m venv "$dir/venv"; "$dir/venv/bin/pip" install -q 'numpy<2' onnxruntime 'tritonclient[http]==2.51.0'; }
