"""The quality report of an archive, as one HTML file that needs nothing else: no script, no host, no patient data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from tomoray.reports import charts
from tomoray.reports.pages import render_page, section, write_page
from tomoray.reports.pictures import LUNG_WINDOW_HU
from tomoray.reports.thumbnails import Plane, Thumbnail
from tomoray.statistics.fingerprint import Fingerprint, HuCounts
from tomoray.statistics.histograms import Histogram
from tomoray.statistics.qc import AGE_GROUPS, FAR, FEWEST_SCANS, Assessment, Group, Outlier, sex, vendor

_MOST_OUTLIERS = 100
_HU_BINS = (20, -1100, 1500)


@dataclass(frozen=True, kw_only=True, slots=True)
class QcReport:
    """The content of a report.

    Attributes:
        rows: of the catalog, stored and refused.
        fingerprint: of the stored scans; None where there are none.
        thumbnails: of all scans, or of some of them.
        drawn_with: the seed by which `thumbnails` were drawn from a larger archive; None where they are all.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]
    fingerprint: Fingerprint | None
    assessment: Assessment
    thumbnails: Sequence[Thumbnail] = ()
    drawn_with: int | None = None


def write_qc_report(path: str | Path, report: QcReport) -> Path:
    """Write the report as `path` (made whole, then renamed; its folder is made) and return it. Safe to repeat."""
    return write_page(path, render(report))


def render(report: QcReport) -> str:
    """The report as HTML text."""
    found = report.assessment
    body = [
        f"<h1>{escape(report.title)}</h1>"
        '<p class="lead">What the archive holds, what was refused, and which scans deserve a look.</p>',
        _cards(report),
        '<div class="halves">' + section("Refused, by reason", _card(_refusals(found))),
        section("Series by vendor", _card(_vendors(found.groups))) + "</div>",
        section("Scans in numbers", _plots(report), _numbers_note(report.fingerprint)) if found.stored else "",
        section("Labels", _card(_labels(report.fingerprint))) if _has_labels(report.fingerprint) else "",
        section("Outliers", _card(_outliers(found)), _outlier_note()) if found.stored else "",
        section("Montage", _montage(report), _montage_note(report)) if report.thumbnails else "",
        section("Who is refused", _card(_bias(found)), _bias_note()),
        section("Who is in it", _who(found), "Stored series by vendor, age and sex; below them what was refused."),
    ]
    return render_page(report.title, body, styles=("report.css", "qc.css"))


def _card(content: str) -> str:
    return f'<div class="card">{content}</div>'


def _cards(report: QcReport) -> str:
    found, fingerprint = report.assessment, report.fingerprint
    seen = found.stored + found.refused
    cards = [
        f"<b>{found.stored}</b><span>series stored</span>",
        f"<b>{found.refused}</b><span>refused{f', {found.refused / seen:.1%} of all' if seen else ''}</span>",
        f"<b>{found.patients}</b><span>patients</span>",
    ]
    if fingerprint:
        cards.append(f"<b>{len(fingerprint.label_scans)}</b><span>labels</span>")
        cards.append(f"<b>{fingerprint.size_bytes / 1e9:.2f} GB</b><span>of voxels and masks in memory</span>")
        n = len({outlier.scan_id for outlier in found.outliers})
        cards.append(f"<b>{n}</b><span>scan{'s' * (n != 1)} with an outlier</span>")
    return '<div class="cards">' + "".join(_card(card) for card in cards) + "</div>"


def _refusals(found: Assessment) -> str:
    if not found.reasons:
        return '<p class="empty">Nothing was refused.</p>'
    return charts.bars(found.reasons, mono=True)


def _vendors(groups: Sequence[Group]) -> str:
    counts = {group.name: (group.stored, group.refused) for group in groups if group.by == "vendor"}
    return charts.pairs(counts, ("stored", "refused")) if counts else '<p class="empty">No series yet.</p>'


