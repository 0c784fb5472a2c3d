"""The page and `tomoray pacs` with a real endpoint, as people meet them."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect, sync_playwright

from serving.page import BUILT
from tomoray.dicom.seg import read_segmentation

SERVICES = Path(__file__).parents[1] / "services"
_hospital = runpy.run_path(str(SERVICES / "test_hospital.py"))
_page = runpy.run_path(str(SERVICES / "test_page.py"))


def test_series_of_a_pacs_comes_back_as_the_model_sees_it(served, tmp_path, monkeypatch):
    orthanc = _hospital["_orthanc"]
    if not orthanc["program"]():
        pytest.skip(f"no Orthanc with DICOMweb: {orthanc['INSTALL']}")
    monkeypatch.setenv("TOMORAY_DICOMWEB_USER", orthanc["USER"])
    monkeypatch.setenv("TOMORAY_DICOMWEB_PASSWORD", orthanc["PASSWORD"])
    with _hospital["running"](SERVICES / "orthanc.py", tmp_path / "orthanc") as pacs:
        hospital = _hospital["Hospital"](pacs=pacs, server=served.url, folder=tmp_path)
        hospital.configure()
        hospital.send(sorted(served.study.iterdir()))
        assert hospital.run()["returned"] == 1
        segmentation, report = hospital.dataset("SEG"), hospital.dataset("SR")
    found = read_segmentation(segmentation, served.geometry)
    for label, mask in served.predicted.items():
        np.testing.assert_array_equal(found[label], mask)
    assert segmentation.SOPInstanceUID in str(report)
    assert report.StudyInstanceUID == served.headers[0].StudyInstanceUID


def test_page_shows_the_volumes_that_the_model_finds(served):
    program = shutil.which("chromium")
    if program is None or not (BUILT / "index.html").is_file():
        pytest.skip("no Chromium, or no page: apt-get install chromium; make page")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_page["SOFTWARE_GL"])
        page = browser.new_page(viewport={"width": 900, "height": 600})
        page.set_default_timeout(120_000)
        page.goto(served.url)
        _page["give"](page, served.study)
        expect(page.get_by_role("heading", level=1, name="Volumes")).to_be_visible(timeout=120_000)
        rows = dict(row.split()[:2] for row in page.get_by_role("row").all_inner_texts()[1:])
        browser.close()
    for label, mask in served.predicted.items():
        volume_ml = mask.sum() * served.geometry.voxel_volume_ml
        assert float(rows[label].replace(",", "").replace("none", "0")) == pytest.approx(volume_ml, rel=0.01, abs=0.6)
