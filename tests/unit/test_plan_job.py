"""What a plan says of an index, against plain arithmetic."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import plan
from tomoray import settings
from tomoray.archive import Archive
from tomoray.catalog import Catalog, refused_row
from tomoray.config import Layout, PlanConfig
from tomoray.errors import Reason, Refused, Usage
from tomoray.ingest.estimate import COMPRESSED_MB_PER_S, NATIVE_MB_PER_S
from tomoray.ingest.series import ListedSeries
from tomoray.privacy.pseudonyms import Pseudonyms
from tomoray.sources import list_series

N = 5000
COUNTS = [50 + n % 200 for n in range(N)]
NATIVE = [n % 4 != 0 for n in range(N)]
MB = [count * (0.6 if native else 0.2) for count, native in zip(COUNTS, NATIVE, strict=True)]
VOXEL_MB = [mb if native else c * 0.524288 for c, native, mb in zip(COUNTS, NATIVE, MB, strict=True)]


@pytest.fixture
def index(tmp_path: Path) -> str:
    names = ["Explicit VR Little Endian,Implicit VR Little Endian" if native else "JPEG Lossless" for native in NATIVE]
    columns = {
        "SeriesInstanceUID": [f"1.{n}" for n in range(N)],
        "StudyInstanceUID": [f"2.{n // 2}" for n in range(N)],
        "PatientID": [str(n // 3) for n in range(N)],
        "transfer_syntax_name": names,
        "instanceCount": COUNTS,
        "series_size_MB": MB,
        "series_aws_url": [f"s3://bucket/{n}/*" for n in range(N)],
    }
    pq.write_table(pa.table(columns), tmp_path / "index.parquet")
    return f"idc://{tmp_path}/index.parquet"


def plan_of(index: str, tmp_path: Path, **fields):
    return plan.run(PlanConfig(sources=[index], archive=str(tmp_path / "archive"), **fields))


def test_numbers_are_those_of_plain_arithmetic(index, tmp_path):
    found = plan_of(index, tmp_path, nodes=4)
    native = sum(mb for mb, is_native in zip(VOXEL_MB, NATIVE, strict=True) if is_native)
    cpu_hours = (native / NATIVE_MB_PER_S + (sum(VOXEL_MB) - native) / COMPRESSED_MB_PER_S) / 3600
    assert (found["series"], found["instances"], found["done_before"]) == (N, sum(COUNTS), 0)
    assert found["source_gb"] == pytest.approx(sum(MB) / 1e3, abs=0.01)
    assert found["voxel_gb"] == pytest.approx(sum(VOXEL_MB) / 1e3, abs=0.01)
    assert found["cpu_hours"] == pytest.approx(cpu_hours, abs=0.002)
    assert found["node_hours"] == pytest.approx(cpu_hours / 16, abs=0.002)
    assert found["dollars"]["on_demand"] == pytest.approx(cpu_hours / 16 * 0.8064, abs=0.01)
    assert not (tmp_path / "archive").exists()


def test_series_that_the_catalog_answers_for_are_not_counted_again(index, tmp_path):
    archive = Archive.create(str(tmp_path / "archive"), Layout())
    names = Pseudonyms(settings.pseudonym_key())
    done = [ListedSeries(listing=listing) for listing in list_series(index)][:7]
    Catalog(archive.store).upsert(
        refused_row(
            item.identify(names),
            Refused(Reason.TOO_FEW_SLICES, "found 1; wanted 3"),
            source_uri="s3://bucket",
            n_instances=item.n_instances,
            config_sha256="0" * 64,
        )
        for item in done
    )
    found = plan_of(index, tmp_path)
    assert (found["done_before"], found["series"]) == (7, N - 7)
    assert found["instances"] == sum(COUNTS[7:])


def test_unknown_node_and_ones_own_prices(index, tmp_path):
    with pytest.raises(Usage, match="no prices for node 'box'"):
        plan_of(index, tmp_path, node="box")
    path = tmp_path / "prices.yaml"
    path.write_text(
        "date: 2026-01\nregion: cellar\nnodes: {box: {vcpus: 4, memory_gb: 16, on_demand: 10, spot: 5}}\n"
        "storage: {per_gb_month: 0, per_thousand_gets: 0, per_thousand_puts: 0}\n"
    )
    found = plan_of(index, tmp_path, node="box", prices=str(path))
    assert found["dollars"]["on_demand"] == pytest.approx(2 * found["dollars"]["spot"], abs=0.02)
    assert found["assumes"]["prices"] == "cellar, 2026-01"
