"""Ask a server from Python. Needs neither Ray nor torch.

Example:
    >>> client = Client("http://127.0.0.1:8000", token="tomoray_…")                      # doctest: +SKIP
    >>> client.segment("study/").json()["labels"]                                        # doctest: +SKIP
    >>> job = client.submit("segment", {"scan_id": "c46d9a3b0f7e2d815a6c"})              # doctest: +SKIP
    >>> Path("seg.dcm").write_bytes(job.wait().result(DICOM).content)                    # doctest: +SKIP
"""

from __future__ import annotations

import tempfile
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import requests

from tomoray.errors import Busy, Fatal, Reason, Refused, TomoRayError, Transient, Usage

JSON, DICOM, NIFTI, ZIP = "application/json", "application/dicom", "application/gzip", "application/zip"
LABELMAP, REPORT = f"{DICOM}; kind=labelmap", f"{DICOM}; kind=sr"

Operation = Literal["segment", "classify", "detect"]
Study = str | Path | bytes | Mapping[str, str]

_FINAL = ("done", "failed", "cancelled")
_REASONS = {reason.value for reason in Reason}


class Client:
    """A server, and who asks it.

    A study is a folder, a zip or a NIfTI file by its path, the bytes of a zip, or a reference: `{"scan_id": …}`,
    `{"s3": …}`, `{"dicomweb": …, "study": …}`.

    Args:
        url: of the server.
        token: as `tomoray token` or an identity provider gives it.
        ca: a PEM file that the server's certificate is checked with; None: the system's.
        certificate: PEM files of a certificate of one's own and its key, for mutual TLS.
        patience_s: how long a server that is busy or away is asked again.

    All calls raise `Transient` (`Busy`) where patience ends, `Refused` with its reason where the study is refused,
    `Usage` where the request is wrong, `Fatal` otherwise.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        ca: str | None = None,
        certificate: tuple[str, str] | None = None,
        patience_s: float = 60,
    ) -> None:
        self._url = url.rstrip("/")
        self._patience_s = patience_s
        self._session = requests.Session()
        self._session.trust_env = False  # a .netrc would send its own credentials
        self._session.verify = ca or True
        self._session.cert = certificate
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def models(self) -> list[dict[str, Any]]:
        """What is served, as far as this caller may use it."""
        models: list[dict[str, Any]] = self.ask("GET", "/v1/models").json()["models"]
        return models

    def segment(self, study: Study, *, accept: str = JSON, **options: str | None) -> requests.Response:
        """Masks, or what is measured of them; `options` are `model`, `explain` and `destination`."""
        return self._examine("segment", study, accept, options)

    def classify(self, study: Study, *, accept: str = JSON, **options: str | None) -> requests.Response:
        """Probabilities of classes; as `segment`."""
        return self._examine("classify", study, accept, options)

    def detect(self, study: Study, *, accept: str = JSON, **options: str | None) -> requests.Response:
        """Boxes around lesions; as `segment`."""
        return self._examine("detect", study, accept, options)

    def submit(
        self, operation: Operation, study: Study, *, idempotency_key: str | None = None, **options: str | None
    ) -> Job:
        """Queue a study. With the same key the same job, however often this is called; None: a key of its own."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        given = {"operation": operation, **_given(options)}
        with _body(study) as (content_type, body):
            if body is None:
                reply = self.ask("POST", "/v1/jobs", headers=headers, json={**given, "input": study})
            else:
                headers["Content-Type"] = content_type
                reply = self.ask("POST", "/v1/jobs", headers=headers, params=given, data=body)
        return Job(client=self, document=reply.json())

    def job(self, job_id: str) -> Job:
        """A job that was queued before."""
        return Job(client=self, document=self.ask("GET", f"/v1/jobs/{job_id}").json())

    def _examine(
        self, operation: str, study: Study, accept: str, options: Mapping[str, str | None]
    ) -> requests.Response:
        headers, given = {"Accept": accept}, _given(options)
        with _body(study) as (content_type, body):
            if body is None:
                return self.ask("POST", f"/v1/{operation}", headers=headers, params=given, json=study)
            headers["Content-Type"] = content_type
            return self.ask("POST", f"/v1/{operation}", headers=headers, params=given, data=body)

    def ask(self, method: str, path: str, **request: Any) -> requests.Response:
        """One request, repeated while the server is busy or away. A body that is a file is sent from its start."""
        until = time.monotonic() + self._patience_s
        while True:
            if hasattr(request.get("data"), "seek"):
                request["data"].seek(0)
            try:
                reply = self._session.request(method, self._url + path, timeout=(10, 3600), **request)
                error, wait_s = _error(reply), float(reply.headers.get("Retry-After", "1"))
            except requests.RequestException as failure:
                error, wait_s = Transient(f"{self._url} cannot be reached ({type(failure).__name__})"), 1.0
            if error is None:
                return reply
            if not isinstance(error, Transient) or time.monotonic() + wait_s > until:
                raise error
            time.sleep(wait_s)


