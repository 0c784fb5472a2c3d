"""Bodies and results of jobs, in a folder that only its owner may enter, or below an S3 prefix.

    STORE/<job>/body             the study as it was sent; gone when the job has ended
    STORE/<job>/<attempt>        what one attempt found; the queue says which one counts

Both hold patient data as it was sent. They go when the job expires or is deleted.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO

from tomoray.storage import open_store

BODY = "body"
_IN_MEMORY = 16 * 2**20


class Vault:
    """Files by job and name. Calls raise `Transient` or `Fatal` as those of a store."""

    def __init__(self, url: str) -> None:
        self._store = open_store(url)
        if "://" not in self._store.url:
            Path(self._store.url).mkdir(parents=True, exist_ok=True, mode=0o700)
            Path(self._store.url).chmod(0o700)

    def write(self, job_id: str, name: str, file: IO[bytes]) -> None:
        """Keep all that an open file holds."""
        self._store.write_file(f"{job_id}/{name}", file)

    def open(self, job_id: str, name: str) -> IO[bytes]:
        """A file at its start; on disk where it is large, and gone when it is closed. Raises `FileNotFoundError`."""
        file = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - the caller closes it
        self._store.read_file(f"{job_id}/{name}", file)
        file.seek(0)
        return file

    def remove(self, job_id: str, name: str | None = None) -> None:
        """Remove a file, or all of a job; absent is no error."""
        if name is None:
            self._store.child(job_id).delete_all()
        else:
            self._store.delete([f"{job_id}/{name}"])

    def job_ids(self) -> list[str]:
        """Jobs with files, whether or not they are in the queue."""
        return self._store.folders()
