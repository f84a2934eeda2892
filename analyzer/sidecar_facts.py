"""Merge what a person says beside a model into what the model says itself."""

from __future__ import annotations

from analyzer.draft import Draft, listing
from schemas.descriptor import KnownBy, TensorSpec
from schemas.errors import NeedsInput
from schemas.sidecar import Sidecar


def merge(draft: Draft, sidecar: Sidecar | None) -> None:
    """Record the sidecar's facts. Task, licence and labels override; inputs must agree with what a header declares.

    Raises NeedsInput when they do not.
    """
    if sidecar is None:
        return
    draft.know(KnownBy.SIDECAR, task=sidecar.task, license=sidecar.license, labels=sidecar.labels)
    if not sidecar.inputs:
        return
    said = tuple(
        TensorSpec(name=i.name, dtype=i.dtype, shape=i.shape, known_by=KnownBy.SIDECAR) for i in sidecar.inputs
    )
    declared: tuple[TensorSpec, ...] = draft.facts.get("inputs", ())
    if draft.known_by.get("inputs") is KnownBy.HEADER:
        _agree({spec.name: spec for spec in declared}, said)
        order = {spec.name: place for place, spec in enumerate(declared)}
        said = tuple(sorted(said, key=lambda spec: order[spec.name]))
    draft.know(KnownBy.SIDECAR, inputs=said)


def _agree(declared: dict[str, TensorSpec], said: tuple[TensorSpec, ...]) -> None:
    if set(declared) != {spec.name for spec in said} or len(said) != len(declared):
        raise NeedsInput(
            f"Which inputs does this model take? The sidecar names {listing([s.name for s in said])}, the model itself "
            f"declares {listing(declared)}.",
            hint="Correct `inputs` in the sidecar, or leave it out.",
        )
    for spec in said:
        own = declared[spec.name]
        fits = len(own.shape) == len(spec.shape) and all(
            not isinstance(fixed, int) or fixed == dim for fixed, dim in zip(own.shape, spec.shape, strict=True)
        )
        if not fits or own.dtype != spec.dtype:
            raise NeedsInput(
                f"What is the shape of input {spec.name!r}? The sidecar says {spec.dtype} {list(spec.shape)}, the "
                f"model declares {own.dtype} {list(own.shape)}.",
                hint="Correct `inputs` in the sidecar, or leave it out.",
            )
