from __future__ import annotations

import os
from pathlib import Path

import pytest

from tomoray.errors import Fatal, Usage
from tomoray.privacy.pseudonyms import Pseudonyms, public_root
from tomoray.sources import (
    list_series,
    list_source,
    read_file,
    read_head,
)

NAMES = Pseudonyms(b"a key for tests only, of no worth")


def test_missing_source_is_one_clear_line():
    with pytest.raises(Fatal, match="no folder or file at /no/such/place"):
        list_source("/no/such/place")


def test_folder_is_listed_by_key_and_a_folder_at_a_time(tmp_path, monkeypatch):
    for key in ("b/2", "a.dcm", "a/z", "a/b/c", "a-b", "b/1", "ß"):
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(b"1")
    read = []
    scandir = os.scandir
    monkeypatch.setattr("os.scandir", lambda folder: read.append(Path(folder).name) or scandir(folder))

    files = list_source(str(tmp_path))

    assert read == []
    assert [next(files).key, next(files).key] == ["a-b", "a.dcm"]
    assert read == [tmp_path.name]
    assert [file.key for file in files] == ["a/b/c", "a/z", "b/1", "b/2", "ß"]
    assert read == [tmp_path.name, "a", "b", "b"]


def test_source_that_does_not_know_its_series_says_so(tmp_path):
    assert list_series(str(tmp_path)) is None
    assert list_series("s3://bucket/ct") is None


def test_head_of_a_file_is_no_longer_than_asked_for(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_head(str(tmp_path), "a", 2) == b"12"
    assert read_head(str(tmp_path), "a", 9) == read_file(str(tmp_path), "a") == b"12345"


def test_unknown_scheme_is_wrong_usage():
    with pytest.raises(Usage, match="gs://bucket/ct"):
        list_source("gs://bucket/ct")


@pytest.mark.parametrize(
    ("root", "public"),
    [
        ("/data/ct", "/data/ct"),
        ("/data/ct//DOE/JANE.zip", "/data/ct"),
        ("s3://me@bucket//DOE.zip", "s3://me@bucket"),
        ("s3://bucket/ct//DOE/a.tar", "s3://bucket/ct"),
        ("dicomweb+https://host/pacs/studies/1.2.3/series/1.2.3.4", "dicomweb+https://host/pacs"),
        ("s3://anonymous@idc-open-data/0a1b", "s3://anonymous@idc-open-data/0a1b"),
    ],
)
def test_no_name_from_within_a_source_is_stored(root, public):
    assert public_root(root) == public
