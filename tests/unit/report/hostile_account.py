"""An account in which every text is an attack on whoever shows it."""

from __future__ import annotations

import itertools
from typing import Any

from schemas.account import JobAccount
from schemas.deployment import Health
from schemas.descriptor import SecurityFinding, Severity, TensorSpec
from schemas.errors import ErrorDocument
from schemas.evidence import BatchProof
from schemas.plan import FindingLevel, PlanFinding
from schemas.sidecar import Sidecar

ATTACKS = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "javascript:document.title='owned'",
    "</title><script>document.title='owned'</script>",
    "</svg><script>document.title='owned'</script><svg onload=\"document.title='owned'\">",
    "</style><script>document.title='owned'</script>",
    "{{7*7}}{% raw %}${7*7}#{7*7}",
    "' onmouseover='document.title=1' x='",
    "--><script>document.title='owned'</script><!--",
    "]]><script>document.title='owned'</script>",
    "\x1b]8;;https://attacker.example\x07\x1b[31mred \x9b0m\x00",
    "invoice\u202efdp\u2066.onnx",
)


HARMLESS = tuple(f"harmless text {i}" for i in range(len(ATTACKS)))


def hostile(whole: JobAccount, attacks: tuple[str, ...] = ATTACKS) -> JobAccount:
    """Return ``whole`` with one of ``attacks`` in every text that a model file or a person's file can reach."""
    turn = itertools.count()

    def attack(value: Any, field: str | None = None) -> Any:
        if isinstance(value, dict):
            plain = field in ("tolerances", "known_by")
            return {
                k if plain or isinstance(v, dict | list) else k + attacks[next(turn) % len(attacks)]: attack(v, field)
                for k, v in value.items()
            }
        if isinstance(value, list | tuple):
            return [attack(v, field) for v in value]
        if isinstance(value, str):
            return (value + attacks[next(turn) % len(attacks)])[:490]
        return value

    d = whole.descriptor
    assert d is not None and whole.plan is not None and whole.verdict is not None and whole.deployment is not None

    def specs(found: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                name=attack(t.name)[:256],
                dtype=t.dtype,
                shape=tuple(attack(s) if isinstance(s, str) else s for s in t.shape),
                known_by=t.known_by,
            )
            for t in found
        )

    texts = ("framework", "framework_version", "producer", "architecture", "task", "tokenizer", "license", "entry")
    descriptor = d.model_copy(
        update={
            **{key: "x" + attacks[i % len(attacks)] for i, key in enumerate(texts)},
            "inputs": specs(d.inputs),
            "outputs": specs(d.outputs),
            "labels": attacks,
            "files": attacks,
            "notes": attacks,
            "operators": dict.fromkeys(attacks, 3),
            "parameter_dtypes": dict.fromkeys(attacks, 5),
            "findings": tuple(
                SecurityFinding(code=a[:60], severity=s, message=a, where=a, subject=a)
                for a in attacks
                for s in Severity
            ),
        }
    )
    candidates = tuple(
        c.model_copy(
            update={
                "id": attack(c.id) if c.id != "original" else c.id,
                "reason": attack("because"),
                "parity": c.parity
                and c.parity.model_copy(
                    update={
                        "reason": attack("so"),
                        "outputs": tuple(
                            o.model_copy(update={"name": attack(o.name), "worst_case": attack("case")})
                            for o in c.parity.outputs
                        ),
                        "batching": BatchProof(holds=True, reason=attack("batch")),
                    }
                ),
            }
        )
        for c in whole.candidates
    )
    winner = candidates[2].id
    deployment = whole.deployment.model_copy(
        update={
            "name": attack("name"),
            "entry": attack("/srv"),
            "manifest": attack("/m"),
            "next_steps": {a: a for a in attacks},
            "deployment": whole.deployment.deployment.model_copy(
                update={"config": "\n".join(attacks), "health": Health(state="ready", detail=attacks[0])}
            ),
        }
    )
    verdict = whole.verdict.model_copy(
        update={
            "winner": winner,
            "reason": attack("won"),
            "basis": attack("latency"),
            "contenders": tuple(
                v.model_copy(update={"contender": c.id, "reason": attack(v.reason)})
                for v, c in zip(whole.verdict.contenders, candidates, strict=True)
            ),
        }
    )
    plan = whole.plan.model_copy(
        update={
            "planner": attacks[0],
            "reason": attacks[1],
            "candidates": tuple(
                c.model_copy(
                    update={
                        "id": k.id,
                        "reason": attack(c.reason),
                        "steps": tuple(
                            s.model_copy(
                                update={
                                    "kind": attack(s.kind),
                                    "toolchain": attack("onnx"),
                                    "options": attack(s.options),
                                    "reason": attack(s.reason),
                                }
                            )
                            for s in c.steps
                        ),
                    }
                )
                for c, k in zip(whole.plan.candidates, candidates[1:], strict=True)
            ),
        }
    )
    steps = tuple(
        s.model_copy(
            update={
                "kind": attack(s.kind),
                "contender": s.contender and attack(s.contender),
                "log": "\n".join(attacks),
                "versions": {a: a for a in attacks},
                "inputs": {a: a for a in attacks},
                "options": {a: a for a in attacks},
                "error": ErrorDocument(code="x", message=attacks[0], hint=attacks[1]),
                "isolation": s.isolation and s.isolation.model_copy(update={"backend": attacks[2], "notes": attacks}),
            }
        )
        for s in whole.steps
    )
    return whole.model_copy(
        update={
            "job": whole.job.model_copy(
                update={"name": attacks[0] + attacks[3], "uri": "file:///srv/" + "".join(attacks)}
            ),
            "reason": attack("r"),
            "hint": attack("h"),
            "descriptor": descriptor,
            "candidates": candidates,
            "winner": winner,
            "verdict": verdict,
            "plan": plan,
            "steps": steps,
            "deployment": deployment,
            "plan_findings": (PlanFinding(level=FindingLevel.ERROR, code="x", message=attacks[0], pointer=attacks[4]),),
            "sidecar": Sidecar(task=attacks[0][:90], license=attacks[5][:90]),
            "machine": whole.machine
            and whole.machine.model_copy(
                update={"cpu": attacks[0], "os": attacks[1], "cpu_flags": attacks, "versions": {a: a for a in attacks}}
            ),
        }
    )