def _plots(report: QcReport) -> str:
    stored = [row for row in report.rows if row["status"] == "stored"]
    plots = []

    def plot(title: str, values: Sequence[float | None], unit: str, absent: str = "unknown") -> None:
        known = [float(value) for value in values if value is not None]
        if known:
            missing = f"{len(values) - len(known)} of {len(values)} {absent}" if len(known) < len(values) else ""
            plots.append(charts.histogram(title, charts.bin_values(known), unit, note=missing))

    if report.fingerprint:
        scans = report.fingerprint.scans
        plot("Slices", [scan.shape_zyx[0] for scan in scans], "")
        plot("Spacing between slices", [scan.spacing_zyx_mm[0] for scan in scans], "mm")
        plot("Spacing within slices", [scan.spacing_zyx_mm[2] for scan in scans], "mm")
    plot("Slice thickness", [row["slice_thickness_mm"] for row in stored], "mm")
    plot("Age", [row["age_years"] for row in stored], "years")
    if report.fingerprint:
        plots += [
            _hu_plot(title, report.fingerprint.histogram[region])
            for title, region in (("Inside the body", "body"), ("Inside any label", "foreground"))
            if region in report.fingerprint.histogram
        ]
        plot("Body's share of the scan", [100 * scan.body_share for scan in scans], "%")
        for label in report.fingerprint.label_scans:
            plot(f"Volume of {label}", [scan.volume_ml.get(label) for scan in scans], "ml", absent="without")
    for title, name_of in (("Sex", sex), ("Vendor", vendor)):
        counts = dict(Counter(name_of(row) for row in stored).most_common())
        plots.append(f'<figure class="plot"><figcaption><b>{title}</b></figcaption>{charts.bars(counts)}</figure>')
    return '<div class="plots">' + "".join(_card(plot) for plot in plots) + "</div>"


def _hu_plot(title: str, stored: HuCounts) -> str:
    width, low, high = _HU_BINS
    counted = Histogram(first_hu=stored.first_hu, counts=np.array(stored.counts, dtype=np.int64))
    counts = counted.rebinned(width, low, high)
    edges = np.arange(low, high + width, width, dtype=np.float64)
    note = f"{counted.n / 1e6:.1f} million voxels"
    return charts.histogram(title, charts.Bins(edges=edges, counts=counts), "HU", of="voxels", note=note)


def _numbers_note(fingerprint: Fingerprint | None) -> str:
    if fingerprint is None:
        return ""
    return f"The body is what is {fingerprint.body}; on level {fingerprint.body_level}."


def _has_labels(fingerprint: Fingerprint | None) -> bool:
    return fingerprint is not None and bool(fingerprint.label_scans)


def _labels(fingerprint: Fingerprint | None) -> str:
    assert fingerprint is not None
    rows = ""
    for label, n in fingerprint.label_scans.items():
        volume, hu = fingerprint.volume_ml[label], fingerprint.label_hu.get(label)
        inside = ", ".join(
            f"{share:.0%} in {outer}"
            for outer, shares in fingerprint.inside.items()
            for inner, share in shares.items()
            if inner == label
        )
        rows += (
            f'<tr><td class="name">{escape(label)}</td><td class="number">{n} of {fingerprint.n_scans}</td>'
            f'<td class="number">{fingerprint.label_filled[label]}</td>'
            f'<td class="number">{volume.median:.4g}</td><td class="number">{volume.min:.4g} to {volume.max:.4g}</td>'
            f'<td class="number">{f"{hu.mean:.0f} ± {hu.std:.0f}" if hu else "-"}</td><td>{escape(inside)}</td></tr>'
        )
    head = "".join(
        f'<th class="number">{name}</th>' for name in ("scans", "not empty", "median ml", "range, ml", "HU, mean ± SD")
    )
    return f"<table><tr><th>label</th>{head}<th></th></tr>{rows}</table>"


def _outliers(found: Assessment) -> str:
    if not found.outliers:
        return '<p class="empty">No scan is far from the others.</p>'
    by_scan: dict[str, list[Outlier]] = {}
    for outlier in found.outliers:
        by_scan.setdefault(outlier.scan_id, []).append(outlier)
    rows = "".join(
        f'<tr><td class="mono">{escape(scan_id)}</td><td>'
        + "".join(f"<div>{escape(outlier.why)}</div>" for outlier in outliers)
        + '</td><td class="number">'
        + "".join(f"<div>{_distance(outlier)}</div>" for outlier in outliers)
        + "</td></tr>"
        for scan_id, outliers in list(by_scan.items())[:_MOST_OUTLIERS]
    )
    more = len(by_scan) - _MOST_OUTLIERS
    rest = f'<p class="empty more">and {more} more scans; --json names them all</p>' if more > 0 else ""
    return f'<table class="top"><tr><th>scan</th><th>why</th><th class="number">robust z</th></tr>{rows}</table>{rest}'


