"""What a namespace must hold before steps may run in it: its rules, the workers' few rights, and no network at all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from executor.kubernetes_job import LABELS, NAME_LABEL, Manifest

WORKER = "modelium-worker"
POLICY = "modelium-steps"
_RIGHTS = (
    ("batch", "jobs", ("create", "list", "delete")),
    ("", "pods", ("list",)),
    ("", "pods/log", ("get",)),
    ("", "events", ("list",)),
    ("networking.k8s.io", "networkpolicies", ("list",)),
)
"""All that a worker asks of the API server. It can't change the policy that it relies on."""

_POD_LABELS = {
    **LABELS,
    **dict.fromkeys((NAME_LABEL, "job-name", "controller-uid"), "any"),
    **dict.fromkeys(("batch.kubernetes.io/job-name", "batch.kubernetes.io/controller-uid"), "any"),
}
"""Every label of a step's pod, the Job controller's among them."""


def manifests(namespace: str) -> list[Manifest]:
    """Return what an administrator applies once: namespace, network policy, service account, role and its binding."""
    named = {"namespace": namespace, "labels": {"app.kubernetes.io/managed-by": "modelium"}}
    return [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": namespace,
                "labels": {
                    "pod-security.kubernetes.io/enforce": "restricted",
                    "pod-security.kubernetes.io/enforce-version": "latest",
                },
            },
        },
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": POLICY, **named},
            "spec": {"podSelector": {"matchLabels": dict(LABELS)}, "policyTypes": ["Ingress", "Egress"]},
        },
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": WORKER, **named}},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": WORKER, **named},
            "rules": [{"apiGroups": [g], "resources": [r], "verbs": list(verbs)} for g, r, verbs in _RIGHTS],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": WORKER, **named},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": WORKER},
            "subjects": [{"kind": "ServiceAccount", "name": WORKER, "namespace": namespace}],
        },
    ]


def open_directions(policies: Iterable[Manifest]) -> set[str]:
    """Return the directions, Ingress and Egress, in which ``policies`` leave a step's pod any traffic.

    Policies add up: one that denies all is worth nothing beside another that selects the same pod and allows some.
    """
    closed: set[str] = set()
    opened: set[str] = set()
    for policy in policies:
        spec = policy.get("spec", {})
        if not selects(spec.get("podSelector", {}), _POD_LABELS):
            continue
        # As the API server fills it in: Ingress always, Egress where there are rules for it.
        types = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
        closed.update(types)
        opened.update(kind for kind in types if spec.get(kind.lower()))
    return ({"Ingress", "Egress"} - closed) | opened


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector takes an object with ``labels``."""
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_holds(rule, labels) for rule in selector.get("matchExpressions") or ())


def _holds(rule: dict[str, Any], labels: dict[str, str]) -> bool:
    value = labels.get(rule["key"])
    match rule["operator"]:
        case "In":
            return value in rule["values"]
        case "NotIn":
            return value not in rule["values"]
        case "Exists":
            return value is not None
        case _:
            return value is None
