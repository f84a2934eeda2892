"""A stand-in for a cluster: one HTTP server that plays API server, Job controller and the kubelet of one node.

It is none of them. What is real: requests are those of the official client over HTTP, manifests are checked against
Kubernetes' own strict schemas, rights against the very Role that we render, pods against the "restricted" standard, and
the pod's container is run, as rendered, under bubblewrap: its command, environment, mounts, user, memory and CPU.
What is not: admission, defaulting, scheduling, images (the machine's own /usr is every image), the network plugin (a
pod that a policy denies all gets a network namespace with nothing in it) and every number that a node would report.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
import pyseccomp

from executor.cgroup import Cgroup
from executor.toolchain import installation
from schemas.step_run import Limits

Document = dict[str, Any]
VERSION = "1.37"
POD_PIDS_LIMIT = 4096
_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/v1/namespaces/(?P<namespace>[^/]+)/(?P<kind>[^/]+)"
    r"(?:/(?P<name>[^/]+)(?:/(?P<sub>[^/]+))?)?"
)
_REFERENCE = re.compile(r"\$\$|\$\((\w+)\)")


class StandIn:
    """The cluster. ``claim`` is the root of its one volume; ``manifests`` what the administrator applied."""

    def __init__(self, claim: Path, manifests: list[Document], violations: Callable[[Document], list[str]]) -> None:
        self.claim, self.violations = claim, violations
        for manifest in manifests:
            kubernetes_validate.validate(manifest, VERSION, strict=True)
        self.role = next(m for m in manifests if m["kind"] == "Role")
        self.policies = [m for m in manifests if m["kind"] == "NetworkPolicy"]
        self.jobs: dict[str, Document] = {}
        self.pods: dict[str, Pod] = {}
        self.events: list[Document] = []
        self.created: list[Document] = []
        """Every Job ever created."""
        self.away = False
        """Whether connections are closed without an answer."""
        self.play: Callable[[Pod], None] | None = None
        """Called instead of running a pod, to give it a status that no test could bring about."""
        self.refuse = ""
        """What the Job controller is told when it creates a pod."""
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        for pod in list(self.pods.values()):
            pod.end()
        self.server.shutdown()
        self.server.server_close()

    def create(self, job: Document) -> tuple[int, Document]:
        try:
            kubernetes_validate.validate(job, VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            return 422, {"message": str(error)[:500]}
        name = job["metadata"]["name"]
        if name in self.jobs:
            return 409, {"message": f'jobs.batch "{name}" already exists'}
        self.jobs[name] = job
        self.created.append(job)
        template = job["spec"]["template"]
        broken = self.violations(template)
        told = f'violates PodSecurity "restricted:latest": {broken}' if broken else self.refuse
        if told:
            self.event(name, "FailedCreate", f'Error creating: pods "{name}-" is forbidden: {told}')
            return 201, job
        labels = {**template["metadata"]["labels"], "job-name": name, "batch.kubernetes.io/job-name": name}
        pod = Pod(self, {"name": f"{name}-x7k2p", "labels": labels, "creationTimestamp": _now()}, template["spec"])
        self.pods[pod.name] = pod
        threading.Thread(target=self.play or Pod.run, args=(pod,), daemon=True).start()
        return 201, job

    def event(self, about: str, reason: str, message: str) -> None:
        self.events.append(
            {
                "type": "Warning", "reason": reason, "message": message, "lastTimestamp": _now(),
                "involvedObject": {"name": about},
            }
        )  # fmt: skip

    def delete(self, name: str) -> None:
        """Delete a Job as propagationPolicy Foreground does: it goes when its pods are gone."""

        def collect() -> None:
            for pod in [p for p in self.pods.values() if p.metadata["labels"]["job-name"] == name]:
                pod.end()
                self.pods.pop(pod.name, None)
            self.jobs.pop(name, None)

        threading.Thread(target=collect, daemon=True).start()

    def may(self, verb: str, group: str, resource: str) -> bool:
        return any(
            group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]
            for rule in self.role["rules"]
        )


class Pod:
    """One pod, and the process that its container is."""

    def __init__(self, cluster: StandIn, metadata: Document, spec: Document) -> None:
        self.cluster, self.metadata, self.spec = cluster, metadata, spec
        self.name: str = metadata["name"]
        self.status: Document = {"phase": "Pending"}
        self.log = bytearray()
        self.over = threading.Event()
        self.process: subprocess.Popen[bytes] | None = None
        self.group: Cgroup | None = None

    def document(self) -> Document:
        return {"metadata": self.metadata, "spec": self.spec, "status": self.status}

    def container(self, phase: str, **state: Document) -> None:
        self.status = {"phase": phase, "containerStatuses": [{"name": "step", "state": state}]}

    def run(self) -> None:
        container, resources = self.spec["containers"][0], self.spec["containers"][0]["resources"]
        assert resources["limits"] == resources["requests"]
        limits = Limits(
            memory_bytes=int(resources["limits"]["memory"]),
            cpus=int(resources["limits"]["cpu"].removesuffix("m")) / 1000,
            processes=POD_PIDS_LIMIT,
        )
        self.container("Pending", waiting={"reason": "ContainerCreating"})
        self.group = Cgroup.create(limits)
        filter_in, filter_out = os.pipe()
        os.write(filter_out, _runtime_default())
        os.close(filter_out)
        joins = "".join(f"echo $$ >'{entrance}' && " for entrance in self.group.entrances)
        launched = ["/bin/sh", "-c", f'{joins}exec "$@"', "sh", "/usr/bin/bwrap"]
        argv = [*launched, *self._isolation(container, filter_in), "--", *self._program(container)]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=[filter_in]
        )
        os.close(filter_in)
        self.container("Running", running={"startedAt": _now()})
        assert self.process.stdout is not None
        while chunk := self.process.stdout.read1(1 << 16):
            if len(self.log) < 100 << 20:
                self.log += chunk
        self.process.stdout.close()
        code = self.process.wait()
        code = code if code >= 0 else 128 - code
        reason = "OOMKilled" if self.group.oom_kills() else "Completed" if code == 0 else "Error"
        self.group.remove()
        self.container("Failed" if code or reason == "OOMKilled" else "Succeeded",
                       terminated={"exitCode": code, "reason": reason, "finishedAt": _now()})  # fmt: skip
        self.over.set()

    def end(self) -> None:
        """End it as a node does: all of its processes, then wait for them."""
        if self.group is not None:
            self.group.kill()
        if self.process is not None:
            self.process.kill()
            self.over.wait(10)
        self.over.set()

    def _isolation(self, container: Document, filter_in: int) -> Iterator[str]:
        yield from ("--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try", "--die-with-parent")
        yield from ("--new-session", "--clearenv", "--as-pid-1", "--seccomp", str(filter_in), "--cap-drop", "ALL")
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
            yield from ("--cap-add", capability)
        if self._is_cut_off():
            yield "--unshare-net"
        yield from ("--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev")
        for name in ("bin", "sbin", "lib", "lib64"):
            yield from ("--symlink", f"usr/{name}", f"/{name}")
        for path in ("/etc/ld.so.cache", "/etc/alternatives", "/etc/passwd", "/sys/devices/system/cpu"):
            yield from (*_folders_above(Path(path)), "--ro-bind-try", path, path)
        interpreters = [Path(word) for word in container["args"][:1] if word.startswith("/")]
        prefixes = {p for python in {*interpreters, Path(sys.executable)} for p in installation(python).prefixes}
        for prefix in sorted(p for p in prefixes if not p.is_relative_to("/usr")):
            yield from _folders_above(prefix)
            yield from ("--ro-bind", str(prefix), str(prefix))
        assert self.group is not None
        if (cpu := self.group.hierarchies.get("cpu")) is not None:
            inside = "/sys/fs/cgroup" if cpu.version == 2 else "/sys/fs/cgroup/cpu"
            yield from (*_folders_above(Path(inside)), "--ro-bind", str(cpu.parent / self.group.name), inside)
        volumes = {volume["name"]: volume for volume in self.spec["volumes"]}
        for mount in container["volumeMounts"]:
            volume, at = volumes[mount["name"]], mount["mountPath"]
            yield from _folders_above(Path(at))
            if "emptyDir" in volume:
                assert volume["emptyDir"]["medium"] == "Memory"
                yield from ("--perms", "1777", "--size", volume["emptyDir"]["sizeLimit"], "--tmpfs", at)
            else:
                source = self.cluster.claim / mount["subPath"]
                assert source.resolve().is_relative_to(self.cluster.claim.resolve())
                yield from ("--ro-bind" if mount.get("readOnly") else "--bind", str(source), at)
        if container["securityContext"]["readOnlyRootFilesystem"]:
            yield from ("--remount-ro", "/")
        environment = {e["name"]: e["value"] for e in container["env"]}
        environment |= {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
        for name, value in environment.items():
            yield from ("--setenv", name, _expanded(value, environment))
        yield from ("--chdir", container["workingDir"])

    def _program(self, container: Document) -> Iterator[str]:
        context = self.spec["securityContext"]
        user, group = str(context["runAsUser"]), str(context["runAsGroup"])
        yield from ("/usr/bin/setpriv", "--reuid", user, "--regid", group, "--clear-groups", "--bounding-set=-all")
        yield from ("--inh-caps=-all", "--no-new-privs", "--")
        environment = {e["name"]: e["value"] for e in container["env"]}
        for word in (*container["command"], *container["args"]):
            yield _expanded(word, environment)

    def _is_cut_off(self) -> bool:
        return any(
            spec["podSelector"].get("matchLabels", {}).items() <= self.metadata["labels"].items()
            and {"Ingress", "Egress"} <= set(spec["policyTypes"])
            and not spec.get("egress")
            for spec in (policy["spec"] for policy in self.cluster.policies)
        )


def _runtime_default() -> bytes:
    """Return a filter in the spirit of the container runtimes' own: sockets are open, what administers is not."""
    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for call in ("mount", "umount2", "pivot_root", "unshare", "setns", "bpf", "keyctl", "reboot", "swapon"):
        rules.add_rule(pyseccomp.ERRNO(1), call)
    with os.fdopen(os.memfd_create("seccomp"), "w+b") as sink:
        rules.export_bpf(sink)
        return os.pread(sink.fileno(), 1 << 16, 0)


