"""What the deployer says to the world: the KServe manifest, the health question, the next steps."""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jsonschema
import pytest
import yaml

from deployer.health import check
from deployer.kserve import manifest, manifest_yaml
from deployer.next_steps import curl_line, next_steps, python_client
from schemas.deployment import EntrySpec
from schemas.descriptor import KnownBy, TensorSpec

MakeSpec = Callable[..., EntrySpec]
SCHEMA = json.loads(
    (Path(__file__).parents[2] / "data" / "kserve" / "inferenceservice-v1beta1.schema.json").read_text()
)


def closed(schema: object) -> object:
    """Return the schema with unknown fields refused, as the API server prunes or refuses them."""
    if isinstance(schema, dict):
        inner = {key: closed(value) for key, value in schema.items()}
        if "properties" in schema and "additionalProperties" not in schema:
            inner["additionalProperties"] = False
        return inner
    return [closed(item) for item in schema] if isinstance(schema, list) else schema


CLOSED = closed({**SCHEMA, "properties": {**SCHEMA["properties"], "metadata": True}})
VALIDATOR = jsonschema.Draft202012Validator(CLOSED)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [0, 1, 8, 128])
@pytest.mark.parametrize(("model_bytes", "memory_bytes"), [(0, None), (90_900_000, 400_000_000), (10**11, 10**10)])
@pytest.mark.parametrize("uri", [None, "s3://models/iris", "pvc://claim/a/b"])
def test_every_manifest_satisfies_kserves_schema_without_an_unknown_field(
    make_spec: MakeSpec, batch: int, model_bytes: int, memory_bytes: int | None, uri: str | None
) -> None:
    made = manifest(
        make_spec(max_batch_size=batch), model_bytes=model_bytes, memory_bytes=memory_bytes, storage_uri=uri
    )
    VALIDATOR.validate(made)
    assert yaml.safe_load(manifest_yaml(made, entry_name="iris")) == made
    if uri:
        assert made["spec"]["predictor"]["model"]["storageUri"] == uri


def test_the_closed_schema_really_refuses_an_unknown_field(make_spec: MakeSpec) -> None:
    made = manifest(make_spec(), model_bytes=1)
    made["spec"]["predictor"]["model"]["storageURL"] = "x"
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(made)


def test_the_manifest_says_where_the_entry_has_to_be_copied(make_spec: MakeSpec) -> None:
    text = manifest_yaml(manifest(make_spec(), model_bytes=1), entry_name="iris")
    assert "pvc://modelium-models/iris/iris/" in text.splitlines()[0]


def test_requests_grow_with_the_model_and_stay_below_limits(make_spec: MakeSpec) -> None:
    sizes = []
    for model_bytes in (1 << 20, 1 << 30):
        resources = manifest(make_spec(), model_bytes=model_bytes)["spec"]["predictor"]["model"]["resources"]
        sizes.append(int(resources["requests"]["memory"].removesuffix("Mi")))
        assert sizes[-1] < int(resources["limits"]["memory"].removesuffix("Mi"))
    assert sizes[0] < 1024 < sizes[1]


class _V2(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        ready = self.path == "/v2/models/iris/versions/2/ready"
        self.send_response(200 if ready else 400)
        self.end_headers()
        if not ready:
            self.wfile.write(b'{"error": "unknown model"}')

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def v2_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _V2)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_ready_version_is_ready_and_another_failed_with_the_servers_reason(v2_url: str) -> None:
    assert check(v2_url, "iris", 2).state == "ready"
    failed = check(v2_url + "/", "iris", 3)
    assert failed.state == "failed" and "unknown model" in failed.detail


@pytest.mark.parametrize("url", [None, "", "file:///etc/passwd", "http://127.0.0.1:1", "http://[bad"])
def test_where_nobody_answers_the_health_is_unknown(url: str | None) -> None:
    health = check(url, "iris", 1)
    assert health.state == "unknown" and health.detail


def tensor(name: str, dtype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec.model_validate({"name": name, "dtype": dtype, "shape": shape, "known_by": KnownBy.PROBE})


def test_next_steps_quote_paths_and_name_the_entry(make_spec: MakeSpec, tmp_path: Path) -> None:
    folder = tmp_path / "my models; rm -rf"
    steps = next_steps(make_spec(), repository=folder, manifest=folder / "iris.yaml")
    assert shlex.split(steps["tritonserver"])[1] == f"--model-repository={folder}"
    assert shlex.split(steps["kubectl apply"])[-1] == str(folder / "iris.yaml")
    assert "kubectl apply" not in next_steps(make_spec(), repository=folder)
    assert not any("docker" in snippet for snippet in steps.values())


def test_a_hostile_tensor_name_stays_a_string_in_the_snippets(make_spec: MakeSpec) -> None:
    name = "x'}; import os; os.system('id') #\n$(id)"
    spec = make_spec(inputs=(tensor(name, "float32", "batch", 2),))
    compile(python_client(spec), "client.py", "exec")
    assert repr(name) in python_client(spec)
    line = curl_line(spec)
    assert line is not None
    assert json.loads(shlex.split(line)[-1])["inputs"][0]["name"] == name


def test_a_large_input_is_generated_and_not_written_out(make_spec: MakeSpec) -> None:
    line = curl_line(make_spec(inputs=(tensor("image", "float32", "batch", 3, 224, 224),)))
    assert line is not None and len(line) < 1000 and line.startswith("python3 -c")


def test_half_precision_has_no_json_line(make_spec: MakeSpec) -> None:
    assert curl_line(make_spec(inputs=(tensor("x", "float16", "batch", 3),))) is None
