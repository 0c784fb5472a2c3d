from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tomoray.archive import Archive
from tomoray.catalog import SCHEMA
from tomoray.config import Layout
from tomoray.reports import charts
from tomoray.reports.qc_report import QcReport, render, write_qc_report
from tomoray.reports.thumbnails import draw_thumbnail
from tomoray.statistics.fingerprint import Fingerprint, take_fingerprint
from tomoray.statistics.qc import AGE_GROUPS, Assessment, age_group, assess, find_outliers, robust_z

LAYOUT = Layout(chunk_zyx=(8, 16, 16), shard_zyx=(16, 32, 32), levels=2)


def row(status: str = "stored", **fields: Any) -> dict[str, Any]:
    return {**dict.fromkeys(SCHEMA.names), "status": status, "patient_id": "p1", **fields}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return Archive.create(str(tmp_path_factory.mktemp("qc") / "archive"), LAYOUT)


@pytest.fixture
def taken(archive: Archive, make_volume) -> Fingerprint:
    for n in range(10):
        archive.write_scan(make_volume((12, 30, 28), scan_id=f"{n:020x}"))
    return take_fingerprint(archive, archive.scan_ids())


def changed(taken: Fingerprint, n: int, **fields: Any) -> Fingerprint:
    scans = [scan.model_copy(update=fields) if i == n else scan for i, scan in enumerate(taken.scans)]
    return taken.model_copy(update={"scans": scans})


