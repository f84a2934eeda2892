"""What a warm parent, its children and their host say to each other."""

from __future__ import annotations

REQUEST, REPORT, LOG, PROGRESS, FIRST_GROUP = range(5)
"""Where a request has its descriptors; after the groups come the mounts."""

MOST_DESCRIPTORS = 200
"""The kernel passes 253 at once."""

PROGRESS_DESCRIPTOR = 3
"""What a step writes its progress to."""

HERE, GO, READY = b"here", b"go", b"ready"
"""A child is in its control groups; the host knows it; it (or the parent) is set up."""

IDLE, BEGUN = b"idle\n", b"begun\n"
"""What waits has imported all; it has read what to run. A container writes them to its progress, before the step's."""

FORKABLE = frozenset({"onnx", "torch", "sklearn", "boosting", "openvino", "tensorflow", "tensorrt_rtx"})
"""Toolchains whose libraries were seen to work in a fork of the process that imported them."""
