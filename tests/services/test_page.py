"""The page at `/` in headless Chromium, against the jobs API without a model."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
import pytest
import requests
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from serving.page import BUILT
from tomoray.config import PhantomConfig
from tomoray.phantom import write_patient

SCRIPT = Path(__file__).parent / "jobs_api.py"
AXE = BUILT.parent / "node_modules" / "axe-core" / "axe.min.js"
SOFTWARE_GL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]


@contextmanager
def jobs_api(*options):
    command = [sys.executable, str(SCRIPT), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield json.loads(process.stdout.readline())["url"]
        process.stdin.close()
        assert process.wait(timeout=30) == 0


@pytest.fixture(scope="module")
def server():
    with jobs_api("--seconds", "1") as url:
        yield url


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder of slices."""
    config = PhantomConfig(out=str(tmp_path_factory.mktemp("phantom")), patients=1, seed=1, matrix=64)
    return Path(write_patient(config, 0).folder) / "ct"


@pytest.fixture(scope="module")
def browser():
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")
    if not (BUILT / "index.html").is_file():
        pytest.skip("the page is not built: make page")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=SOFTWARE_GL)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A tab that writes down what goes wrong in it, and where it asks."""
    tab = browser.new_page(viewport={"width": 900, "height": 600}, accept_downloads=True)
    tab.set_default_timeout(120_000)
    tab.wrong, tab.asked = [], set()
    tab.on("pageerror", lambda error: tab.wrong.append(str(error)))
    tab.on("console", lambda said: tab.wrong.append(said.text) if "Content Security Policy" in said.text else None)
    tab.on("request", lambda request: tab.asked.add(request.url))
    yield tab
    assert tab.wrong == []
    tab.close()


def heading(page, text):
    return page.get_by_role("heading", level=1, name=text)


def give(page, folder):
    expect(heading(page, "Drop a CT study")).to_be_visible()
    page.set_input_files("#folder", str(folder))


def blue(page):
    """Where the slices are blue, as the first label is, rather than grey: bool [y, x]."""
    page.wait_for_timeout(500)  # for the next frame
    rgb = np.asarray(Image.open(io.BytesIO(page.locator("#canvas").screenshot())).convert("RGB")).astype(int)
    return rgb[..., 2] - rgb[..., 0] > 24


def masked(page):
    return int(blue(page).sum())


def extent(found):
    return np.array([(ends.min(), ends.max()) for ends in np.nonzero(found)])


def test_study_is_shown_with_what_was_found(page, server, study):
    page.goto(server)
    give(page, study)
    expect(heading(page, "Working")).to_be_visible()
    expect(page.get_by_role("status")).to_contain_text("windows")
    expect(heading(page, "Volumes")).to_be_visible()
    rows = page.get_by_role("row").all_inner_texts()
    assert [row.split()[0] for row in rows] == ["Label", "lungs", "bones"]
    assert masked(page) > 1000
    page.get_by_label("Show lungs").uncheck()
    assert masked(page) < 100
    assert {url.partition("/v1/")[0].partition("/page/")[0].rstrip("/") for url in page.asked} == {server}
    with page.expect_download() as started:
        page.get_by_role("button", name="DICOM SR").click()
    assert pydicom.dcmread(started.value.path()).Modality == "SR"


def test_box_is_drawn_around_what_it_holds(page, study):
    with jobs_api("--models", "threshold", "box") as url:
        page.goto(url)
        give(page, study)
        expect(heading(page, "Volumes")).to_be_visible()
        page.get_by_label("Show bones").uncheck()
        page.get_by_role("button", name="lungs").click()
        slices = int(page.locator("#slice").get_attribute("max"))
        page.locator("#slice").fill(str(slices // 2 + 1))
        lungs = blue(page)
        page.get_by_role("button", name="Another study").click()
        page.locator("#model").select_option("box")
        give(page, study)
        expect(heading(page, "1 lesion")).to_be_visible()
        page.get_by_role("button", name="lungs 1").click()
        expect(page.locator("#place")).to_contain_text(f"Slice {slices // 2 + 1} of")
        box = blue(page)
        page.get_by_label("Show lungs 1").uncheck()
        assert masked(page) < 100
    assert np.abs(extent(box) - extent(lungs)).max() < 20  # its sides lie a voxel outside; one is 7 pixels wide


def test_token_that_may_ask_no_model_is_told_so(page):
    with jobs_api("--models") as url:
        page.goto(url)
        expect(heading(page, "Not for this token")).to_be_visible()
        expect(page.get_by_role("alert")).to_contain_text("scope is infer")


def test_keys_move_through_slices_windows_and_planes(page, server, study):
    page.goto(server)
    give(page, study)
    expect(heading(page, "Volumes")).to_be_visible()
    place = page.locator("#place")
    expect(place).to_contain_text("Slice")
    page.keyboard.press("Home")
    expect(place).to_contain_text("Slice 1 of")
    page.keyboard.press("ArrowUp")
    expect(place).to_contain_text("Slice 2 of")
    page.keyboard.press("c")
    expect(place).to_contain_text("of 64")
    page.keyboard.press("4")
    expect(page.get_by_role("radio", name="Bone")).to_be_checked()
    page.keyboard.press("?")
    expect(heading(page, "Keys")).to_be_visible()
    url = page.url
    page.goto("about:blank")
    page.goto(url)  # the job is still there
    expect(heading(page, "Volumes")).to_be_visible()


def test_refused_study_says_why(page, server, study, tmp_path):
    shutil.copytree(study, tmp_path / "gap", ignore=lambda _, names: sorted(names)[7:9])
    page.goto(server)
    give(page, tmp_path / "gap")
    expect(heading(page, "This study is refused")).to_be_visible()
    expect(page.get_by_role("alert")).to_contain_text("missing_slices")
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()
    page.get_by_role("button", name="Another study").click()
    expect(heading(page, "Drop a CT study")).to_be_visible()


def test_files_that_are_no_study_are_refused_too(page, server, tmp_path):
    (tmp_path / "notes.txt").write_text("no DICOM")
    page.goto(server)
    expect(heading(page, "Drop a CT study")).to_be_visible()
    page.set_input_files("#file", str(tmp_path / "notes.txt"))
    expect(page.get_by_role("alert")).to_contain_text("no DICOM file")


def test_job_can_be_cancelled(page, study):
    with jobs_api("--seconds", "600") as url:
        page.goto(url)
        give(page, study)
        expect(page.get_by_role("status")).to_contain_text("windows")
        job = page.url.partition("#job=")[2]
        page.get_by_role("button", name="Cancel").click()
        expect(heading(page, "Drop a CT study")).to_be_visible()
        assert requests.get(f"{url}/v1/jobs/{job}", timeout=30).json()["state"] == "cancelled"


def test_token_opens_a_server_that_wants_one(page):
    with jobs_api("--token", "of-tests-only") as url:
        page.goto(url)
        page.get_by_label("Token").fill("another")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("does not know this token")
        page.get_by_label("Token").fill("of-tests-only")
        page.keyboard.press("Enter")
        expect(heading(page, "Drop a CT study")).to_be_visible()
        page.get_by_role("button", name="Sign out").click()
        expect(heading(page, "Sign in")).to_be_visible()
        assert page.evaluate("sessionStorage.length") == 0


def test_server_that_went_away_is_told_and_tried_again(page, study):
    with jobs_api() as url:
        page.goto(url)
        expect(heading(page, "Drop a CT study")).to_be_visible()
    give(page, study)
    expect(heading(page, "No answer")).to_be_visible()
    expect(page.get_by_role("button", name="Try again")).to_be_visible()


def test_nothing_from_elsewhere_runs(page, server):
    said = page.goto(server).all_headers()["content-security-policy"]
    assert "default-src 'none'" in said
    assert "unsafe" not in said
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = true'}))")
    assert page.evaluate("window.ran") is None
    assert len(page.wrong) == 1
    page.wrong.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser, server, study, scheme):
    tab = browser.new_page(color_scheme=scheme, bypass_csp=True, viewport={"width": 900, "height": 600})
    tab.set_default_timeout(120_000)
    tab.goto(server)
    tab.add_script_tag(path=AXE)
    expect(heading(tab, "Drop a CT study")).to_be_visible()
    found = violations(tab)
    tab.set_input_files("#folder", str(study))
    expect(heading(tab, "Working")).to_be_visible()
    found += violations(tab)
    expect(heading(tab, "Volumes")).to_be_visible()
    found += violations(tab)
    tab.close()
    assert found == []


def violations(tab):
    return tab.evaluate(
        "axe.run().then(({violations}) => violations.map(({id, nodes}) => `${id}: ${nodes.map(({html}) => html)}`))"
    )
