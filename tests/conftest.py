"""What every test shares: a pseudonym key and an S3 address of its own, volumes, and the real CT where it is there."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest

from tomoray.assembly.stack import Rules
from tomoray.config import NiftiPattern
from tomoray.geometry import Geometry
from tomoray.ingest.ingester import Ingester
from tomoray.ingest.inventory import Inventory
from tomoray.ingest.loader import LoadedScan, RefusedPart
from tomoray.ingest.stocktaking import read_in_threads, take_stock
from tomoray.privacy.deidentify import Deidentifier
from tomoray.privacy.pseudonyms import Pseudonyms
from tomoray.volume import ScanInfo, ScanUids, Volume

REAL_CT = Path(__file__).parents[2] / "shared" / "ct"
S3_SERVER = Path(__file__).parent / "services" / "s3_server.py"
_s3_server: dict[str, Any] = runpy.run_path(str(S3_SERVER))
# Tools that came with the environment (dciodvfy, dcm2niix) before the system's, which are older
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
_exactly_once: dict[str, Any] = runpy.run_path(str(Path(__file__).parent / "exactly_once.py"))


def pytest_report_header() -> str:
    """Say which S3 server the tests meet."""
    if _s3_server["kind"]() == "rgw":
        return "S3 server: Ceph RGW"
    return "S3 server: moto (install ceph-mon ceph-osd ceph-mgr radosgw ceph-common for a real one)"


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """A running S3 server; the AWS variables of this process and its children name it."""

    kind: str  # rgw | moto
    endpoint: str
    access_key_id: str
    secret_access_key: str
    folder: str  # of its configuration and logs

    def client(self) -> Any:
        """A boto3 client."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            region_name="us-east-1",
        )

    def bucket(self) -> str:
        """A new bucket's URL, `s3://…`."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"


@pytest.fixture(scope="session", autouse=True)
def _own_s3_address() -> Iterator[int]:
    """Set before Ray starts, so that its workers inherit it; the server starts there when a test asks for it."""
    port = _s3_server["free_port"]()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_REGION"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", _s3_server["ACCESS_KEY_ID"])
        patch.setenv("AWS_SECRET_ACCESS_KEY", _s3_server["SECRET_ACCESS_KEY"])
        patch.setenv("AWS_REGION", "us-east-1")
        yield port


@pytest.fixture(scope="session")
def s3(_own_s3_address: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server for the whole run (`tests/services/s3_server.py`); it ends when its stdin closes."""
    command = [sys.executable, str(S3_SERVER), str(tmp_path_factory.mktemp("s3")), str(_own_s3_address)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline()
        assert said, f"the S3 server did not start; run it to see why: {' '.join(command)}"
        yield S3Server(**json.loads(said))


@pytest.fixture
def make_volume() -> Callable[..., Volume]:
    """`make_volume(shape_zyx, labels=…)`: smooth random HU with air around, an oblique affine, random masks."""

    def make(
        shape_zyx: tuple[int, int, int] = (37, 50, 41),
        *,
        scan_id: str = "5ca9" * 5,
        labels: tuple[str, ...] = ("lungs", "nodules"),
        seed: int = 0,
    ) -> Volume:
        rng = np.random.default_rng(seed)
        image = rng.integers(-100, 100, shape_zyx, dtype=np.int16)
        image[:, : shape_zyx[1] // 2] = -1024
        affine = [[0.7, 0.05, 0, -120.5], [-0.05, 0.7, 0, 33.25], [0, 0, 1.25, -400], [0, 0, 0, 1]]
        uids = tuple(f"2.25.{1000 + z}" for z in range(shape_zyx[0]))
        info = ScanInfo(
            scan_id=scan_id,
            series_id=scan_id,
            patient_id="9a7" * 6,
            source_uri="/data/ct",
            n_instances=shape_zyx[0],
            instances_sha256="1" * 64,
            input_sha256="2" * 64,
            uids=ScanUids(study="2.25.1", series="2.25.2", frame_of_reference="2.25.3", instances=uids),
            kernel="B30f",
            slice_thickness_mm=1.25,
            age_years=61.0,
            notes=("padding at -3024 HU set to -1024",),
        )
        masks = {name: (rng.random(shape_zyx) < 0.3).astype(np.uint8) for name in labels}
        geometry = Geometry.from_matrix(shape_zyx, affine)
        return Volume(image_zyx=image, geometry=geometry, info=info, labels=masks)

    return make


@pytest.fixture(scope="session", autouse=True)
def _own_pseudonym_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set before Ray starts, so that its workers inherit it; the user's own key and queue are never touched."""
    path = tmp_path_factory.mktemp("key") / "pseudonym.key"
    path.write_bytes(b"a key for tests only, of no worth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOMORAY_KEY_FILE", str(path))
        patch.setenv("XDG_STATE_HOME", str(path.parent))
        yield


@pytest.fixture(scope="session")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source with something of every kind, for runs that are disturbed."""
    out = tmp_path_factory.mktemp("every-kind")
    _exactly_once["write_cohort"](out)
    return out


@pytest.fixture(scope="session")
def undisturbed(every_kind: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The objects of an archive of `every_kind` that nothing disturbed, with their digests."""
    return dict(_exactly_once["run_undisturbed"](every_kind, tmp_path_factory.mktemp("undisturbed")))


@pytest.fixture(scope="session")
def real_ct() -> Path:
    """The folder of real CT; tests that need it are skipped where it is absent."""
    if not REAL_CT.is_dir():
        pytest.skip(f"no real CT at {REAL_CT}: put LIDC-IDRI and the other sets there (CONTRIBUTING.md)")
    return REAL_CT


@pytest.fixture
def load_source() -> Callable[[str], list[LoadedScan | RefusedPart]]:
    """`load_source(url)`: everything that a source ends in, as preprocessing finds it, without Ray or an archive."""

    def load(url: str) -> list[LoadedScan | RefusedPart]:
        names = Pseudonyms(b"a key for tests only, of no worth")
        with Inventory() as inventory:
            take_stock([url], NiftiPattern(), inventory, names, read_in_threads)
            items = [entry.item for entry in inventory.entries()]
        ingester = Ingester(archive=None, deidentifier=Deidentifier(names), rules=Rules(), config_sha256="")
        return [part for item in items for part in ingester.load(item)]

    return load


@pytest.fixture(scope="session")
def kubernetes_errors() -> Callable[..., list[str]]:
    """`kubernetes_errors(manifest, gates=…)`: what an API server or the KubeRay operator would refuse, a line each."""
    schemas = runpy.run_path(str(Path(__file__).parent / "kubernetes_schemas.py"))

    def errors(manifest: dict[str, Any], gates: Collection[str] = ()) -> list[str]:
        if manifest["kind"] in schemas["KUBERAY_KINDS"] and not schemas["has_kuberay_crds"]():
            pytest.skip(schemas["SKIPPED"])
        return list(schemas["errors_of"](manifest, gates))

    return errors
