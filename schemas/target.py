"""TargetProfile: what the model is for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from schemas.document import Document
from schemas.objective import Objective
from schemas.precision import Precision
from schemas.runtime import Runtime


class Tolerance(Document):
    """How far a candidate's outputs may be from the original's.

    A numeric output in fp32 passes when ``|candidate - original| <= atol + rtol * |original|`` everywhere
    (numpy.allclose's formula). For precisions that are lossy by nature it passes when the cosine of its worst row
    reaches ``min_cosine`` and no row's length is off by more than a tenth: over the real cases where there are any
    (samples, sentences), else over all. The formula decides there only for rows of a single number, which have no
    direction. Labels and strings pass when the share of equal values reaches ``min_agreement``, and so do the top
    classes of a lossy classifier. See ``converters/comparison.py``.
    """

    atol: float = Field(default=1e-4, ge=0, le=1.0)
    rtol: float = Field(default=1e-3, ge=0, le=1.0)
    min_cosine: float = Field(default=0.9999, ge=0.9, le=1)
    min_agreement: float = Field(default=1.0, ge=0.5, le=1)


DEFAULT_TOLERANCES: dict[Precision, Tolerance] = {
    # Reordered float32 arithmetic (fused kernels, another BLAS) differs in the last bits; 1e-3 relative is an order
    # above what transformers and CNNs show and two below what changes a decision.
    Precision.FP32: Tolerance(),
    # Half precision keeps 11 bits of mantissa: 2**-11 = 4.9e-4 a rounding, accumulated over the layers.
    Precision.FP16: Tolerance(atol=1e-2, rtol=1e-2, min_cosine=0.999, min_agreement=0.99),
    # The worst row of the built-in sentences: MiniLM with a scale per channel reaches .988 and keeps its ranking of
    # neighbours; with one scale per tensor it reaches .948 and does not.
    Precision.INT8: Tolerance(atol=5e-2, rtol=5e-2, min_cosine=0.98, min_agreement=0.97),
    # bfloat16 keeps 8 bits of mantissa: 2**-8 = 3.9e-3 a rounding; sums are kept in float32.
    Precision.BF16: Tolerance(atol=3e-2, rtol=3e-2, min_cosine=0.995, min_agreement=0.98),
    # Three bits of mantissa (e4m3) with a scale per channel lose about what int8 loses.
    Precision.FP8: Tolerance(atol=5e-2, rtol=5e-2, min_cosine=0.98, min_agreement=0.97),
    # Sixteen values a group: MiniLM's worst row reaches .967. A model that has to rank asks for more in its target.
    Precision.INT4: Tolerance(atol=1e-1, rtol=1e-1, min_cosine=0.95, min_agreement=0.95),
}


class TargetProfile(Document):
    """What the model is for. The default is this machine's CPU, served by Triton's onnxruntime backend in fp32."""

    schema_version: Literal[1] = 1
    hardware: Literal["cpu", "gpu"] = "cpu"
    runtime: Runtime = Runtime.TRITON_ONNXRUNTIME
    gpu_architectures: tuple[Annotated[str, Field(pattern=r"^sm_[0-9]{2,3}$")], ...] = Field(
        default=(), max_length=8, description="Compute capabilities that engines are built for, such as sm_86"
    )
    objective: Objective = Objective.LATENCY
    precisions: tuple[Precision, ...] = Field(default=(Precision.FP32,), min_length=1)
    batch_sizes: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(default=(1, 8), min_length=1, max_length=8)
    tolerances: dict[Precision, Tolerance] = Field(default_factory=dict)

    @field_validator("tolerances", mode="before")
    @classmethod
    def _complete(cls, given: object) -> object:
        """What a tolerance does not name is its precision's default, not float32's."""
        if not isinstance(given, dict):
            return given
        return {
            name: {**DEFAULT_TOLERANCES[Precision(name)].model_dump(), **value}
            if isinstance(value, dict) and name in set(Precision)
            else value
            for name, value in given.items()
        }

    def over(self, base: TargetProfile) -> TargetProfile:
        """Return ``base`` with what this profile names itself; what it leaves at its default is the base's."""
        return base.model_copy(update={name: getattr(self, name) for name in self.model_fields_set})

    def tolerance(self, precision: Precision) -> Tolerance:
        """Return the tolerance that holds for ``precision``: the target's own, else the documented default."""
        return self.tolerances.get(precision, DEFAULT_TOLERANCES[precision])
