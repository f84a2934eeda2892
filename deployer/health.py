"""Whether a server has a version ready, asked over the KServe v2 protocol that Triton speaks."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from urllib.parse import quote

from schemas.deployment import Health

_MOST_BYTES = 64 << 10


def check(url: str | None, name: str, version: int, *, timeout_s: float = 3.0) -> Health:
    """Return the health of one version; never raises. Without a ``url`` nobody was asked and it is unknown."""
    if not url:
        return Health(state="unknown", detail="No server is set, so nobody was asked.")
    if not url.startswith(("http://", "https://")):
        return Health(state="unknown", detail="The server's url is not an http or https url.")
    path = f"{url.rstrip('/')}/v2/models/{quote(name, safe='')}/versions/{version}"
    try:
        status, text = _get(f"{path}/ready", timeout_s)
        if status == 200:
            return Health(state="ready", detail=f"Version {version} is ready.")
        reason = _reason(text) or f"the server answered {status}"
        return Health(state="failed", detail=f"Version {version} is not ready: {reason}"[:500])
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Health(state="unknown", detail=f"The server did not answer: {getattr(error, 'reason', error)}."[:500])


def _get(url: str, timeout_s: float) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            return int(answer.status), answer.read(_MOST_BYTES).decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(_MOST_BYTES).decode(errors="replace")


def _reason(text: str) -> str:
    try:
        answer = json.loads(text)
    except ValueError:
        return ""
    return str(answer.get("error", "")) if isinstance(answer, dict) else ""
