"""The gateway as a plain ASGI application: no Ray Serve, and a model that finds the left half of every scan.

    python tests/in_process.py FOLDER ARCHIVE

works on the jobs of the gateway whose state is in FOLDER, a second each, until it is killed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import httpx
import numpy as np
import ray

from serving.destinations import Destinations
from serving.examiner import Examiner
from serving.gateway import Gateway
from serving.messages import ArchivedScan, Progress, Segmentation
from serving.references import Places
from serving.runner import Desk, Runner
from serving.schemas import ServedModel
from tomoray.archive import Archive
from tomoray.privacy.pseudonyms import Pseudonyms
from tomoray.serving_config import ServeConfig

MB = 1_000_000


class Model:
    """Called as a deployment's handle is."""

    deployment_name = "model-left"
    find = property(lambda self: self)

    def __init__(self, seconds):
        self._seconds = seconds

    def options(self, **_):
        return self

    def remote(self, request):
        return _Answers(request, self._seconds)


class _Answers:
    def __init__(self, request, seconds):
        self._request, self._seconds = request, seconds

    async def __aiter__(self):
        yield Progress(done=1, of=2)
        await asyncio.sleep(self._seconds)
        scan, info, header = self._request.scan, None, {}
        if isinstance(scan, ArchivedScan):
            opened = Archive.open(scan.archive).scan(scan.scan_id)
            geometry, info, header = opened.geometry, opened.info, opened.header
        else:
            geometry = (await asyncio.to_thread(ray.get, scan))[1]
        mask = np.zeros(geometry.shape_zyx, np.uint8)
        mask[:, :, : mask.shape[2] // 2] = 1
        yield Segmentation(
            geometry=geometry, info=info, header=header, packed={"left": np.packbits(mask)}, seconds={"segment": 0.0}
        )

    def cancel(self):
        pass


class Nobody:
    """The handle of runners that never come."""

    wake = property(lambda self: self)

    def remote(self):
        pass


def parts(folder: Path, archives=(), names=("one", "two"), seconds=0.0, **config):
    """Examiner, desk and config; `config` as of a ServeConfig, its state in `folder`."""
    state = {"audit": {"file": str(folder / "audit.jsonl")}, "queue": {"url": str(folder / "queue"), "lease_s": 1}}
    config = ServeConfig(run="none", **state | config)
    models = {
        name: ServedModel(name=name, labels=["left"], spacing_zyx_mm=None, sha256="0" * 64, version="0")
        for name in names
    }
    examiner = Examiner(
        models=models,
        handles=dict.fromkeys(models, Model(seconds)),
        places=Places(
            archives={url: url for url in archives}, s3=config.references.s3, dicomweb=config.references.dicomweb
        ),
        destinations=Destinations(places=config.destinations),
        max_bytes=config.limits.expansion * config.limits.body_mb * MB,
        pseudonyms=Pseudonyms(b"a key for tests only, of no worth"),
    )
    desk = Desk(queue=config.queue.url, store=str(folder / "files"), at_once=config.jobs_at_once, settings=config.queue)
    return examiner, desk, config


def gateway_app(folder: Path, *args, **options):
    """The application; arguments as of `parts`."""
    examiner, desk, config = parts(folder, *args, **options)
    return Gateway(examiner, desk, Nobody(), config).__serve_build_asgi_app__()


async def work(folder: Path, archive: str):
    """A runner."""
    examiner, desk, _ = parts(folder, [archive], seconds=1.0)
    runner = Runner(desk, examiner)
    while True:
        await asyncio.sleep(0.1)
        runner.check_health()


class Caller:
    """Asks an application as from another process; `client` is where from."""

    def __init__(self, app, host="127.0.0.1:8000", client=("127.0.0.1", 1234), token=None):
        self._app, self._host, self._client = app, host, client
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    def ask(self, method, path, headers=None, **request):
        async def once():
            transport = httpx.ASGITransport(self._app, client=self._client, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{self._host}") as client:
                return await client.request(method, path, headers={**self.headers, **(headers or {})}, **request)

        return asyncio.run(once())

    def get(self, path, **request):
        return self.ask("GET", path, **request)

    def segment(self, **request):
        return self.ask("POST", "/v1/segment", **request)


def code(reply):
    """Status and, of an error, its code."""
    return (reply.status_code, reply.json()["error"]["code"]) if reply.status_code >= 400 else reply.status_code


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), sys.argv[2]))
