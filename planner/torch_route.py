"""Candidates for Triton's PyTorch backend."""

from __future__ import annotations

from planner.setting import Route, Setting, step
from planner.shape_of_work import own_precision
from schemas.catalog import CATALOG
from schemas.descriptor import Format
from schemas.plan import ORIGINAL, Candidate
from schemas.runtime import Runtime


def torch_route(setting: Setting) -> Route:
    """Return the TorchScript candidates."""
    route, descriptor = Route(), setting.descriptor
    if descriptor.format is Format.TORCHSCRIPT:
        route.candidates.append(
            Candidate(
                id=ORIGINAL,
                format=Format.TORCHSCRIPT,
                precision=own_precision(descriptor),
                steps=(),
                reason="It is TorchScript already and can be served as it is; others have to beat it.",
            )
        )
    if descriptor.format not in CATALOG["torch_torchscript"].takes:
        return route
    if setting.target.runtime is Runtime.TRITON and descriptor.format is not Format.TORCHSCRIPT:
        route.left_out.append(
            "TorchScript is left out: it runs the same kernels as the original, which ONNX graphs of it beat on a CPU."
        )
        return route
    trace = step("torch_torchscript", {}, "Records the graph and freezes its weights into it; no Python is left.")
    route.candidates.append(
        Candidate(
            id="torchscript",
            format=Format.TORCHSCRIPT,
            precision=own_precision(descriptor),
            steps=(trace,),
            reason="What Triton's PyTorch backend runs: the same operators as the original, without Python.",
        )
    )
    return route
