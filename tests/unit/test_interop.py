"""What is stored opens in other people's tools, without TomoRay: the scans as OME-Zarr, the catalog as Parquet."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import duckdb
import numpy as np
import ome_zarr.io
import ome_zarr.reader
import pandas as pd
import polars as pl
import pytest
import tensorstore as ts
import zarr
from ome_zarr_models.v05 import Image
from ome_zarr_models.v05.image_label import ImageLabel
from ome_zarr_models.v05.labels import Labels

from tomoray.archive import Archive
from tomoray.catalog import SCHEMA, Catalog, refused_row, stored_row
from tomoray.config import Layout
from tomoray.errors import Reason, Refused
from tomoray.filters import parse_filter
from tomoray.ingest.series import Identity
from tomoray.volume import Volume


@pytest.fixture
def volume(make_volume) -> Volume:
    return make_volume()


@pytest.fixture
def scan_folder(tmp_path, volume) -> Path:
    archive = Archive.create(str(tmp_path / "archive"), Layout(chunk_zyx=(16, 16, 16), shard_zyx=(32, 32, 32)))
    archive.write_scan(volume)
    return Path(archive.scan(volume.info.scan_id).url)


def scales_of(metadata: dict) -> list[list[float]]:
    """The step in mm along z, y, x of each level, as the multiscales metadata say."""
    (multiscale,) = metadata["multiscales"]
    assert [(axis["name"], axis["type"], axis["unit"]) for axis in multiscale["axes"]] == [
        (axis, "space", "millimeter") for axis in "zyx"
    ]
    return [dataset["coordinateTransformations"][0]["scale"] for dataset in multiscale["datasets"]]


def test_metadata_validate_as_ome_zarr(scan_folder, volume):
    group = zarr.open_group(scan_folder, mode="r")
    assert Image.from_zarr(group).attributes.ome.version == "0.5"
    assert sorted(Labels.from_zarr(group["labels"]).attributes.ome.labels) == sorted(volume.labels)
    for name in volume.labels:
        assert ImageLabel.from_zarr(group[f"labels/{name}"]).attributes.ome.image_label.colors


def test_zarr_python_reads_identical_voxels_and_scales(scan_folder, volume):
    group = zarr.open_group(scan_folder, mode="r")
    assert np.array_equal(group["0"][:], volume.image_zyx)
    for name, mask in volume.labels.items():
        assert np.array_equal(group[f"labels/{name}/0"][:], mask)
    scales = scales_of(group.attrs["ome"])
    assert scales[0] == pytest.approx(volume.geometry.spacing_zyx_mm)
    assert len(scales) == len([key for key in group if key.isdecimal()])


def test_tensorstore_reads_identical_voxels(scan_folder, volume):
    def read(path: Path) -> np.ndarray:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}
        return ts.open(spec, read=True).result().read().result()

    assert np.array_equal(read(scan_folder / "0"), volume.image_zyx)
    for name, mask in volume.labels.items():
        assert np.array_equal(read(scan_folder / "labels" / name / "0"), mask)


def test_ome_zarr_py_reads_identical_voxels_labels_and_scales(scan_folder, volume):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ome-zarr-py and dask, about themselves
        nodes = list(ome_zarr.reader.Reader(ome_zarr.io.parse_url(str(scan_folder)))())
        image = nodes[0]
        assert np.array_equal(image.data[0].compute(), volume.image_zyx)
        steps = [transforms[0]["scale"] for transforms in image.metadata["coordinateTransformations"]]
        masks = [node.data[0].compute() for node in nodes[1:] if node.data]
    assert steps == scales_of(json.loads((scan_folder / "zarr.json").read_text())["attributes"]["ome"])
    assert steps[0] == pytest.approx(volume.geometry.spacing_zyx_mm)
    assert len(masks) == len(volume.labels)
    for mask in volume.labels.values():
        assert any(np.array_equal(mask, read_mask) for read_mask in masks)


# --- the catalog --------------------------------------------------------------------------------------------------


@pytest.fixture
def catalog(tmp_path, make_volume) -> tuple[str, list[dict]]:
    """The pattern that names the catalog's files, and its rows."""
    archive = Archive.create(str(tmp_path / "archive"), Layout())
    rows = []
    for n in range(12):
        volume = make_volume((4 + n, 16, 16), scan_id=f"{n % 3 * 5:x}{n:019x}", seed=n)
        row = stored_row(volume, "c" * 64)
        rows.append({**row, "manufacturer": ["GE", "SIEMENS", None][n % 3], "spacing_z": 0.5 + n})
    identity = Identity(series_id="f" * 20, patient_id="e" * 20, digest="d" * 64)
    refusal = Refused(Reason.MISSING_SLICES, "1 planes are missing; wanted none")
    rows.append(refused_row(identity, refusal, part="", n_instances=3, source_uri="/ct", config_sha256="c" * 64))
    found = Catalog(archive.store)
    found.upsert(rows)
    return f"{archive.url}/catalog/*.parquet", found.rows()


WHERE = "manufacturer = 'GE' and spacing_z <= 6.5"


def wanted(pattern: str) -> list[str]:
    """The series that TomoRay's own filter finds."""
    found = Catalog(Archive.open(pattern.partition("/catalog/")[0]).store).table().filter(parse_filter(WHERE, SCHEMA))
    return found["series_id"].to_pylist()


def files(pattern: str) -> list[Path]:
    return sorted(Path(pattern).parent.glob("*.parquet"))


def same(found: list[dict], rows: list[dict]) -> bool:
    def plain(value: object) -> object:
        if isinstance(value, (list, np.ndarray)):
            return [plain(item) for item in value]
        return None if value is None or value is pd.NA or value != value else value

    def sorted_rows(given: list[dict]) -> list[dict]:
        plain_rows = [{name: plain(value) for name, value in row.items()} for row in given]
        return sorted(plain_rows, key=lambda row: (row["series_id"], row["part"]))

    return sorted_rows(found) == sorted_rows(rows)


def test_pandas_reads_the_catalog(catalog):
    pattern, rows = catalog
    frame = pd.concat([pd.read_parquet(path) for path in files(pattern)])
    assert same(frame.to_dict("records"), rows)
    asked = frame.query("manufacturer == 'GE' and spacing_z <= 6.5")
    assert sorted(asked["series_id"]) == wanted(pattern)
    assert len(asked) == 3


def test_duckdb_reads_the_catalog(catalog):
    pattern, rows = catalog
    found = duckdb.sql(f"SELECT * FROM '{pattern}'")
    names = [column[0] for column in found.description]
    assert same([dict(zip(names, row, strict=True)) for row in found.fetchall()], rows)
    asked = duckdb.sql(f"SELECT series_id FROM '{pattern}' WHERE {WHERE} ORDER BY series_id").fetchall()
    assert [row[0] for row in asked] == wanted(pattern)


def test_polars_reads_the_catalog(catalog):
    pattern, rows = catalog
    frame = pl.read_parquet(pattern)
    assert same(frame.to_dicts(), rows)
    asked = frame.filter((pl.col("manufacturer") == "GE") & (pl.col("spacing_z") <= 6.5)).sort("series_id")
    assert asked["series_id"].to_list() == wanted(pattern)
    assert pl.SQLContext(catalog=frame).execute(f"SELECT series_id FROM catalog WHERE {WHERE}").collect().height == 3
