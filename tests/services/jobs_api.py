"""The jobs API of docs/serving.md in one process, for tests of what talks to it: no Ray, and a model without a network.

    python tests/services/jobs_api.py [--token TOKEN] [--seconds SECONDS] [--models NAME …] [--pacs URL]

Its model `threshold` takes what lies between -950 and -400 HU for lungs and what lies above 250 HU for bones; its model
`box` finds one box around the lungs of the five slices in the middle. Prints one line of JSON (url) once it answers,
and serves until its stdin closes. GET /told lists the jobs that were asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from serving.page import add_page
from tomoray import nifti
from tomoray.dicom.sr import Measurements
from tomoray.errors import TomoRayError
from tomoray.ingest.loader import LoadedScan
from tomoray.ingest.uploads import read_study, read_zip
from tomoray.predictions import report_file, segmentation_file
from tomoray.privacy.pseudonyms import Pseudonyms
from tomoray.sources import list_source, read_file
from tomoray.volume import Mask

MODEL = {"name": "threshold", "labels": ["lungs", "bones"], "operation": "segment", "version": "1", "sha256": "ab" * 32}
BOX = MODEL | {"name": "box", "labels": ["lungs"], "operation": "detect"}
WINDOWS = 20


@dataclass(kw_only=True)
class Job:
    """One study."""

    id: str
    loaded: LoadedScan | None
    error: dict[str, str] | None
    started: float
    model: dict[str, Any]
    cancelled: bool = False
    created: datetime = field(default_factory=lambda: datetime(2026, 1, 2, 3, 4, 5))

    def masks(self) -> dict[str, Mask]:
        image = self.loaded.volume.image_zyx
        return {"lungs": ((image > -950) & (image < -400)).view(np.uint8), "bones": (image > 250).view(np.uint8)}


class Server:
    """Jobs in memory."""

    def __init__(
        self, token: str | None, seconds: float, servers: dict[str, str], models: list[dict[str, Any]]
    ) -> None:
        self.token, self.seconds, self.servers, self.models = token, seconds, servers, models
        self.jobs: dict[str, Job] = {}
        self.keys: dict[str, str] = {}
        self.told: list[dict[str, Any]] = []

    def app(self) -> FastAPI:
        api = FastAPI()
        add_page(api)
        api.middleware("http")(self.authorize)
        api.get("/told")(lambda: self.told)
        api.get("/v1/models")(lambda: {"models": self.models})
        api.post("/v1/jobs")(self.submit)
        api.get("/v1/jobs/{name}")(self.state)
        api.delete("/v1/jobs/{name}")(self.cancel)
        api.get("/v1/jobs/{name}/events")(self.events)
        api.get("/v1/jobs/{name}/result")(self.result)
        api.get("/v1/jobs/{name}/image")(self.image)
        return api

    async def authorize(self, request: Request, following: Any) -> Response:
        given = request.headers.get("Authorization")
        if self.token and request.url.path.startswith("/v1") and given != f"Bearer {self.token}":
            return failure(401, "unauthorized", "wanted a token")
        return await following(request)

    async def submit(self, request: Request) -> Response:
        body, key = await request.body(), request.headers.get("Idempotency-Key", "")
        self.told.append({"key": key, "size": len(body), "again": key in self.keys, **request.query_params})
        if key and key in self.keys:
            return JSONResponse(self.reply(self.jobs[self.keys[key]]), 202)
        loaded, error = None, None
        try:
            loaded = await asyncio.to_thread(self.load, body)
        except TomoRayError as refusal:
            error = {"code": str(getattr(refusal, "reason", "bad_zip")), "message": str(refusal)}
        model = BOX if request.query_params.get("model") == BOX["name"] else MODEL
        started = asyncio.get_running_loop().time()
        job = Job(id=f"job-{len(self.jobs)}", loaded=loaded, error=error, started=started, model=model)
        self.jobs[job.id] = job
        self.keys[key] = job.id
        return JSONResponse(self.reply(job), 202, headers={"Location": f"/v1/jobs/{job.id}"})

    def load(self, body: bytes) -> LoadedScan:
        pseudonyms = Pseudonyms(b"of tests only, of no worth at all")
        if not body.startswith(b"{"):
            return read_zip(body, 10**10, pseudonyms)
        asked = json.loads(body)["input"]  # a study of the PACS that the server knows
        query = f"StudyInstanceUID={asked['study']}&SeriesInstanceUID={asked['series']}"
        files = list_source(f"dicomweb+{self.servers[asked['dicomweb']]}?{query}")
        return read_study({file.key: read_file(file.root, file.key) for file in files}, 10**10, pseudonyms)

    def reply(self, job: Job) -> dict[str, Any]:
        part = (asyncio.get_running_loop().time() - job.started) / self.seconds if self.seconds else 1.0
        state = "cancelled" if job.cancelled else "failed" if job.error else "done" if part >= 1 else "running"
        progress = {"done": min(WINDOWS, int(part * WINDOWS)), "of": WINDOWS}
        return {"id": job.id, "state": state, "progress": progress, "error": job.error} | {
            "operation": job.model["operation"],
            "model": job.model["name"],
            "created": job.created.isoformat() + "Z",
        }

    async def state(self, name: str) -> Response:
        return JSONResponse(self.reply(self.jobs[name])) if name in self.jobs else unknown()

    async def cancel(self, name: str) -> Response:
        if name not in self.jobs:
            return unknown()
        self.jobs[name].cancelled = True
        return JSONResponse(self.reply(self.jobs[name]))

    async def events(self, name: str) -> Response:
        if name not in self.jobs:
            return unknown()

        async def told():
            while (reply := self.reply(self.jobs[name]))["state"] == "running":
                yield f"event: progress\ndata: {json.dumps(reply)}\n\n"
                await asyncio.sleep(0.1)
            yield f"event: {reply['state']}\ndata: {json.dumps(reply)}\n\n"

        return StreamingResponse(told(), media_type="text/event-stream")

    async def result(self, name: str, request: Request) -> Response:
        if name not in self.jobs or self.jobs[name].loaded is None:
            return unknown()
        job, accept = self.jobs[name], request.headers.get("Accept", "application/json")
        return await asyncio.to_thread(encode, job, accept)

    async def image(self, name: str) -> Response:
        volume = self.jobs[name].loaded.volume
        data = await asyncio.to_thread(nifti.write, volume.image_zyx, volume.geometry)
        return Response(data, media_type="application/gzip")


def lung_box(job: Job) -> dict[str, Any]:
    geometry, lungs = job.loaded.volume.geometry, job.masks()["lungs"]
    middle = len(lungs) // 2
    lungs[: middle - 2] = lungs[middle + 3 :] = 0
    found = np.argwhere(lungs)
    low, high = found.min(0), found.max(0)
    center = np.array(geometry.affine_lps).reshape(4, 4) @ [*((low + high) / 2)[::-1], 1]
    size = (high - low + 1) * geometry.spacing_zyx_mm
    return {"label": "lungs", "center_lps_mm": center[:3].tolist(), "size_mm": size[::-1].tolist(), "probability": 0.9}


def encode(job: Job, accept: str) -> Response:
    geometry, masks = job.loaded.volume.geometry, job.masks()
    volumes = {name: float(mask.sum() * geometry.voxel_volume_ml) for name, mask in masks.items()}
    of_job = (job.loaded.headers, MODEL["sha256"], job.id)
    if accept == "application/dicom; kind=sr":
        data = report_file(Measurements(volumes_ml=volumes), *of_job, made=job.created)
    elif accept.startswith("application/dicom"):
        data = segmentation_file(masks, *of_job, made=job.created)
    elif accept == "application/gzip":
        data = nifti.write_label_map(masks, geometry)
    elif accept == "application/json":
        found = {name: {"voxels": int(mask.sum()), "volume_ml": volumes[name]} for name, mask in masks.items()}
        return JSONResponse(
            {
                "model": job.model,
                "geometry": {
                    "shape_zyx": geometry.shape_zyx,
                    "spacing_zyx_mm": geometry.spacing_zyx_mm,
                    "affine_lps": geometry.affine_lps,
                },
                **({"boxes": [lung_box(job)]} if job.model is BOX else {"labels": found}),
                "seconds": {"read": 0.2, "segment": 1.5},
                "notes": list(job.loaded.volume.info.notes),
            }
        )
    else:
        return failure(406, "not_acceptable", f"no {accept} here")
    return Response(data, media_type=accept.partition(";")[0])


def failure(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message}}, status)


def unknown() -> JSONResponse:
    return failure(404, "unknown_job", "there is no such job")


def main() -> int:
    """Serve until stdin closes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--token")
    parser.add_argument("--seconds", type=float, default=0.5, help="how long a job takes")
    parser.add_argument("--models", nargs="*", default=[MODEL["name"]], choices=[MODEL["name"], BOX["name"]])
    parser.add_argument("--pacs", metavar="URL", help="root of the DICOMweb server that references call `pacs`")
    options = parser.parse_args()
    models = [model for model in (MODEL, BOX) if model["name"] in options.models]
    server = Server(options.token, options.seconds, {"pacs": options.pacs}, models)
    config = uvicorn.Config(server.app(), port=0, log_level="warning")
    server = uvicorn.Server(config)
    with config.bind_socket() as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        bound.listen()  # whoever comes from now on waits until it answers
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        print(json.dumps({"url": url}), flush=True)
        sys.stdin.read()
        server.should_exit = True
        thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
