"""What a warm parent, its children and their host say to each other."""

from __future__ import annotations

REPORT, LOG, PROGRESS, FIRST_GROUP = range(4)
"""Where what asks for a child has its descriptors; the rest are control groups."""

REQUEST, FIRST_MOUNT = range(2)
"""Where what tells a child its step has its descriptors; the rest are mounts."""

MOST_DESCRIPTORS = 200
"""The kernel passes 253 at once."""

PROGRESS_DESCRIPTOR = 3
"""What a step writes its progress to."""

DONE_DESCRIPTOR, DONE_VARIABLE = 4, "MODELIUM_DONE_FD"
"""Where a step says that it is done, before the kernel takes its memory apart, and the variable with the number."""

HERE, GO, READY = b"here", b"go", b"ready"
"""A child is in its control groups; it may go on, to its namespaces and then to its step; it (or the parent) has."""

IDLE, BEGUN = b"idle\n", b"begun\n"
"""What waits has imported all; it has read what to run. A container writes them to its progress, before the step's."""

FORKABLE = frozenset({"onnx", "torch", "sklearn", "boosting", "openvino", "tensorflow", "tensorrt_rtx"})
"""Toolchains whose libraries were seen to work in a fork of the process that imported them."""