class Page(HTMLParser):
    """Open tags of a page, and an error where they do not close in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br"}:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def test_robust_distances_are_not_moved_by_what_they_measure() -> None:
    assert [round(z, 2) for z in robust_z([1, 2, 3, 4, 100])] == [-1.35, -0.67, 0.0, 0.67, 65.43]
    assert robust_z([512] * 9) == [0.0] * 9
    assert robust_z([512] * 19 + [768])[-1] > 3.5
    assert robust_z([0.7] * 19 + [0.7001])[-1] > 3.5
    assert robust_z([0.7] * 19 + [0.7001], least_scale=0.02)[-1] < 0.1


def test_scans_that_are_alike_have_no_outliers(taken: Fingerprint) -> None:
    assert find_outliers(taken) == []


def test_an_outlier_is_named_with_what_is_odd_about_it(taken: Fingerprint) -> None:
    odd = changed(taken, 3, spacing_zyx_mm=(12.5, 0.7, 0.7))
    (found,) = find_outliers(odd)
    assert (found.scan_id, found.quantity, found.value) == (taken.scans[3].scan_id, "spacing z", 12.5)
    assert found.z > 3.5
    assert found.why == "spacing z: 12.5 mm, where the median of all scans is 1.25 mm"


def test_half_and_double_are_equally_far(taken: Fingerprint) -> None:
    spread = taken.model_copy(
        update={
            "scans": [
                scan.model_copy(update={"spacing_zyx_mm": (1.25 * 1.01 ** (i - 5), 0.7, 0.7)})
                for i, scan in enumerate(taken.scans)
            ]
        }
    )
    distances = []
    for factor in (0.5, 2):
        odd = changed(spread, 5, spacing_zyx_mm=(1.25 * factor, 0.7, 0.7))
        distances += [outlier.z for outlier in find_outliers(odd) if outlier.quantity == "spacing z"]
    assert len(distances) == 2
    assert abs(distances[0]) == pytest.approx(distances[1], rel=0.1)


def test_an_empty_mask_is_an_outlier(taken: Fingerprint) -> None:
    volumes = {**taken.scans[1].volume_ml, "nodules": 0.0}
    odd = changed(taken, 1, volume_ml=volumes).model_copy(update={"label_filled": {"lungs": 10, "nodules": 9}})
    assert [o.why for o in find_outliers(odd)] == ["the mask of nodules is empty; 9 of 10 scans have some"]


def test_few_scans_have_no_outliers(taken: Fingerprint) -> None:
    few = changed(taken, 0, spacing_zyx_mm=(99.0, 0.7, 0.7))
    assert find_outliers(few.model_copy(update={"scans": few.scans[:7]})) == []


@pytest.mark.parametrize(
    ("years", "wanted"),
    [(0.5, "under 40"), (39.9, "under 40"), (40, "40-49"), (79, "70-79"), (101, "80 and over"), (None, "unknown")],
)
def test_age_groups(years: float | None, wanted: str) -> None:
    assert age_group(row(age_years=years)) == wanted
    assert wanted in AGE_GROUPS


def test_counts_refusals_by_reason_and_group() -> None:
    rows = [row(manufacturer="A", sex="F", age_years=50.0, patient_id=f"p{n}") for n in range(30)]
    rows += [row("refused", reason="localizer", manufacturer="A", sex="F", age_years=50.0)]
    rows += [row("refused", reason="missing_slices", manufacturer="B", sex="M") for _ in range(4)]
    found = assess(rows, None)
    assert (found.stored, found.refused, found.patients) == (30, 5, 30)
    assert list(found.reasons.items()) == [("missing_slices", 4), ("localizer", 1)]
    vendors = {group.name: group for group in found.groups if group.by == "vendor"}
    assert (vendors["A"].stored, vendors["A"].refused) == (30, 1)
    assert vendors["A"].low < 1 / 31 < vendors["A"].high
    assert vendors["B"].differs
    assert {(c.vendor, c.sex, c.age_group, c.stored, c.refused) for c in found.cells} == {
        ("A", "F", "50-59", 30, 1),
        ("B", "M", "unknown", 0, 4),
    }


@pytest.mark.parametrize(
    "values", [[3.0], [5, 5, 5], [0, 0], [-1024, 3071], [1e-3, 2e-3], [0.1 * n for n in range(99)]]
)
def test_bins_are_round_and_hold_every_value(values: list[float]) -> None:
    bins = charts.bin_values(values)
    assert bins.counts.sum() == len(values)
    assert len(bins.counts) == len(bins.edges) - 1 <= 24
    assert bins.edges[0] <= min(values)
    assert bins.edges[-1] >= max(values)


def test_thumbnail_is_true_in_aspect_and_upright(tmp_path: Path, make_volume) -> None:
    volume = make_volume((40, 30, 28), labels=())
    image = np.full_like(volume.image_zyx, -1000)
    image[30:, 12:] = 100  # the head's end
    archive = Archive.create(str(tmp_path / "archive"), LAYOUT)
    archive.write_scan(type(volume)(image_zyx=image, geometry=volume.geometry, info=volume.info))
    thumbnail = draw_thumbnail(archive.scan(volume.info.scan_id), level=1)
    z_mm, _, x_mm = volume.geometry.spacing_zyx_mm
    assert thumbnail.coronal.height_mm / thumbnail.coronal.width_mm == pytest.approx(40 * z_mm / (28 * x_mm))
    (tmp_path / "coronal.png").write_bytes(thumbnail.coronal.png)
    with Image.open(tmp_path / "coronal.png") as picture:
        grey = np.asarray(picture)
    assert grey[0].mean() > 200 > 100 > grey[-1].mean()


def report_of(archive: Archive, taken: Fingerprint, **fields: Any) -> QcReport:
    rows = [row(scan_id=scan.scan_id, manufacturer="<b>A&B", sex="F", age_years=61.0) for scan in taken.scans]
    rows += [row("refused", reason="missing_slices", manufacturer="C")]
    thumbnails = [draw_thumbnail(archive.scan(scan.scan_id), 1) for scan in taken.scans[:3]]
    found: Assessment = assess(rows, taken)
    return QcReport(title="QC", rows=rows, fingerprint=taken, assessment=found, thumbnails=thumbnails, **fields)


def test_report_is_one_file_without_script_or_host(archive: Archive, taken: Fingerprint, tmp_path: Path) -> None:
    odd = changed(taken, 0, spacing_zyx_mm=(12.5, 0.7, 0.7))
    path = write_qc_report(tmp_path / "folder" / "qc.html", report_of(archive, odd, drawn_with=4))
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    sources = [value for _, attrs in page.tags for name, value in attrs.items() if name in {"src", "href"}]
    assert len(sources) == 6
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"url\(|@import|https?://", text)
    assert "&lt;b&gt;A&amp;B" in text
    assert "missing_slices" in text
    assert "3 of 10 scans, drawn at random with seed 4" in text
    assert "spacing z: 12.5 mm" in text
    assert [attrs["title"] for tag, attrs in page.tags if attrs.get("class") == "scan flagged"]


def test_same_archive_gives_the_same_report(archive: Archive, taken: Fingerprint) -> None:
    assert render(report_of(archive, taken)) == render(report_of(archive, taken))


def test_archive_of_refusals_alone_has_a_report_too() -> None:
    rows = [row("refused", reason="localizer")]
    text = render(QcReport(title="QC", rows=rows, fingerprint=None, assessment=assess(rows, None)))
    assert "localizer" in text
    assert "Montage" not in text
    Page(text)
