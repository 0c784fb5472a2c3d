import numpy as np
import pytest
from pydicom import Dataset

from tomoray import __version__
from tomoray.catalog import SCHEMA, Catalog, refused_row, split_by_patient, stored_row
from tomoray.errors import Fatal, Reason, Refused
from tomoray.ingest.series import Identity
from tomoray.privacy.deidentify import Deidentifier
from tomoray.privacy.pseudonyms import Pseudonyms
from tomoray.storage import open_store
from tomoray.training.sample_config import SplitConfig


@pytest.fixture
def catalog(tmp_path):
    return Catalog(open_store(str(tmp_path)))


def refused(series_id, evidence="gap of 5.0 mm after plane 7; wanted 2.5 mm"):
    return refused_row(
        Identity(series_id=series_id, patient_id="ab" * 10, digest="0" * 64),
        Refused(Reason.MISSING_SLICES, evidence),
        source_uri="/data/ct",
        n_instances=40,
        config_sha256="1" * 64,
        header=Deidentifier(Pseudonyms(b"a key for tests only")).describe(header_of_a_ge_scanner()),
    )


def header_of_a_ge_scanner():
    dataset = Dataset()
    dataset.Modality, dataset.Manufacturer, dataset.PatientName = "CT", "GE MEDICAL SYSTEMS", "DOE^JANE"
    return dataset


