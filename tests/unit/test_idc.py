from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tomoray.errors import Fatal, Usage
from tomoray.sources import list_series, list_source

ROWS = {
    "collection_id": ["nlst", "nlst", "nlst", "lidc_idri"],
    "SeriesInstanceUID": ["1.1", "1.2", "1.3", "1.4"],
    "StudyInstanceUID": ["1", "1", "1", "2"],
    "PatientID": ["a", "a", "a", "b"],
    "Modality": ["CT", "CT", "SEG", "CT"],
    "Manufacturer": ["GE MEDICAL SYSTEMS", "SIEMENS", None, None],
    "instanceCount": [120, 80, 1, 200],
    "series_size_MB": [60.5, 40.0, 0.1, 100.0],
    "crdc_series_uuid": ["u1", "u2", "u3", "u4"],
    "series_aws_url": [f"s3://idc-open-data/u{n}/*" for n in (1, 2, 3, 4)],
}


@pytest.fixture
def index(tmp_path) -> str:
    pq.write_table(pa.table(ROWS), tmp_path / "index.parquet")
    return f"idc://{tmp_path}/index.parquet"


def uids(source: str) -> list[str]:
    return [listing.series_uid for listing in list_series(source)]


def test_row_of_the_index_becomes_a_series_that_is_read_unsigned(index):
    first = next(list_series(index))
    assert first.root == "s3://anonymous@idc-open-data/u1"
    assert (first.series_uid, first.study_uid, first.patient_id, first.modality) == ("1.1", "1", "a", "CT")
    assert (first.n_instances, first.size_bytes, first.version) == (120, 60_500_000, "u1")
    assert first.manufacturer == "GE MEDICAL SYSTEMS"


def test_only_ct_is_chosen_unless_the_filter_says_otherwise(index):
    assert uids(index) == ["1.1", "1.2", "1.4"]
    assert uids(f"{index}?where=Modality = 'SEG'") == ["1.3"]
    assert uids(f"{index}?where=collection_id='nlst' and instanceCount>100") == ["1.1"]
    assert uids(f"{index}?where=Manufacturer%20like%20'GE%25'") == ["1.1"]
    assert uids(f"{index}?where=Manufacturer like 'GE%'") == ["1.1"]


def test_files_are_those_of_the_chosen_series(tmp_path):
    for name in ("u1", "u2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.dcm").write_bytes(b"1")
    rows = {"SeriesInstanceUID": ["1.1", "1.2"], "series_aws_url": [f"{tmp_path}/u1/*", f"{tmp_path}/u2/*"]}
    pq.write_table(pa.table(rows), tmp_path / "index.parquet")
    found = list(list_source(f"idc://{tmp_path}/index.parquet?where=SeriesInstanceUID != '1.1'"))
    assert [(file.root, file.key) for file in found] == [(f"{tmp_path}/u2", "a.dcm")]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("idc://", "wanted idc://COLLECTION"),
        ("idc://nlst/more", "wanted idc://COLLECTION"),
        ("idc://series/", "wanted idc://COLLECTION"),
        ("idc://nlst?filter=x", "wanted idc://COLLECTION"),
        ("idc:///no/such/index.parquet", "no index at /no/such/index.parquet"),
        ("{index}?where=colection_id = 'nlst'", "did you mean 'collection_id'"),
    ],
)
def test_wrong_url_is_one_clear_line(index, url, message):
    with pytest.raises(Usage, match=message) as caught:
        list_series(url.replace("{index}", index))
    assert "\n" not in str(caught.value)


def test_index_that_is_none_is_one_clear_line(tmp_path):
    (tmp_path / "index.parquet").write_text("no parquet")
    with pytest.raises(Usage, match="is no Parquet file"):
        list_series(f"idc://{tmp_path}/index.parquet")
    pq.write_table(pa.table({"SeriesInstanceUID": ["1"]}), tmp_path / "index.parquet")
    with pytest.raises(Usage, match="no column series_aws_url"):
        list_series(f"idc://{tmp_path}/index.parquet")


def test_nothing_chosen_is_said_before_anything_starts(index):
    with pytest.raises(Fatal, match="no CT series in the index is like this"):
        list_series(f"{index}?where=instanceCount > 1000")


def test_index_of_the_package_is_read_by_collection_and_by_series():
    pytest.importorskip("idc_index_data", reason="pip install 'tomoray[idc]'")
    first = next(list_series("idc://lidc_idri"))
    assert first.root.startswith("s3://anonymous@idc-open-data")
    assert list(list_series(f"idc://series/{first.series_uid}")) == [first]
    with pytest.raises(Fatal, match="no CT series"):
        list_series("idc://no_such_collection")


def test_a_large_collection_streams_within_a_gigabyte():
    pytest.importorskip("idc_index_data", reason="pip install 'tomoray[idc]'")
    code = (
        "from tomoray.sources import list_series; print(sum(1 for _ in list_series('idc://nlst')));"
        "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, peak_kib = map(int, done.stdout.split())
    assert count > 200_000
    assert peak_kib < 2**20


def test_index_of_nlst_is_read_as_one_of_ones_own(real_ct: Path):
    index = real_ct / "idc-nlst-index" / "nlst_ct_series_10pct.parquet"
    found = list(
        list_series(f"idc://{index}?where=Manufacturer = 'GE MEDICAL SYSTEMS' and instanceCount between 100 and 300")
    )
    wanted = pq.read_table(index, columns=["Manufacturer", "instanceCount"]).to_pylist()
    assert len(found) == sum(
        row["Manufacturer"] == "GE MEDICAL SYSTEMS" and 100 <= row["instanceCount"] <= 300 for row in wanted
    )
    assert len({listing.root for listing in found}) == len(found)