@dataclass(slots=True)
class Job:
    """A job, as it was when it was last looked at.

    Attributes:
        document: what the server says of it (`JobReply`).
    """

    client: Client
    document: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """What the server calls it."""
        return str(self.document["id"])

    @property
    def state(self) -> str:
        """queued, running, done, failed or cancelled."""
        return str(self.document["state"])

    def look(self) -> Job:
        """Ask the server how far it is."""
        self.document = self.client.ask("GET", f"/v1/jobs/{self.id}").json()
        return self

    def wait(
        self, within_s: float = 3600, *, every_s: float = 0.5, on_progress: Callable[[Job], object] = lambda _: None
    ) -> Job:
        """Look until it has ended.

        Raises:
            Transient: it has not within that time.
        """
        until = time.monotonic() + within_s
        while self.look().state not in _FINAL:
            on_progress(self)
            if time.monotonic() > until:
                raise Transient(f"job {self.id} is {self.state} after {within_s:g} s; look again later")
            time.sleep(every_s)
        return self

    def result(self, accept: str = JSON) -> requests.Response:
        """What was found. Raises what made the job fail."""
        return self.client.ask("GET", f"/v1/jobs/{self.id}/result", headers={"Accept": accept})

    def image(self) -> requests.Response:
        """The scan that was looked at, as NIfTI."""
        return self.client.ask("GET", f"/v1/jobs/{self.id}/image")

    def cancel(self) -> None:
        """End it; of one that has ended, remove the result."""
        self.client.ask("DELETE", f"/v1/jobs/{self.id}")


@contextmanager
def _body(study: Study) -> Iterator[tuple[str, IO[bytes] | bytes | None]]:
    """Content type and body of a study that is sent; no body for a reference."""
    if isinstance(study, Mapping):
        yield JSON, None
        return
    if isinstance(study, bytes):
        yield ZIP, study
        return
    path = Path(study)
    if path.is_dir():
        with tempfile.TemporaryFile() as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as packed:
                for n, each in enumerate(sorted(each for each in path.rglob("*") if each.is_file())):
                    packed.write(each, f"{n}")  # names of files may name somebody
            yield ZIP, file
    elif path.is_file():
        with path.open("rb") as opened:
            yield (NIFTI if path.name.endswith((".nii", ".nii.gz")) else ZIP), opened
    else:
        raise Usage(f"no folder or file at {path}; wanted a study, or a reference such as {{'scan_id': …}}")


def _given(options: Mapping[str, str | None]) -> dict[str, str]:
    unknown = options.keys() - {"model", "explain", "destination"}
    if unknown:
        raise Usage(f"unknown option {min(unknown)!r}; known: model, explain, destination")
    return {name: value for name, value in options.items() if value is not None}


def _error(reply: requests.Response) -> TomoRayError | None:
    if reply.status_code < 400:
        return None
    try:
        told = reply.json()["error"]
        code, message = str(told["code"]), str(told["message"])
    except (ValueError, KeyError, TypeError):
        code, message = "unknown", f"the server answers {reply.status_code}"
    if reply.status_code == 429:
        return Busy(message)
    died = reply.status_code == 500 and code == "unknown"  # not the gateway's own words: a proxy's, of one that is gone
    if died or reply.status_code in (502, 503, 504):
        return Transient(message)
    if reply.status_code == 422 and code in _REASONS:
        return Refused(Reason(code), message.removeprefix(f"{code}: "))
    return (Usage if reply.status_code < 500 else Fatal)(f"{code}: {message}")