def stat(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*.parquet")}


def test_a_stored_series_has_its_geometry_and_lineage_in_its_row(catalog, make_volume):
    volume = make_volume()
    catalog.upsert([stored_row(volume, "c" * 64)])
    (row,) = catalog.rows()
    assert list(row) == SCHEMA.names
    assert (row["status"], row["reason"], row["scan_id"]) == ("stored", None, volume.info.scan_id)
    assert row["shape_zyx"] == list(volume.image_zyx.shape)
    assert row["affine_lps"] == list(volume.geometry.affine_lps)
    assert row["labels"] == ["lungs", "nodules"]
    assert row["notes"] == list(volume.info.notes)
    assert (row["code_version"], row["config_sha256"]) == (__version__, "c" * 64)


def test_a_refused_series_has_its_reason_in_its_row(catalog):
    catalog.upsert([refused("a" * 20)])
    (row,) = catalog.rows()
    assert (row["status"], row["reason"], row["scan_id"]) == ("refused", "missing_slices", None)
    assert row["evidence"].startswith("gap of 5.0 mm")
    assert (row["manufacturer"], row["deid_n_removed"]) == ("GE", 1)


def test_an_empty_catalog_has_the_columns(catalog):
    assert catalog.table().schema == SCHEMA
    assert catalog.rows() == []


def test_rows_come_sorted_and_the_last_word_on_a_series_counts(catalog):
    ids = [digit * 20 for digit in "f0a3"]
    catalog.upsert([refused(series_id) for series_id in ids])
    catalog.upsert([refused("a" * 20, evidence="looked again")])
    assert [row["series_id"] for row in catalog.rows()] == sorted(ids)
    assert [row["series_id"] for row in catalog.rows() if row["evidence"] == "looked again"] == ["a" * 20]


def test_the_same_rows_leave_every_byte_untouched(tmp_path, catalog):
    rows = [refused(f"{n:x}" * 20) for n in range(16)]
    catalog.upsert(rows)
    before = stat(tmp_path)
    catalog.upsert(reversed(rows))
    catalog.upsert(rows[3:5])
    assert stat(tmp_path) == before
    assert len(before) == 16


def test_the_order_of_upserts_does_not_show_in_the_bytes(tmp_path):
    rows = [refused(f"{n:020x}") for n in range(30)]
    for name, parts in {"a": [rows], "b": [rows[20:], rows[:7], rows[5:25]]}.items():
        for part in parts:
            Catalog(open_store(f"{tmp_path}/{name}")).upsert(part)
    assert (tmp_path / "a/catalog/0.parquet").read_bytes() == (tmp_path / "b/catalog/0.parquet").read_bytes()


def test_neither_order_nor_groups_of_rows_show_in_the_bytes(tmp_path):
    rng, ids = np.random.default_rng(0), [f"a{number:07x}" for number in range(700)]
    rows = [row for series_id in ids for row in parts(series_id, 2)]
    Catalog(open_store(str(tmp_path / "once"))).upsert(rows)
    catalog = Catalog(open_store(str(tmp_path / "often")))
    for some in np.array_split(rng.permutation(ids), 4):
        catalog.upsert([row for series_id in some for row in parts(series_id, 3)])  # other rows at first
    for some in np.array_split(rng.permutation(ids), 3):
        catalog.upsert([row for series_id in some for row in parts(series_id, 2)])
    assert (tmp_path / "often/catalog/a.parquet").read_bytes() == (tmp_path / "once/catalog/a.parquet").read_bytes()
    assert [(row["series_id"], row["part"]) for row in catalog.rows()] == [(i, part) for i in ids for part in "01"]


def parts(series_id, n):
    identity = Identity(series_id=series_id, patient_id="b" * 20, digest=series_id)
    refusal = Refused(Reason.TOO_FEW_SLICES, "2 slices")
    about = {"source_uri": "/ct", "n_instances": n, "config_sha256": ""}
    return [refused_row(identity, refusal, part=str(part), **about) for part in range(n)]


def test_a_new_row_rewrites_its_own_file_only(tmp_path, catalog):
    catalog.upsert([refused("a" * 20), refused("b" * 20)])
    before = stat(tmp_path)
    catalog.upsert([refused("ab" * 10)])
    changed = [path.name for path, found in stat(tmp_path).items() if before[path] != found]
    assert changed == ["a.parquet"]


@pytest.mark.parametrize("series_id", ["1.2.840.113619.2.55.3", "DOE^JANE", ""])
def test_raw_identifiers_do_not_enter(tmp_path, catalog, series_id):
    with pytest.raises(ValueError, match="no keyed pseudonym") as caught:
        catalog.upsert([refused(series_id)])
    assert not series_id or series_id not in str(caught.value)
    assert stat(tmp_path) == {}


def test_an_unknown_column_is_named(catalog):
    with pytest.raises(ValueError, match="no column patient_name"):
        catalog.upsert([refused("a" * 20) | {"patient_name": "x"}])


PATIENTS = [f"{n:020x}" for n in range(50)]


def test_no_patient_is_in_two_parts_and_none_is_lost():
    split = split_by_patient(PATIENTS * 2, SplitConfig())
    parts = [*split.train, *split.validation, *split.test]
    assert sorted(parts) == PATIENTS
    assert (len(split.train), len(split.validation), len(split.test)) == (35, 5, 10)


def test_the_split_depends_on_patients_and_seed_alone():
    split = split_by_patient(PATIENTS, SplitConfig(seed=7))
    assert split_by_patient(reversed(PATIENTS), SplitConfig(seed=7)) == split
    assert split_by_patient(PATIENTS, SplitConfig(seed=8)) != split


@pytest.mark.parametrize("n", range(3, 12))
@pytest.mark.parametrize("shares", [(0.1, 0.2), (0.45, 0.5), (0.01, 0.01)])
def test_every_part_with_a_share_has_a_patient(n, shares):
    split = split_by_patient(PATIENTS[:n], SplitConfig(validation=shares[0], test=shares[1]))
    assert min(len(split.train), len(split.validation), len(split.test)) >= 1


def test_a_share_of_zero_leaves_a_part_empty():
    split = split_by_patient(PATIENTS[:1], SplitConfig(validation=0, test=0))
    assert (len(split.train), split.validation, split.test) == (1, (), ())


def test_too_few_patients_is_one_line_with_the_next_step():
    with pytest.raises(Fatal, match=r"^2 patients cannot fill train, validation and test; add scans of 3 or more"):
        split_by_patient(PATIENTS[:2], SplitConfig())
    with pytest.raises(Fatal, match=r"^1 patient cannot fill train and test"):
        split_by_patient(PATIENTS[:1], SplitConfig(validation=0))


@pytest.mark.parametrize(("patients", "folds"), [(34, 5), (5, 5), (50, 3)])
def test_folds_test_every_patient_once_and_differ_by_one_at_most(patients, folds):
    splits = [split_by_patient(PATIENTS[:patients], SplitConfig(folds=folds, fold=n)) for n in range(folds)]
    assert sorted(patient for split in splits for patient in split.test) == PATIENTS[:patients]
    assert {len(split.test) for split in splits} <= {patients // folds, patients // folds + 1}
    for split in splits:
        assert sorted([*split.train, *split.validation, *split.test]) == PATIENTS[:patients]
        assert split.train
        assert split.validation


def test_a_fold_may_train_on_all_that_it_does_not_test():
    split = split_by_patient(PATIENTS[:34], SplitConfig(folds=5, fold=2, validation=0))
    assert (len(split.train), len(split.validation), len(split.test)) == (27, 0, 7)


def test_more_folds_than_patients_is_one_line_with_the_next_step():
    with pytest.raises(Fatal, match=r"^4 patients cannot fill 5 folds; add scans, or lower split.folds$"):
        split_by_patient(PATIENTS[:4], SplitConfig(folds=5))
    with pytest.raises(Fatal, match=r"^2 patients cannot fill 2 folds"):
        split_by_patient(PATIENTS[:2], SplitConfig(folds=2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"folds": 5, "fold": 5}, "fold 5 of 5 folds; wanted 0 to 4"),
        ({"fold": 1}, "fold 1 of no folds"),
        ({"folds": 2, "validation": 0.5}, "leave no patient to train on"),
    ],
)
def test_impossible_folds_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SplitConfig(**values)
