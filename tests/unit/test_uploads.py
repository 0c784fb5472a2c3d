from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from tomoray.errors import Fatal, Refused
from tomoray.ingest.uploads import read_zip
from tomoray.privacy.pseudonyms import Pseudonyms

NAMES = Pseudonyms(b"a key for tests only, of no worth")


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_one_scan_comes_out_of_a_zip(make_series):
    series = make_series(5)
    wanted = series.load().volume

    loaded = read_zip(zip_of({**series.files, "notes.txt": b"hello"}), 10**6, NAMES)

    assert np.array_equal(loaded.volume.image_zyx, wanted.image_zyx)
    assert [float(h.ImagePositionPatient[2]) for h in loaded.headers] == [-100, -97.5, -95, -92.5, -90]


def test_zip_bomb_and_nonsense_are_turned_away(make_series):
    with pytest.raises(Fatal, match="more than 1000 bytes"):
        read_zip(zip_of({"a.dcm": b"\0" * 10**7}), 1000, NAMES)
    with pytest.raises(Fatal, match="cannot be read"):
        read_zip(b"PK\x03\x04 nonsense", 1000, NAMES)
    with pytest.raises(Fatal, match="no DICOM file"):
        read_zip(zip_of({"a.txt": b"hello"}), 1000, NAMES)


def test_zip_of_a_broken_series_is_refused_with_its_reason(make_series):
    series = make_series(6)
    del series.datasets[2]
    series.instances()
    with pytest.raises(Refused, match="missing_slices"):
        read_zip(zip_of(series.files), 10**6, NAMES)
