"""The page of speeds: what was measured, by kind of CPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import peers
import speed_models

from schemas.descriptor import Format

BATCHES = (1, 8)


@dataclass
class Contender:
    """One line of a model's table, on the real samples.

    ``cosine`` is the least of all rows; ``agreement`` the share of rows with the original's best class, ``accuracy``
    that with the right one, where labels are known.
    """

    name: str
    side: str
    format: str = Format.ONNX.value
    size_bytes: int = 0
    latency_ms: dict[int, float] = field(default_factory=dict)
    throughput_per_s: dict[int, float] = field(default_factory=dict)
    cosine: float | None = None
    agreement: float | None = None
    accuracy: float | None = None
    passed: bool = False
    error: str = ""


def table_of(name: str, contenders: list[Contender]) -> list[str]:
    """Return the table of one model's contenders, the fastest first."""
    eager = next(c for c in contenders if c.name == "original").latency_ms
    labelled = any(contender.accuracy is not None for contender in contenders)
    lines = [
        f"### {speed_models.MODELS[name][0]}",
        "",
        "| contender | b1 ms | b8 ms | × original, b1 | × b8 | rows/s, b8 | MB | least cosine |"
        + " same class | right class |" * labelled,
        "|---|---|---|---|---|---|---|---|" + "---|---|" * labelled,
    ]
    best = _best(contenders, "ours")
    order = sorted(contenders, key=lambda c: (c.latency_ms.get(1, float("inf")), c.name))
    for contender in order:
        ms = contender.latency_ms
        title = f"**{contender.name}**" if contender is best else contender.name
        if not ms:
            lines.append(
                f"| {title} | {contender.error or 'not measured'} | | | | | | {_figure(contender.cosine, 4)} |"
            )
            continue
        cells = [
            *(_figure(ms.get(batch), 2) for batch in BATCHES),
            *(_figure(eager[b] / ms[b] if b in ms and b in eager else None, 2) for b in BATCHES),
            _figure(contender.throughput_per_s.get(BATCHES[-1]), 0),
            f"{contender.size_bytes / 1e6:.1f}",
            _figure(contender.cosine, 4) + ("" if contender.passed else " (misses)"),
        ]
        if labelled:
            cells += [_figure(share and 100 * share, 1) + " %" for share in (contender.agreement, contender.accuracy)]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return [*lines, ""]


def _best(contenders: list[Contender], *sides: str) -> Contender | None:
    able = [c for c in contenders if c.side in sides and c.passed and 1 in c.latency_ms]
    return min(able, key=lambda c: c.latency_ms[1], default=None)


_INTRODUCTION = """# Speed

`make bench-speed` made this page, a model at a time. All contenders of a model are timed in one run, in
turn, by the pipeline's own `measure` step: one process per runtime, the same inputs, the same threads.
Cosines are the least over the rows of the samples; a contender below what the target asks of int8 misses,
ours or a peer's, and no miss is called the best: 0.98, the default, and 0.995 in one of MiniLM's rows
(`tolerances: {int8: {min_cosine: 0.995}}`), where what costs more stays in float. ResNet-50, ViT, BERT
and the Whisper encoder have random weights: they show speed, and agreement only with themselves;
the ResNet-18 is trained, and its classes are counted on pictures that it has not seen. Times of
one day do not compare with those of another: the machines are shared ones.
On CPUs without VNNI the peers are given their own options for such CPUs.
"""


def kind_of(machine: dict[str, Any]) -> str:
    """Return what tells kinds of CPUs apart whose times say nothing of each other."""
    units = {"amx_int8": "AMX", "avx512_vnni": "AVX-512 VNNI", "avx512f": "AVX-512", "avx2": "AVX2"}
    best = next((f" with {unit}" for flag, unit in units.items() if flag in machine.get("cpu_flags", ())), "")
    return f"{machine.get('cpu', 'unknown')}{best}"


def page(kept: dict[str, dict[str, Any]]) -> list[str]:
    """Return the page: for each kind of CPU a summary and its models' tables."""
    lines = _INTRODUCTION.splitlines()
    for kind, of_kind in kept.items():
        note, models = of_kind["note"], of_kind["models"]
        lines += ["", f"## {kind}", "", *_summary(models), *(["", note] if note else [])]
        for name in (name for name in speed_models.MODELS if name in models):
            found = models[name]
            versions = ", ".join(f"{k} {v}" for k, v in found["machine"].get("versions", {}).items())
            lines += ["", *table_of(name, [_contender(each) for each in found["contenders"]])]
            lines += [f"{kind}, {found['machine'].get('threads')} threads; {versions}. {found['date']}."]
    theirs = "; ".join(f"{peer}: {', '.join(wanted[4:])}" for peer, wanted in peers.REQUIREMENTS.items())
    return [*lines, "", f"Peers' own environments: {theirs}.", ""]


def _summary(rows: dict[str, Any]) -> list[str]:
    lines = [
        "| model | ours | b1 ms | × original | best peer | b1 ms | ours is faster by | measured |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in (name for name in speed_models.MODELS if name in rows):
        contenders = [_contender(found) for found in rows[name]["contenders"]]
        ours, peer = _best(contenders, "ours"), _best(contenders, *peers.REQUIREMENTS)
        eager = next(c for c in contenders if c.name == "original").latency_ms.get(1)
        mine, their = (c.latency_ms[1] if c else None for c in (ours, peer))
        cells = [
            speed_models.MODELS[name][0],
            ours.name if ours else "none",
            _figure(mine, 2),
            _figure(eager / mine if eager and mine else None, 2),
            peer.name if peer else "none",
            _figure(their, 2),
            _figure(their / mine if their and mine else None, 2),
            rows[name]["date"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _contender(found: dict[str, Any]) -> Contender:
    """Return what :func:`asdict` made JSON of."""
    sizes = {
        name: {int(batch): value for batch, value in found[name].items()} for name in ("latency_ms", "throughput_per_s")
    }
    return Contender(**{**found, **sizes})


def _figure(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