def _folders_above(path: Path) -> Iterator[str]:
    for folder in reversed(path.parents[:-1]):
        if folder != Path("/dev"):
            yield from ("--perms", "0755", "--dir", str(folder))


def _expanded(text: str, environment: dict[str, str]) -> str:
    """Replace $(NAME) as kubelets do; $$ is a dollar sign, and an unknown name stays as it is."""
    return _REFERENCE.sub(lambda m: "$" if m[0] == "$$" else environment.get(m[1], m[0]), text)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _handler(cluster: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self._serve("get")

        def do_POST(self) -> None:
            self._serve("create")

        def do_DELETE(self) -> None:
            self._serve("delete")

        def _serve(self, verb: str) -> None:
            if cluster.away:
                self.close_connection = True
                return
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            match = _PATH.fullmatch(url.path)
            if match is None:
                return self._answer(404, {"message": f"no such path: {url.path}"})
            kind, name = match["kind"], match["name"]
            resource = f"{kind}/{match['sub']}" if match["sub"] else kind
            verb = "list" if verb == "get" and name is None else verb
            if not cluster.may(verb, match["group"] or "", resource):
                return self._answer(403, {"message": f'cannot {verb} resource "{resource}"'})
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if verb == "create":
                return self._answer(*cluster.create(json.loads(content)))
            if verb == "delete":
                assert query.get("propagationPolicy") == "Foreground"
                if name not in cluster.jobs:
                    return self._answer(404, {"message": "not found"})
                cluster.delete(name)
                return self._answer(200, {"status": "Success"})
            if resource == "pods/log":
                return self._follow(cluster.pods.get(name))
            wanted = dict(part.split("=", 1) for part in query.get("labelSelector", "").split(",") if part)
            about = query.get("fieldSelector", "").removeprefix("involvedObject.name=")
            items = {
                "jobs": lambda: list(cluster.jobs.values()),
                "pods": lambda: [pod.document() for pod in list(cluster.pods.values())],
                "events": lambda: [e for e in cluster.events if e["involvedObject"]["name"] == about],
                "networkpolicies": lambda: cluster.policies,
            }[kind]()
            found = [i for i in items if wanted.items() <= i.get("metadata", {}).get("labels", {}).items()]
            return self._answer(200, {"items": found})

        def _follow(self, pod: Pod | None) -> None:
            if pod is None:
                return self._answer(404, {"message": "not found"})
            if pod.status["phase"] == "Pending":
                return self._answer(400, {"message": "container is waiting to start: ContainerCreating"})
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            sent = 0
            with contextlib.suppress(OSError):
                while not cluster.away:
                    over = pod.over.is_set()
                    part = bytes(pod.log[sent : sent + (1 << 16)])
                    if part or over:  # an empty chunk is the end
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                    sent += len(part)
                    if over and not part:
                        return
                    if not part:
                        time.sleep(0.02)
            self.close_connection = True

        def _answer(self, status: int, document: Document) -> None:
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler
