from __future__ import annotations

import pytest
from pydicom import Dataset

from tomoray.privacy.burned_in import burned_in_suspect
from tomoray.privacy.identifiers import identifiers, is_clean, scrub_uri
from tomoray.privacy.vocabulary import DESCRIPTIONS, SCANNERS, body_part, clean_words, manufacturer, scanner_model


def found(**values: object) -> frozenset[str]:
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return identifiers(dataset)


@pytest.mark.parametrize(
    "text",
    ["for MUSTERMANN", "m.u.s.t.e.r-m.a.n.n", "Thorax_Jürgen", "JUERGEN", "jurgen", "MustermannJürgenThorax"],
)
def test_finds_names_in_every_spelling(text: str) -> None:
    assert not is_clean(text, found(PatientName="Mustermann^Jürgen"))


def test_finds_ideographic_names_and_short_names_whole() -> None:
    assert not is_clean("胸部 王小东", found(PatientName="Wang^XiaoDong=王^小东"))
    assert not is_clean("CHEST LI WU", found(PatientName="Wu^Li"))
    assert is_clean("LIVER", found(PatientName="Wu^Li"))
    assert is_clean("HELICAL", found(PatientName="Lê^Đỗ"))
    assert not is_clean("do le", found(PatientName="Lê^Đỗ"))


@pytest.mark.parametrize(
    "text",
    [
        "1948-03-07",
        "07.03.1948",
        "03/07/1948",
        "7 March 1948",
        "Mar 07, 1948",
        "480307",
        "070348",
        "7.3.1948",
        "7MAR48",
    ],
)
def test_finds_birth_dates_in_every_spelling(text: str) -> None:
    assert not is_clean(f"born {text}", found(PatientBirthDate="19480307"))


@pytest.mark.parametrize(
    ("keyword", "value", "text"),
    [
        ("PatientID", "MRN 12-345.678", "x12345678"),
        ("AccessionNumber", "ACC0099", "acc 0099"),
        ("OtherPatientIDs", ["AB12", "CD34"], "cd-34"),
        ("InstitutionName", "Saint Elsewhere Hospital", "elsewhere"),
        ("PatientTelephoneNumbers", "+49 30 5550199", "49-30-555-0199"),
        ("PatientAddress", "17 Rue Morgue, Paris", "Morgue"),
        ("StationName", "CTAWP0815", "ctawp 0815"),
        ("StudyInstanceUID", "1.2.826.0.1.77002", "1_2_826_0_1_77002"),
    ],
)
def test_finds_ids_places_and_uids(keyword: str, value: object, text: str) -> None:
    assert not is_clean(text, found(**{keyword: value}))


def test_words_of_radiology_and_standard_uids_are_no_identifiers() -> None:
    names = found(InstitutionName="Royal Chest Hospital", SOPClassUID="1.2.840.10008.5.1.4.1.1.2", StudyID="1")
    assert is_clean("CHEST 1.25 mm", names)
    assert is_clean("1.2.840.10008.5.1.4.1.1.2", names)


def test_a_station_called_by_its_products_name_does_not_hide_the_model() -> None:
    assert is_clean("LightSpeed16", found(StationName="LIGHTSPEED16"))
    assert is_clean("Aquilion ONE", found(StationName="Aquilion_ONE"))
    assert not is_clean("LightSpeed16", found(PatientID="LIGHTSPEED16"))
    assert not is_clean("elsewhere", found(StationName="ULTRA ELSEWHERE"))
    assert not is_clean("CT01", found(StationName="CT01"))


def test_finds_identifiers_in_nested_and_private_elements() -> None:
    dataset, item, inner = Dataset(), Dataset(), Dataset()
    inner.private_block(0x0009, "ACME", create=True).add_new(0x01, "PN", "Deeply^Hidden")
    item.private_block(0x0011, "ACME", create=True).add_new(0x02, "SQ", [inner])
    dataset.RequestAttributesSequence = [item]
    assert not is_clean("deeply", identifiers(dataset))


