"""Evidence: parity, latency, throughput, size and accuracy, with method, sample, units and machine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.descriptor import TensorSpec
from schemas.document import Document
from schemas.precision import Precision
from schemas.target import Tolerance

SampleSource = Literal["sidecar", "sentences", "random"]


class Machine(Document):
    """The machine that a number was measured on."""

    cpu: str
    cpu_flags: tuple[str, ...] = Field(
        default=(), description="Those that decide speed: avx2, avx512_vnni, amx_int8 ..."
    )
    cores: int
    threads: int = Field(description="Intra-op threads every contender was given")
    memory_bytes: int
    os: str
    versions: dict[str, str] = Field(default_factory=dict, description="Library name to version")


class ReferenceCase(Document):
    """One set of inputs and the original's outputs, stored as ``<id>.inputs.npz`` and ``<id>.outputs.npz``.

    Arrays are named by tensor. Strings are stored as unicode arrays, bfloat16 as float32.
    """

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    source: SampleSource
    axes: dict[str, int] = Field(description="Dynamic axis name to its size in this case")
    traced: bool = Field(default=False, description="The sizes are those that exporters trace with")
    rows: int = Field(ge=0, description="Size of the leading axis; 1 where there is no batch axis")


class BatchProof(Document):
    """Whether running rows together gave what running them one by one gave."""

    holds: bool
    reason: str = Field(max_length=500)
    sizes: tuple[int, ...] = Field(default=(), description="Batch sizes that were tried")


class ReferenceReport(Document):
    """What the ``reference`` step returns: the original's outputs, computed before any export.

    Its output folder ``reference`` holds the cases' arrays.
    """

    cases: tuple[ReferenceCase, ...] = Field(min_length=1, max_length=64)
    outputs: tuple[TensorSpec, ...]
    batching: BatchProof
    has_labels: bool = Field(default=False, description="Case 'samples' carries the right answers")
    accuracy: float | None = Field(default=None, description="Share of right answers of the original on the samples")
    deterministic: bool = Field(default=True, description="Two runs of the original gave the same outputs")
    arithmetic: Precision = Field(
        default=Precision.FP32,
        description="The coarsest float that the original itself computes in, where its runtime tells and rounds "
        "otherwise than the candidates'",
    )


class OutputParity(Document):
    """How one output of a candidate compares with the original's, over all cases."""

    name: str
    method: Literal["numeric", "agreement"]
    max_abs: float | None = None
    max_rel: float | None = Field(default=None, description="Largest |difference| / (|original| + 1e-6)")
    cosine: float | None = Field(
        default=None, description="Least cosine over rows; of a lossy candidate over the real cases where there are any"
    )
    agreement: float | None = Field(
        default=None,
        description="Share of equal values; of equal top-1 for classifiers, of equal tokens for language models",
    )
    kl: float | None = Field(
        default=None, description="Mean divergence of a language model's distributions over tokens, in nats"
    )
    passed: bool
    worst_case: str | None = Field(default=None, description="Id of the case with the largest difference")


class ParityReport(Document):
    """What the ``parity`` step returns for one candidate."""

    passed: bool
    reason: str = Field(max_length=500, description="One sentence: why it passed or not")
    precision: Precision
    tolerance: Tolerance
    outputs: tuple[OutputParity, ...]
    cases: tuple[ReferenceCase, ...]
    real_samples: bool = Field(description="Some case came from real samples or sentences")
    batching: BatchProof
    accuracy: float | None = Field(default=None, description="Share of right answers on the samples with labels")
    inputs: tuple[TensorSpec, ...] = Field(description="The candidate's own inputs, as it must be served")
    served_outputs: tuple[TensorSpec, ...] = Field(description="The candidate's own outputs, as it must be served")


class Measurement(Document):
    """Latency of one contender at one batch size."""

    contender: str = Field(description="Candidate id, or 'original'")
    runtime: str = Field(description="torch, onnxruntime, sklearn")
    batch: int = Field(ge=1)
    rounds_ms: tuple[float, ...] = Field(
        description="Median latency of each round; round i of all contenders are pairs"
    )
    runs: int = Field(ge=1, description="Timed runs in all rounds together")
    median_ms: float = Field(description="Median of ``rounds_ms``, the number that the verdict compares")
    p95_ms: float = Field(description="95th percentile over all runs")
    throughput_per_s: float = Field(description="Rows per second at this batch size, from the median")


class MeasureReport(Document):
    """What the ``measure`` step returns: one process per runtime, contenders in turn, round by round."""

    machine: Machine
    method: str = Field(max_length=500)
    case_axes: dict[str, int] = Field(
        default_factory=dict, description="Sizes of the other dynamic axes in the timed inputs"
    )
    measurements: tuple[Measurement, ...]
    failures: dict[str, str] = Field(
        default_factory=dict, description="Contender to the reason it could not be measured"
    )


class ConversionReport(Document):
    """What every converter returns; its output ``model`` is a folder with ``model.onnx`` and what belongs to it."""

    opset: int | None = None
    operators: dict[str, int] = Field(default_factory=dict)
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    size_bytes: int = Field(ge=0)
    notes: tuple[str, ...] = Field(default=(), max_length=50)


class TryReport(Document):
    """What the ``try_model`` step returns: one sample inference with a deployed model."""

    inputs: tuple[TensorSpec, ...]
    outputs: dict[str, list[float | int | str | bool | None]] = Field(
        description="First values of each output, flattened"
    )
    shapes: dict[str, tuple[int, ...]]
    latency_ms: float


class ContenderVerdict(Document):
    """What became of one contender, and why."""

    contender: str
    outcome: Literal["winner", "passed", "failed", "not_allowed", "not_measured"]
    reason: str = Field(max_length=500)
    speedup: float | None = Field(
        default=None, description="Median of the paired ratios original / contender, first batch size"
    )
    speedup_low: float | None = Field(default=None, description="Lower end of the 95% interval of that median")
    speedup_high: float | None = None


class Verdict(Document):
    """Which contender won, decided by code from evidence of one run."""

    schema_version: Literal[1] = 1
    winner: str | None = Field(description="Contender id; None when nothing may be published")
    unchanged: bool = Field(description="The original itself is the best that may be served")
    reason: str = Field(max_length=500)
    contenders: tuple[ContenderVerdict, ...]
    basis: str = Field(default="", max_length=200, description="Objective and batch size that decided")
