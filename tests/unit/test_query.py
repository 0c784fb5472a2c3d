"""Questions to an archive, as the command line asks them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from cluster import cli
from tomoray import settings
from tomoray.archive import Archive
from tomoray.catalog import SCHEMA, Catalog, refused_row, stored_row
from tomoray.config import Layout
from tomoray.errors import Reason, Refused
from tomoray.ingest.series import Identity
from tomoray.lease import MARK
from tomoray.privacy.pseudonyms import Pseudonyms

UID = "1.2.840.113654.2.55.1"
SCAN = "5ca9" * 5


@pytest.fixture
def archive(make_volume, tmp_path) -> Archive:
    """A stored scan with notes, a series refused in two parts whose UID is known, and ten more."""
    found = Archive.create(str(tmp_path / "archive"), Layout())
    volume = make_volume((20, 21, 22))
    found.write_scan(volume)
    known = Pseudonyms(settings.pseudonym_key()).token("series", UID)
    ids = [(known, "acquisition 1"), (known, "acquisition 2"), *((f"{n:x}" * 20, "") for n in range(1, 11) if n != 5)]
    Catalog(found.store).upsert([stored_row(volume, "c" * 64), *(_refused(*each) for each in ids)])
    return found


def _refused(series_id: str, part: str) -> dict[str, Any]:
    return refused_row(
        Identity(series_id=series_id, patient_id="ab" * 10, digest="0" * 64),
        Refused(Reason.MISSING_SLICES, "gap of 5.0 mm after plane 7; wanted 2.5 mm"),
        source_uri="/data/ct",
        n_instances=40,
        part=part,
        config_sha256="1" * 64,
    )


def answer(capsys: Any, *arguments: str) -> dict[str, Any]:
    assert cli.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_rows_are_chosen_by_filter_columns_and_limit(archive, capsys):
    found = answer(capsys, "catalog", archive.url, "--where", "status='refused'", "--columns", "reason", "--limit", "3")
    assert (found["found"], found["columns"]) == (11, ["reason"])
    assert found["rows"] == [{"reason": "missing_slices"}] * 3
    assert len(answer(capsys, "catalog", archive.url, "--limit", "0")["rows"]) == 12


def test_identifiers_are_shown_whole_in_a_narrow_terminal(archive, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    [row] = answer(capsys, "catalog", archive.url, "--where", "status='stored'")["rows"]
    assert cli.main(["catalog", archive.url, "--where", "status='stored'"]) == 0
    said = capsys.readouterr().out
    assert row["series_id"] in said
    assert max(map(len, said.splitlines())) <= 100


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_all_rows_found_go_to_a_file_whatever_the_limit(archive, capsys, tmp_path, suffix):
    out = tmp_path / f"rows.{suffix}"
    answer(capsys, "catalog", archive.url, "--where", "status='refused'", "--limit", "1", "--out", str(out))
    table = pq.read_table(out) if suffix == "parquet" else pa_csv.read_csv(out)
    assert (table.num_rows, table.column_names) == (11, SCHEMA.names)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--where", "colour='red'"], "colour"),
        (["--columns", "colour"], "the catalog has no column colour"),
        (["--out", "rows.txt"], "neither .parquet nor .csv"),
    ],
)
def test_question_that_is_not_understood_is_wrong_usage(archive, capsys, arguments, complaint):
    assert cli.main(["catalog", archive.url, *arguments]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_stored_series_is_explained_with_its_notes_by_its_own_id_and_its_scans(archive, capsys):
    (part,) = answer(capsys, "explain", archive.url, SCAN)["parts"]
    assert (part["status"], part["scan"]) == ("stored", f"scans/{SCAN}")
    assert cli.main(["explain", archive.url, SCAN]) == 0
    shown = capsys.readouterr().out
    assert "20 x 21 x 22 voxels" in shown
    assert "padding at -3024 HU set to -1024" in shown


def test_series_instance_uid_finds_every_part_and_is_not_repeated(archive, capsys):
    found = answer(capsys, "explain", archive.url, UID)
    assert [part["part"] for part in found["parts"]] == ["acquisition 1", "acquisition 2"]
    assert all(part["meaning"] and part["advice"] for part in found["parts"])
    assert UID not in json.dumps(found)


def test_series_that_was_never_seen_is_an_error_that_does_not_repeat_a_uid(archive, capsys):
    assert cli.main(["explain", archive.url, "1.2.3.4711"]) == 1
    assert "1.2.3.4711" not in capsys.readouterr().err
    assert cli.main(["explain", archive.url, "not hexadecimal"]) == 2


def test_watching_what_nobody_writes_says_how_to_start(archive, capsys):
    assert cli.main(["watch", archive.url]) == 1
    assert "nothing writes" in capsys.readouterr().err


def test_watching_a_run_that_was_killed_says_so(archive, capsys):
    mark = {"host": "elsewhere", "pid": 1, "id": "0", "renewed": time.time() - 600, "progress": {"total": 3}}
    archive.store.write(MARK, json.dumps(mark).encode())
    assert cli.main(["watch", archive.url]) == 1
    assert "the run on elsewhere has said nothing for" in capsys.readouterr().err


def test_plan_of_what_is_not_there_is_one_line(capsys, tmp_path: Path):
    assert cli.main(["plan", str(tmp_path / "nowhere"), str(tmp_path / "archive")]) == 1
    assert "no folder or file" in capsys.readouterr().err
