"""Bucket: one folder of objects behind the S3 protocol, and what goes wrong there in sentences.

Credentials are the library's own business (``AWS_*`` variables, profiles, roles of a machine): nothing here reads,
keeps or shows them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from schemas.errors import ModeliumError, StoreUnavailable

CHUNK_BYTES = 1 << 20
MULTIPART_BYTES = 64 << 20
PERMISSIONS = "s3:GetObject, PutObject, DeleteObject, AbortMultipartUpload, ListBucket, ListBucketMultipartUploads"
_RESUMES = 3
_GONE = frozenset({"404", "NoSuchKey", "NotFound"})
_WRONG_CREDENTIALS = frozenset({
    "SignatureDoesNotMatch", "InvalidAccessKeyId", "InvalidToken", "ExpiredToken", "AuthorizationHeaderMalformed",
    "TokenRefreshRequired", "InvalidClientTokenId", "UnrecognizedClientException",
})  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """An object as it was just seen."""

    key: str
    size_bytes: int
    modified_at: float

    @property
    def age_s(self) -> float:
        """Seconds since it was last written, by this machine's clock."""
        return time.time() - self.modified_at


class Bucket:
    """The objects below ``s3://bucket/prefix``; keys are relative to it. Every method raises StoreUnavailable.

    Safe to share between threads, to be made anew after a fork.
    """

    def __init__(self, url: str, *, endpoint_url: str = "") -> None:
        parts = urlsplit(url)
        self.name, prefix = parts.netloc, parts.path.strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._endpoint_url = endpoint_url or None
        self.url = f"s3://{self.name}/{self._prefix}".rstrip("/")
        if find_spec("boto3") is None:
            raise StoreUnavailable(
                f"{self.url} needs the library boto3, which is not installed.", hint="pip install 'modelium[s3]'"
            )

    @cached_property
    def _client(self) -> Any:
        from boto3.session import Session
        from botocore.config import Config

        config = Config(
            connect_timeout=5,
            read_timeout=30,
            retries={"mode": "standard", "total_max_attempts": 4},
            # Servers that are not Amazon's know no checksums in trailers; a signed payload they all check.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"payload_signing_enabled": True},
        )
        with self._spoken():
            # A session of its own: the library's default one is not safe to make in several threads.
            return Session().client("s3", endpoint_url=self._endpoint_url, config=config)

    def look(self, key: str) -> Seen | None:
        """Return what that object is, without its content; None when there is none."""
        with self._spoken(), self._none_if_gone():
            head = self._client.head_object(**self._at(key))
            return Seen(key, head["ContentLength"], head["LastModified"].timestamp())
        return None

    def read(self, key: str, *, at_most_bytes: int) -> tuple[bytes, Seen] | None:
        """Return a small object whole; None when there is none."""
        with self._spoken(), self._none_if_gone():
            answer = self._client.get_object(**self._at(key))
            with closing(answer["Body"]) as body:
                content: bytes = body.read(at_most_bytes)
            return content, Seen(key, answer["ContentLength"], answer["LastModified"].timestamp())
        return None

    def chunks(self, key: str) -> Iterator[bytes] | None:
        """Return the content in pieces, taken up again where a connection broke; None when there is no such object."""
        with self._spoken(), self._none_if_gone():
            return self._stream(key, self._client.get_object(**self._at(key)))
        return None

    def _stream(self, key: str, answer: Any) -> Iterator[bytes]:
        done = broke_at = 0
        size_bytes, resumes = answer["ContentLength"], _RESUMES
        with self._spoken():
            while True:
                try:
                    with closing(answer["Body"]) as body:
                        for chunk in body.iter_chunks(CHUNK_BYTES):
                            done += len(chunk)
                            yield chunk
                    return
                except _broken_connections():
                    # What gets on is not given up on, however often it breaks.
                    resumes = resumes - 1 if done - broke_at < MULTIPART_BYTES else _RESUMES
                    broke_at = done
                    if resumes < 0 or done >= size_bytes:
                        raise
                    time.sleep(2.0 ** (_RESUMES - resumes - 2))
                    # Of another object since written under this key: what counts is the sum over all of it.
                    answer = self._client.get_object(**self._at(key), Range=f"bytes={done}-")

    def write(self, key: str, content: bytes) -> None:
        """Write a small object."""
        with self._spoken():
            self._client.put_object(**self._at(key), Body=content)

    def upload(self, key: str, path: Path) -> None:
        """Write an object from a file, in parts when it is large; there is no object before all of it is there."""
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(
            multipart_threshold=MULTIPART_BYTES, multipart_chunksize=MULTIPART_BYTES // 4, max_concurrency=4
        )
        with self._spoken():
            self._client.upload_file(str(path), self.name, self._prefix + key, Config=config)

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        with self._spoken():
            self._client.delete_object(**self._at(key))

    def listed(self, folder: str) -> Iterator[Seen]:
        """Yield every object below ``folder``, in the order of their keys."""
        with self._spoken():
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.name, Prefix=f"{self._prefix}{folder}/"):
                for entry in page.get("Contents", ()):
                    key = entry["Key"].removeprefix(self._prefix)
                    yield Seen(key, entry["Size"], entry["LastModified"].timestamp())

    def end_uploads(self, *, older_than_s: float) -> None:
        """Free the parts of uploads whose machine died so long ago."""
        with self._spoken():
            pages = self._client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self.name, Prefix=self._prefix):
                for entry in page.get("Uploads", ()):
                    if time.time() - entry["Initiated"].timestamp() > older_than_s:
                        upload = {"Key": entry["Key"], "UploadId": entry["UploadId"]}
                        self._client.abort_multipart_upload(Bucket=self.name, **upload)

    def try_out(self) -> float:
        """Write, read, list and remove an object; return by how many seconds the server's clock is ahead."""
        key = f"tried/{uuid4().hex}"
        self.write(key, b"Modelium was here.")
        try:
            found = self.read(key, at_most_bytes=64)
            if found is None or key not in [seen.key for seen in self.listed("tried")]:
                raise StoreUnavailable(
                    f"{self.url} does not show what was just written.", hint="Use one that is strongly consistent."
                )
        finally:
            self.delete(key)
        return found[1].modified_at - time.time()

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.name, "Key": self._prefix + key}

    @contextmanager
    def _none_if_gone(self) -> Iterator[None]:
        from botocore.exceptions import ClientError

        try:
            yield
        except ClientError as error:
            if _code(error) not in _GONE:
                raise

    @contextmanager
    def _spoken(self) -> Iterator[None]:
        """Turn the library's errors into one sentence each; of its own words, which may quote a request, only codes."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error) as error:
            # A failed upload is an error around the one that says why.
            cause = error.__context__ if isinstance(error, Boto3Error) and error.__context__ else error
            raise self._sentence(cause) from None

    def _sentence(self, error: BaseException) -> ModeliumError:
        from botocore import exceptions

        where = f"{self.url} at {self._endpoint_url}" if self._endpoint_url else self.url
        code = _code(error)
        if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
            message, hint = (
                f"There are no credentials for {where}.",
                "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, for whoever runs Modelium.",
            )
        elif isinstance(error, exceptions.ProfileNotFound | exceptions.CredentialRetrievalError):
            message, hint = (
                f"The credentials for {where} cannot be read ({type(error).__name__}).",
                "Look at AWS_PROFILE and the files in ~/.aws.",
            )
        elif code in _WRONG_CREDENTIALS:
            message, hint = (
                f"{where} refuses the credentials ({code}).",
                "Mend AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile that AWS_PROFILE names.",
            )
        elif code in ("AccessDenied", "403", "AllAccessDisabled"):
            message, hint = (
                f"The credentials for {where} are wrong, or not allowed this ({code}).",
                f"They need {PERMISSIONS}.",
            )
        elif code == "NoSuchBucket":
            message, hint = f"There is no bucket {where}.", "Make it, or mend MODELIUM_STORE_URL."
        elif code == "RequestTimeTooSkewed":
            message, hint = f"The clock of this machine is not that of {where}.", "Set the clock."
        elif isinstance(error, _broken_connections()):
            message, hint = (
                f"{where} does not answer, or broke off ({type(error).__name__}).",
                "Look at the network and MODELIUM_S3_ENDPOINT_URL; what was interrupted counts as not done.",
            )
        else:
            message, hint = (
                f"{where} failed: {code or type(error).__name__}.",
                "Its own log says more; what was interrupted counts as not done.",
            )
        return StoreUnavailable(message, hint=hint)


def _broken_connections() -> tuple[type[Exception], ...]:
    from botocore.exceptions import ConnectionError, HTTPClientError, IncompleteReadError

    return ConnectionError, HTTPClientError, IncompleteReadError


def _code(error: BaseException) -> str:
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
