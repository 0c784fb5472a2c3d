from __future__ import annotations

import base64
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image as Pillow

from tomoray.geometry import Geometry
from tomoray.reports.pictures import Case, contours, draw, largest_piece, views
from tomoray.reports.run_report import Report, Stage, mean, render, write_report

SHAPE = (20, 40, 60)


def geometry(z_mm=2.5, y_mm=1.0, x_mm=0.5, *, upside_down=False):
    matrix = np.diag([x_mm, y_mm, -z_mm if upside_down else z_mm, 1.0])
    return Geometry.from_matrix(SHAPE, matrix)


def ball(centre, radius):
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    return (((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2) <= radius**2).astype(np.uint8)


def case(patient_id="p1", truth=None, prediction=None, where=None):
    image = np.full(SHAPE, 40, dtype=np.int16)
    masks = {"nodules": ball((6, 20, 30), 4)} if truth is None else truth
    return Case(
        patient_id=patient_id,
        image_zyx=image,
        geometry=where or geometry(),
        truth=masks,
        prediction=masks if prediction is None else prediction,
    )


def report(**changes):
    fields = {"title": "A run", "lead": "", "dice": {"nodules": {"p1": 0.5, "p2": 0.75}}, **changes}
    return Report(**fields)


def enclosed_area(outline):
    x, y = outline.T.astype(float)
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


def test_contour_runs_halfway_between_inside_and_outside():
    mask = np.zeros((5, 5), np.uint8)
    mask[2, 3] = 1
    (outline,) = contours(mask)
    assert {tuple(point) for point in outline.tolist()} == {(5, 4), (7, 4), (6, 3), (6, 5)}
    assert (outline[0] == outline[-1]).all()


def test_contours_of_any_mask_close_and_holes_turn_the_other_way():
    ring = np.ones((7, 9), np.uint8)
    ring[3, 3:6] = 0
    areas = [enclosed_area(outline) for outline in contours(ring)]
    assert len(areas) == 2
    assert min(areas) < 0 < max(areas)
    noise = np.random.default_rng(0).random((30, 30)) > 0.5
    assert all((outline[0] == outline[-1]).all() for outline in contours(noise))


def test_contours_of_touching_corners_stay_apart():
    assert len(contours(np.eye(2, dtype=np.uint8))) == 2
    assert contours(np.zeros((3, 3), np.uint8)) == []


def test_cuts_through_the_largest_piece():
    assert largest_piece(ball((4, 10, 50), 2) | ball((12, 25, 20), 5)) == (12, 25, 20)


def test_views_have_the_aspect_of_the_body():
    axial, coronal, close_up = views(case(), "nodules")
    assert axial.size_mm == (40.0, 30.0)
    assert coronal.size_mm == (50.0, 30.0)
    assert close_up.size_mm == (40.0, 30.0)
    assert 'viewBox="0 0 30.00 50.00"' in draw(coronal)


def test_coronal_view_has_the_head_at_the_top_whatever_the_stored_order():
    high = {"nodules": ball((15, 20, 30), 3)}
    for upside_down in (False, True):
        coronal = views(case(truth=high, where=geometry(upside_down=upside_down)), "nodules")[1]
        rows = np.flatnonzero(np.asarray(coronal.truth["nodules"]).any(axis=1))
        assert (rows.mean() < SHAPE[0] / 2) is not upside_down


def test_shows_the_prediction_where_the_truth_is_empty_and_the_middle_where_both_are():
    empty = {"nodules": np.zeros(SHAPE, np.uint8)}
    found = views(case(truth=empty, prediction={"nodules": ball((15, 20, 30), 3)}), "nodules")
    assert np.any(found[0].prediction["nodules"])
    assert [view.name for view in views(case(truth=empty, prediction=empty), "nodules")] == ["axial", "coronal"]


def test_picture_is_a_windowed_png():
    svg = draw(views(case(), "nodules")[0])
    png = base64.b64decode(re.search(r"base64,([^\"]+)", svg)[1])
    grey = np.asarray(Pillow.open(io.BytesIO(png)))
    assert grey.dtype == np.uint8
    assert grey.max() == round((40 + 1350) / 1500 * 255 - 0.5)


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.open, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_report_is_one_file_without_scripts_or_other_hosts():
    text = render(
        report(
            cases=[case()], history=[(1, 1.0), (2, 0.5)], stages=[Stage(name="train", seconds=3)], versions={"a": "1"}
        )
    )
    page = Page(text)
    assert page.open == []
    assert len(page.links) == 3
    assert all(link.startswith("data:image/png") for link in page.links)
    assert "<script" not in text
    assert "url(" not in text


def test_report_gives_each_patient_and_the_mean():
    page = Page(render(report(goals={"nodules": 0.7})))
    for expected in ("p1", "0.500", "p2", "0.750", "0.625", "below 0.70 wanted"):
        assert expected in page.text


def test_report_says_what_was_refused_and_how_long_it_took():
    stages = [Stage(name="preprocess", seconds=9.84, mb_per_s=92.5), Stage(name="train", seconds=100)]
    page = Page(render(report(stages=stages, stored=7, refused={"missing_slices": 2})))
    for expected in ("92.5", "9.8", "1 min 50 s", "missing_slices", "series stored, 2 refused"):
        assert expected in page.text


def test_report_escapes_what_it_is_given():
    text = render(report(title="<b>&", dice={"<i>": {'"p"': math.nan}}))
    assert "<b>&" not in text
    assert "<i>" not in text.partition("</style>")[2].replace("<i style", "")


def test_mean_leaves_out_what_is_not_defined():
    assert mean([0.5, math.nan, 1.0]) == 0.75
    assert math.isnan(mean([]))


def test_writes_the_file_whole_in_a_new_folder(tmp_path):
    path = write_report(tmp_path / "new" / "report.html", report())
    assert path.read_text(encoding="utf-8").endswith("</html>\n")
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize("history", [[(5, 0.0)], [(1, 2.0), (1, 2.0)]])
def test_draws_a_loss_curve_of_hardly_anything(history):
    assert "NaN" not in render(report(history=history))