def _distance(outlier: Outlier) -> str:
    if not outlier.value and outlier.unit == "ml":
        return "empty"
    return f"{outlier.z:+.1f}".replace("-", "\N{MINUS SIGN}")


def _outlier_note() -> str:
    return (
        f"Beyond {FAR} robust standard deviations from the median, farthest first; lengths and volumes by their "
        f"logarithms. Fewer than {FEWEST_SCANS} scans have no outliers."
    )


def _montage(report: QcReport) -> str:
    reasons = {outlier.scan_id: outlier.why for outlier in reversed(report.assessment.outliers)}
    figures = ""
    for thumb in report.thumbnails:
        why = reasons.get(thumb.scan_id)
        opening = f'<figure class="scan flagged" title="{escape(why)}">' if why else '<figure class="scan">'
        figures += (
            f'{opening}<div class="planes">{_image(thumb.axial, "axial")}{_image(thumb.coronal, "coronal")}</div>'
            f'<figcaption class="mono">{escape(thumb.scan_id)}</figcaption></figure>'
        )
    return f'<div class="montage">{figures}</div>'


def _image(plane: Plane, name: str) -> str:
    ratio = plane.width_mm / plane.height_mm
    return f'<img src="{plane.data_url}" alt="{name}" style="flex:{ratio:.4f} 1 0;aspect-ratio:{ratio:.4f}">'


def _montage_note(report: QcReport) -> str:
    shown, stored = len(report.thumbnails), report.assessment.stored
    which = (
        f"All {stored} scans"
        if report.drawn_with is None
        else f"{shown} of {stored} scans, drawn at random with seed {report.drawn_with}"
    )
    low, high = LUNG_WINDOW_HU
    return (
        f"{which}: the middle axial and coronal plane, true in aspect, {low:.0f} to {high:.0f} HU. "
        "The patient's right is on the left. An orange frame marks a scan with an outlier."
    )


def _bias(found: Assessment) -> str:
    rows, before = "", ""
    overall = found.refused / max(1, found.stored + found.refused)
    for group in found.groups:
        first = f'<td class="by">{group.by if group.by != before else ""}</td>'
        before = group.by
        n = group.stored + group.refused
        mark = '<b class="differs">differs</b>' if group.differs else ""
        rows += (
            f'<tr>{first}<td class="name">{escape(group.name)}</td><td class="number">{n}</td>'
            f'<td class="number">{group.refused}</td><td class="number">{group.refused_share:.1%}</td>'
            f'<td class="wide"><span class="range"><i style="left:{100 * group.low:.1f}%;'
            f'right:{100 - 100 * group.high:.1f}%"></i><s style="left:{100 * overall:.1f}%"></s>'
            f'<u style="left:{100 * group.refused_share:.1f}%"></u></span>'
            f"</td><td>{mark}</td></tr>"
        )
    numbers = "".join(f'<th class="number">{name}</th>' for name in ("series", "refused", "share"))
    axis = '<th><span class="axis"><span>0 %</span><span>100 %</span></span></th>'
    head = f"<tr><th></th><th></th>{numbers}{axis}<th></th></tr>"
    return f'<table class="bias">{head}{rows}</table>'


def _bias_note() -> str:
    return (
        "The share of series refused (blue), with its 95 % interval (Wilson). A group whose interval does not hold the "
        "share of all series (dark line) is marked: what is left for training may then lack it."
    )


def _who(found: Assessment) -> str:
    vendors = [group.name for group in found.groups if group.by == "vendor"]
    ages = [age for age in AGE_GROUPS if any(cell.age_group == age for cell in found.cells)]
    tables = [
        charts.heat(
            vendors,
            ages,
            {
                (cell.vendor, cell.age_group): (
                    cell.stored,
                    f"{cell.refused} refused ({cell.refused / (cell.stored + cell.refused):.0%})"
                    if cell.refused
                    else "",
                )
                for cell in found.cells
                if cell.sex == name
            },
            f"sex: {name}",
        )
        for name in (group.name for group in found.groups if group.by == "sex")
    ]
    return "".join(_card(table) for table in tables) or _card('<p class="empty">No series yet.</p>')