@pytest.mark.parametrize(
    ("uri", "scrubbed"),
    [
        ("s3://ct/2019/DOE_JANE/ct", "s3://ct/2019/…/ct"),
        ("/data/ct/doe%20jane/1.dcm", "/data/ct/…/1.dcm"),
        ("/data/1948/03/07/ct", "/data/…/…/…/ct"),
        ("C:\\ct\\JANE", "C:\\ct\\…"),
        ("/data/ct", "/data/ct"),
        ("https://pacs/studies/1.2.826.0.1.77002/series", "https://pacs/studies/…/series"),
        ("", ""),
    ],
)
def test_scrubs_the_parts_of_a_uri_that_name_somebody(uri: str, scrubbed: str) -> None:
    names = found(PatientName="Doe^Jane", PatientBirthDate="19480307", StudyInstanceUID="1.2.826.0.1.77002")
    assert scrub_uri(uri, names) == scrubbed


def slice_header(**changes: object) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.Modality = "1.2.840.10008.5.1.4.1.1.2", "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return dataset


def test_original_slices_are_not_suspect() -> None:
    assert burned_in_suspect(slice_header()) is None
    assert burned_in_suspect(slice_header(SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1")) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"BurnedInAnnotation": "YES"},
        {"RecognizableVisualFeatures": "YES", "BurnedInAnnotation": "NO"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.4"},
        {"Modality": "OT"},
        {"ConversionType": "DF"},
        {"ImageType": ["ORIGINAL", "PRIMARY", "SCREEN SAVE"]},
        {"ImageType": ["DERIVED", "SECONDARY", "DOSE_INFO"]},
        {"ImageType": ["DERIVED", "PRIMARY", "AXIAL"]},
        {"ImageType": None},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"},
    ],
)
def test_captures_and_reports_are_suspect(changes: dict[str, object]) -> None:
    assert burned_in_suspect(slice_header(**changes))


def test_a_header_that_says_no_is_believed() -> None:
    assert burned_in_suspect(slice_header(BurnedInAnnotation="NO", ImageType=["DERIVED", "SECONDARY"])) is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("GE MEDICAL SYSTEMS", "GE"),
        ("General Electric Co.", "GE"),
        ("Siemens Healthineers", "SIEMENS"),
        ("Philips / MIM Software", "PHILIPS"),
        ("CANON_MEC", "CANON"),
        ("UIH", "UNITED IMAGING"),
        ("Agemed Jane Doe", None),
        ("", None),
    ],
)
def test_manufacturers_are_of_a_short_list(text: str, name: str | None) -> None:
    assert manufacturer(text) == name


@pytest.mark.parametrize(
    "model", ["LightSpeed QX/i", "Biograph40_mCT 4R", "SOMATOM Definition AS+", "Mx8000 IDT 16", "iCT 256"]
)
def test_models_of_known_scanners_stay_as_they_are(model: str) -> None:
    assert scanner_model(model, SCANNERS) == model


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("CHEST 2.5 MM/ABD.PEL 2.5MM", "CHEST 2.5 MM/ABD.PEL 2.5MM"),
        ("5x5 lung", "5x5 lung"),
        ("CHEST 2020 01 15", "CHEST"),
        ("call 555 123 4567", None),
        ("Miller 64", None),
        ("93Y chest", "chest"),
        ("胸部 CHEST", "CHEST"),
        ("", None),
    ],
)
def test_descriptions_keep_known_words_and_measures(text: str, kept: str | None) -> None:
    assert clean_words(text, DESCRIPTIONS) == kept


@pytest.mark.parametrize(
    ("text", "part"), [("chest", "CHEST"), ("NECKCHESTABDOMEN", "NECKCHESTABDOMEN"), ("CHEST MILLER", None), ("", None)]
)
def test_body_parts_are_known_or_none(text: str, part: str | None) -> None:
    assert body_part(text, ()) == part
