from __future__ import annotations

import dataclasses
import datetime
import io
import json
import pickle
import random
import re
import string
import unicodedata
from collections.abc import Callable

import pyarrow as pa
import pytest
from pydicom import Dataset, Sequence, dcmread
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from tomoray.config import DeidentifyConfig, make_config
from tomoray.dicom.headers import NotDicomError, quiet_pydicom, read_dataset
from tomoray.errors import Usage
from tomoray.privacy import ps3_15
from tomoray.privacy.attributes import DESCRIBED
from tomoray.privacy.deidentify import AUDIT_FIELDS, Deidentified, Deidentifier, audit_row
from tomoray.privacy.pseudonyms import Pseudonyms

PSEUDONYMS = Pseudonyms(b"a key for tests only, of no worth")
DESCRIBE = Deidentifier(PSEUDONYMS).describe
EVERYTHING = DeidentifyConfig(
    retain_device=True, dates="shifted", retain_safe_private=("0019,xx23 GEMS_ACQU_01", "0019,xx24 GEMS_ACQU_01")
)
TEXT_VRS = ("AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT", "CS", "AS")
CHARSETS = {
    "ISO_IR 100": ("Jürgen", "Weißkopf", "Àlvarez", "Mühlbauer"),
    "ISO_IR 192": ("Søren", "Łukasz", "Ångström", "王小东", "Ελένη", "Дмитрий"),
    "ISO_IR 144": ("Дмитрий", "Ольга"),
    "": ("Quentin", "Hargreaves"),
}


def header(**changes: object) -> Dataset:
    """A CT header as scanners write it, of nobody in particular."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, "1.2.826.0.1.3680043.8.498.77001"
    dataset.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.77002"
    dataset.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.77003"
    dataset.FrameOfReferenceUID = "1.2.826.0.1.3680043.8.498.77004"
    dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Manufacturer, dataset.ManufacturerModelName = "SIEMENS", "SOMATOM Definition AS+"
    dataset.PatientID, dataset.PatientName = "QX-4711-08", "Hargreaves^Quentin"
    dataset.PatientBirthDate, dataset.PatientSex, dataset.PatientAge = "19480317", "F", "061Y"
    dataset.StudyDate, dataset.SeriesDate, dataset.AcquisitionDate = "20140523", "20140523", "20140524"
    dataset.StudyTime = "101500"
    dataset.InstitutionName, dataset.StationName = "Saint Elsewhere Hospital", "CTAWP0815"
    dataset.KVP, dataset.XRayTubeCurrent, dataset.SliceThickness = "120", "210", "1.25"
    dataset.ConvolutionKernel, dataset.BodyPartExamined = "B30f", "CHEST"
    dataset.SeriesDescription, dataset.ProtocolName = "Thorax 1.25 B30f", "ThoraxRoutine"
    dataset.PixelSpacing, dataset.PatientPosition = [0.703125, 0.703125], "HFS"
    with quiet_pydicom():
        for keyword, value in changes.items():
            setattr(dataset, keyword, value)
    return dataset


def as_json(described: Deidentified) -> str:
    return json.dumps(dataclasses.asdict(described), ensure_ascii=False)


def folded(text: str) -> str:
    """Letters and digits only, without case and accents."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in plain if letter.isalnum())


def reread(dataset: Dataset, *, implicit: bool) -> Dataset:
    """Through a file, as real headers come: private elements of an implicit file have no VR."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    buffer = io.BytesIO()
    with quiet_pydicom():
        dataset.save_as(buffer, enforce_file_format=True)
        return dcmread(io.BytesIO(buffer.getvalue()))


class Planter:
    """Headers full of identifiers, each remembered."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.charset = self.random.choice(sorted(CHARSETS))
        self.names = [self.word(), self.word(), self.random.choice(CHARSETS[self.charset])]
        self.tokens: set[str] = set(self.names)
        self.dates: set[str] = set()
        self.uids: set[str] = set()

    def word(self) -> str:
        consonants, vowels = "bcdfghjklmnpqrstvwxz", "aeiou"
        return "".join(self.random.choice(consonants) + self.random.choice(vowels) for _ in range(4)).title()

    def token(self, *, ascii_only: bool = False, numbers: bool = True) -> str:
        """A name in one of its spellings, or a number nobody has seen."""
        name = self.random.choice(self.names[:2] if ascii_only else self.names)
        number = "".join(self.random.choices(string.digits, k=9))
        kind = self.random.randrange(6 if numbers else 5)
        if kind == 5:
            self.tokens.add(number)
            return number
        spelled = (name, name.upper(), name.lower(), " ".join(name), "-".join(name))[kind]
        return f"{spelled} {self.random.choice(('chest', '64', ''))}".strip()

    def date(self) -> str:
        date = datetime.date(1931, 2, 3) + datetime.timedelta(days=self.random.randrange(20_000))
        self.dates |= {f"{date:%Y%m%d}", f"{date:%d%m%Y}"}
        return f"{date:%Y%m%d}"

    def uid(self) -> str:
        uid = f"1.2.840.113619.{self.random.randrange(10**9, 10**10)}.{self.random.randrange(10**6, 10**7)}"
        self.uids.add(uid)
        return uid

    def value(self, vr: str, *, numbers: bool = True) -> str:
        if vr == "DA":
            return self.date()
        if vr == "DT":
            return self.date() + "101112"
        if vr == "UI":
            return self.uid()
        if vr == "PN":
            return "^".join(self.random.sample(self.names, k=2))
        return self.token(ascii_only=vr in ("AE", "AS", "CS", "UR"), numbers=numbers)

    def fill(self, dataset: Dataset, tags: list[int], count: int) -> None:
        for tag in self.random.sample(tags, k=count):
            vr = dictionary_VR(tag)
            kept_as_it_is = DESCRIBED.get(keyword_for_tag(tag))  # a scanner's own number may stay
            numbers = kept_as_it_is is None or kept_as_it_is.option != "device"
            dataset.add_new(tag, vr, self.value(vr, numbers=numbers))

    def private(self, dataset: Dataset, depth: int) -> None:
        group = self.random.choice((0x0009, 0x0019, 0x0043, 0x7053))
        block = dataset.private_block(group, self.random.choice(("GEMS_ACQU_01", "ACME 1.1")), create=True)
        for offset, vr in enumerate((*TEXT_VRS, "DA", "DT", "UI"), start=0x20):
            block.add_new(offset, vr, self.value(vr, numbers=offset not in (0x23, 0x24)))
        block.add_new(0x60, "UN", self.token().encode("utf-8"))
        block.add_new(0x61, "OB", self.token().encode("utf-8"))
        if depth:
            item = Dataset()
            self.private(item, depth - 1)
            block.add_new(0x70, "SQ", Sequence([item]))


ALL_TAGS = [
    tag
    for tag in sorted({*ps3_15.TABLE, *(tag_for_keyword(keyword) for keyword in DESCRIBED)})
    if tag >> 16 not in (0x0000, 0x0002, 0x0004, 0xFFFA, 0xFFFC)
    and dictionary_VR(tag) in {*TEXT_VRS, "DA", "DT", "UI"}
    and keyword_for_tag(tag) not in {"SOPInstanceUID", "SOPClassUID", "SpecificCharacterSet"}
]


def planted(seed: int) -> tuple[Dataset, Planter]:
    planter = Planter(seed)
    dataset = header()
    dataset.SpecificCharacterSet = planter.charset
    dataset.PatientName = f"{planter.names[0]}^{planter.names[2]}"
    dataset.ReferringPhysicianName = f"{planter.names[1]}^{planter.names[0]}"
    dataset.PatientBirthDate = planter.date()
    planter.fill(dataset, ALL_TAGS, 60)
    planter.private(dataset, depth=2)
    item = Dataset()
    planter.fill(item, ALL_TAGS, 25)
    planter.private(item, depth=1)
    outer = Dataset()
    outer.ReferencedSeriesSequence = [item]
    dataset.RequestAttributesSequence = [outer]
    dataset.ImageComments = f"seen with {planter.token()} on {planter.date()}"
    dataset.add_new(0x60003000, "OW", planter.token().encode("utf-8"))
    dataset.add_new(0x60004000, "LT", planter.token())
    dataset.add_new(0x50002500, "LO", planter.token())
    for keyword in ("Manufacturer", "ManufacturerModelName", "ConvolutionKernel", "SeriesDescription", "ProtocolName"):
        kept = str(header()[keyword].value)
        dataset[keyword].value = planter.random.choice(("{} {}", "{}_{}", "{}{}")).format(kept, planter.token())
    return dataset, planter


@pytest.mark.parametrize("start", range(0, 240, 40))
def test_nothing_planted_anywhere_comes_out(start: int) -> None:
    deidentifiers = [Deidentifier(PSEUDONYMS, config) for config in (DeidentifyConfig(), EVERYTHING)]
    for seed in range(start, start + 40):
        with quiet_pydicom():
            dataset, planter = planted(seed)
            dataset = reread(dataset, implicit=seed % 2 == 0)
        text = "\n".join(as_json(deidentifier.describe(dataset)) for deidentifier in deidentifiers)
        seen, squeezed = text.casefold(), folded(text)
        for token in planter.tokens:
            assert token.casefold() not in seen
            assert folded(token) not in squeezed
        for date in planter.dates:
            assert date not in squeezed
        for uid in planter.uids:
            assert uid not in seen
            assert folded(uid) not in squeezed


def test_a_name_that_stands_only_in_a_description_is_dropped_too() -> None:
    described = DESCRIBE(header(SeriesDescription="Chest 1.25mm f. Dr. Mabuse B30f", ProtocolName="Mabuse"))
    assert described.attributes["SeriesDescription"] == "Chest 1.25mm B30f"
    assert "ProtocolName" not in described.attributes


def test_known_words_that_are_the_patients_name_are_dropped() -> None:
    described = DESCRIBE(
        header(PatientName="Thorax^Max", SeriesDescription="LUNG max 1.25mm", BodyPartExamined="THORAX")
    )
    assert "SeriesDescription" not in described.attributes
    assert described.body_part is None


@pytest.mark.parametrize("kernel", ["Hargreaves", "B30f Quentin", "4711-08", "B30f 17.03.1948", "Mabuse"])
def test_kernel_is_kept_whole_or_not_at_all(kernel: str) -> None:
    assert DESCRIBE(header(ConvolutionKernel=kernel)).kernel is None
    assert DESCRIBE(header(ConvolutionKernel=["Br38f", "3"])).kernel == "Br38f\\3"


def test_keeps_what_describes_the_scan() -> None:
    described = DESCRIBE(header(FilterType="BODY FILTER", ContrastBolusAgent="Ultravist 370", SpiralPitchFactor=0.8))
    assert (described.manufacturer, described.model) == ("SIEMENS", "SOMATOM Definition AS+")
    assert (described.kernel, described.body_part, described.sex, described.age_years) == ("B30f", "CHEST", "F", 61.0)
    expected = {
        "ContrastBolusAgent": "YES",
        "FilterType": "BODY FILTER",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "KVP": 120,
        "PatientPosition": "HFS",
        "PixelSpacing": [0.703125, 0.703125],
        "SeriesDescription": "Thorax 1.25 B30f",
        "SliceThickness": 1.25,
        "SpiralPitchFactor": 0.8,
    }
    assert expected.items() <= described.attributes.items()


@pytest.mark.parametrize(("agent", "given"), [("NONE", "NO"), ("Omnipaque 300", "YES"), ("", None)])
def test_contrast_is_a_yes_or_a_no(agent: str, given: str | None) -> None:
    assert DESCRIBE(header(ContrastBolusAgent=agent)).attributes.get("ContrastBolusAgent") == given


@pytest.mark.parametrize(
    ("age", "years"), [("089Y", 89.0), ("090Y", 90.0), ("104Y", 90.0), ("018M", 1.5), ("old", None)]
)
def test_ages_above_89_are_90(age: str, years: float | None) -> None:
    described = DESCRIBE(header(PatientAge=age))
    assert described.age_years == years
    assert "104" not in json.dumps(described.attributes)


def test_a_number_that_is_an_identifier_is_dropped() -> None:
    described = DESCRIBE(header(PatientID="7654321", Exposure="7654321", ReconstructionDiameter="0.87654321"))
    assert not {"Exposure", "ReconstructionDiameter"} & described.attributes.keys()
    assert described.attributes["PixelSpacing"] == [0.703125, 0.703125]


def test_uids_are_the_archives_pseudonyms() -> None:
    attributes = DESCRIBE(header()).attributes
    for keyword, kind in (
        ("StudyInstanceUID", "study"),
        ("SeriesInstanceUID", "series"),
        ("FrameOfReferenceUID", "frame"),
    ):
        assert attributes[keyword] == PSEUDONYMS.uid(kind, str(header()[keyword].value))
    assert attributes["PatientID"] == PSEUDONYMS.token("patient", "QX-4711-08")
    assert attributes["SOPClassUID"] == CTImageStorage


def test_describes_a_series_as_preprocessing_names_it(make_series: Callable) -> None:
    series = make_series()
    info = series.load().volume.info
    attributes = DESCRIBE(series.datasets[0]).attributes
    assert attributes["PatientID"] == info.patient_id
    assert attributes["StudyInstanceUID"] == info.uids.study
    assert attributes["SeriesInstanceUID"] == info.uids.series
    assert attributes["FrameOfReferenceUID"] == info.uids.frame_of_reference


def day(text: str) -> datetime.date:
    return datetime.datetime.strptime(text, "%Y%m%d").date()


def test_dates_of_a_patient_move_together() -> None:
    deidentifier = Deidentifier(PSEUDONYMS, DeidentifyConfig(dates="shifted"))
    first = deidentifier.describe(header()).attributes
    later = deidentifier.describe(header(StudyDate="20150102", SeriesInstanceUID="1.2.3.4.5.6.7.8.9")).attributes
    moved = day("20140523") - day(first["StudyDate"])
    assert 1 <= moved.days <= 3650
    assert moved.days == deidentifier.shift_days(header())
    assert day("20140524") - day(first["AcquisitionDate"]) == moved == day("20150102") - day(later["StudyDate"])
    assert first["StudyTime"] == "101500"
    assert first["LongitudinalTemporalInformationModified"] == "MODIFIED"


def test_dates_of_patients_move_apart() -> None:
    deidentifier = Deidentifier(PSEUDONYMS, DeidentifyConfig(dates="shifted"))
    shifts = [deidentifier.shift_days(header(PatientID=f"ID {n}")) for n in range(200)]
    assert all(1 <= shift <= 3650 for shift in shifts)
    assert len(set(shifts)) > 150
    other_key = Deidentifier(Pseudonyms(b"another key for tests only"), DeidentifyConfig(dates="shifted"))
    assert [other_key.shift_days(header(PatientID=f"ID {n}")) for n in range(200)] != shifts


def test_dates_of_nobody_are_removed_and_without_a_patient_the_study_counts() -> None:
    deidentifier = Deidentifier(PSEUDONYMS, DeidentifyConfig(dates="shifted"))
    nobody = header(PatientID="", StudyInstanceUID="")
    assert deidentifier.shift_days(nobody) is None
    assert not {"StudyDate", "StudyTime", "PatientID"} & deidentifier.describe(nobody).attributes.keys()
    assert deidentifier.shift_days(header(PatientID="")) is not None


@pytest.mark.parametrize("date", ["20141345", "2014", "yesterday", "00010101", ""])
def test_dates_that_are_none_are_removed(date: str) -> None:
    with quiet_pydicom():
        described = Deidentifier(PSEUDONYMS, DeidentifyConfig(dates="shifted")).describe(header(StudyDate=date))
    assert "StudyDate" not in described.attributes


def test_dates_are_removed_or_kept_as_asked() -> None:
    assert not [name for name in DESCRIBE(header()).attributes if re.search("Date|Time", name)][1:]
    assert DESCRIBE(header()).attributes["LongitudinalTemporalInformationModified"] == "REMOVED"
    kept = Deidentifier(PSEUDONYMS, DeidentifyConfig(dates="kept")).describe(header()).attributes
    assert (kept["StudyDate"], kept["LongitudinalTemporalInformationModified"]) == ("20140523", "UNMODIFIED")
    assert "PatientBirthDate" not in kept


def test_options_add_only_what_they_name() -> None:
    def names(**options: object) -> set[str]:
        dataset = header(DeviceSerialNumber="60064", PatientSize="1.7", SoftwareVersions="VG80B")
        return set(Deidentifier(PSEUDONYMS, DeidentifyConfig(**options)).describe(dataset).attributes)

    base = names()
    assert names(retain_device=True) - base == {"DeviceSerialNumber", "SoftwareVersions", "StationName"}
    assert base - names(retain_patient_characteristics=False) == {"PatientAge", "PatientSex", "PatientSize"}
    described = {"BodyPartExamined", "ConvolutionKernel", "ProtocolName", "SeriesDescription"}
    assert base - names(clean_descriptors=False) == described


def test_a_station_that_names_the_hospital_is_dropped() -> None:
    dataset = header(StationName="ELSEWHERE-CT1", DeviceSerialNumber="60064")
    attributes = Deidentifier(PSEUDONYMS, DeidentifyConfig(retain_device=True)).describe(dataset).attributes
    assert attributes["DeviceSerialNumber"] == "60064"
    assert "StationName" not in attributes


def test_safe_private_elements_are_kept_by_creator_and_offset() -> None:
    dataset = header()
    block = dataset.private_block(0x0019, "GEMS_ACQU_01", create=True)
    block.add_new(0x23, "DS", "5.5")
    block.add_new(0x24, "LO", "Hargreaves")
    block.add_new(0x25, "LO", "fine")
    dataset.private_block(0x0019, "SOMEBODY ELSE", create=True).add_new(0x23, "DS", "7")
    attributes = Deidentifier(PSEUDONYMS, EVERYTHING).describe(dataset).attributes
    assert {name: value for name, value in attributes.items() if "xx" in name} == {"0019,xx23 GEMS_ACQU_01": 5.5}
    assert not [name for name in DESCRIBE(dataset).attributes if "xx" in name]


@pytest.mark.parametrize("entry", ["0018,xx23 EVEN", "0019,1023 X", "0019,xx23", "19,xx23 GEMS"])
def test_refuses_a_safe_private_entry_that_could_match_nothing(entry: str) -> None:
    with pytest.raises(Usage, match="retain_safe_private"):
        make_config(DeidentifyConfig, {"retain_safe_private": [entry]})


def test_own_words_are_kept_where_they_are_named() -> None:
    dataset = header(ManufacturerModelName="Wonderscan 64")
    assert DESCRIBE(dataset).model is None
    config = DeidentifyConfig(safe_words=("wonderscan",))
    assert Deidentifier(PSEUDONYMS, config).describe(dataset).model == "Wonderscan 64"


def test_says_how_it_was_done() -> None:
    attributes = Deidentifier(PSEUDONYMS, EVERYTHING).describe(header()).attributes
    assert attributes["PatientIdentityRemoved"] == "YES"
    found = [(item["CodeValue"], item["CodeMeaning"]) for item in attributes["DeidentificationMethodCodeSequence"]]
    assert [code for code, _ in found] == ["113100", "113105", "113107", "113108", "113109", "113111"]
    known = [getattr(codes.cid7050, name) for name in dir(codes.cid7050) if name.endswith(("Profile", "Option"))]
    assert set(found) <= {(code.value, code.meaning) for code in known}


def test_identifiers_are_kept_only_on_purpose() -> None:
    described = Deidentifier(PSEUDONYMS, DeidentifyConfig(keep_identifiers=True)).describe(header())
    assert described.attributes["PatientID"] == "QX-4711-08"
    assert described.attributes["StudyDate"] == "20140523"
    assert described.attributes["PatientIdentityRemoved"] == "NO"
    assert described.audit.profile == "identifiers kept"
    assert described.audit.options == ()
    assert not DeidentifyConfig().keep_identifiers


def test_audit_accounts_for_every_element_and_holds_no_value() -> None:
    with quiet_pydicom():
        dataset, _ = planted(7)
    audit = DESCRIBE(dataset).audit
    elements = [element for element in dataset.iterall() if element.tag.group != 0x7FE0]
    assert sum(audit.counts.values()) == len(elements)
    assert set().union(*audit.tags.values()) == {f"{e.tag.group:04x},{e.tag.element:04x}" for e in elements}
    assert all(re.fullmatch("[0-9a-f]{4},[0-9a-f]{4}", tag) for tags in audit.tags.values() for tag in tags)
    assert "0010,0010" in audit.tags["X"]
    assert "0020,000d" in audit.tags["U"]
    assert set(audit.counts) <= {"X", "D", "U", "C", "K"}


def test_audit_row_fits_the_arrow_fields() -> None:
    described = Deidentifier(PSEUDONYMS, EVERYTHING).describe(header())
    row = audit_row(described.audit, series_id="0123456789abcdef")
    table = pa.Table.from_pylist([row], schema=pa.schema(AUDIT_FIELDS))
    table.validate(full=True)
    assert set(row) == set(table.schema.names)
    total = sum(row[name] for name in ("n_removed", "n_replaced", "n_kept", "n_cleaned"))
    assert total == sum(described.audit.counts.values())
    assert row["profile"].startswith("Basic Application Confidentiality Profile; Clean Descriptors Option")


def test_enhanced_ct_is_described_by_its_first_functional_groups() -> None:
    dataset, groups, reconstruction, details = header(), Dataset(), Dataset(), Dataset()
    del dataset.ConvolutionKernel
    del dataset.KVP
    reconstruction.ConvolutionKernel, details.KVP = "FC08", "135"
    groups.CTReconstructionSequence, groups.CTXRayDetailsSequence = [reconstruction], [details]
    dataset.SharedFunctionalGroupsSequence = [groups]
    described = DESCRIBE(dataset)
    assert (described.kernel, described.attributes["KVP"]) == ("FC08", 135)


def test_a_value_inside_another_sequence_does_not_speak_for_the_series() -> None:
    dataset, item = header(), Dataset()
    del dataset.KVP
    item.KVP = "80"
    dataset.SourceImageSequence = [item]
    assert "KVP" not in DESCRIBE(dataset).attributes


def test_survives_a_bomb_of_nested_sequences() -> None:
    inner = Dataset()
    inner.PatientName = "Bottom^Deep"
    for _ in range(3000):
        outer = Dataset()
        outer.ReferencedSeriesSequence = [inner]
        inner = outer
    dataset = header(ReferencedSeriesSequence=[inner])
    described = DESCRIBE(dataset)
    assert described.attributes["KVP"] == 120
    assert "bottom" not in as_json(described).casefold()


def test_survives_values_that_cannot_be_read() -> None:
    dataset = reread(header(), implicit=False)
    broken = {
        tag: dataset.get_item(tag) for tag in (Tag("KVP"), Tag("StudyDate"), Tag("PatientAge"), Tag("PixelSpacing"))
    }
    for tag, element in broken.items():
        dataset._dict[tag] = element._replace(value=b"Hargreaves\xff\xfe^")
    described = DESCRIBE(dataset)
    assert described.age_years is None
    assert not {"KVP", "PixelSpacing", "StudyDate"} & described.attributes.keys()
    assert "hargreaves" not in as_json(described).casefold()


def test_survives_broken_bytes_and_unknown_character_sets() -> None:
    with quiet_pydicom():
        dataset, _ = planted(11)
        dataset.SpecificCharacterSet = "ISO_IR 192"
        reread(dataset, implicit=False)  # gives it a file's preamble
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
    whole, chance, described = buffer.getvalue(), random.Random(0), 0
    for _ in range(200):
        data = bytearray(whole[: chance.randrange(2000, len(whole))])
        for _ in range(chance.choice((1, 5, 40))):
            data[chance.randrange(132, len(data))] = chance.choice((0x00, 0x1B, 0x5C, 0xFF, chance.randrange(256)))
        try:
            broken = read_dataset(bytes(data))
        except NotDicomError:
            continue
        json.loads(as_json(Deidentifier(PSEUDONYMS, EVERYTHING).describe(broken)))
        described += 1
    assert described > 50
    assert DESCRIBE(header(SpecificCharacterSet="ISO_IR 999")).attributes["KVP"] == 120


def test_does_not_change_the_header() -> None:
    dataset = header()
    before = dataset.to_json_dict()
    DESCRIBE(dataset)
    assert dataset.to_json_dict() == before


def test_same_header_gives_the_same_description_also_in_another_process() -> None:
    deidentifier = Deidentifier(PSEUDONYMS, EVERYTHING)
    again = pickle.loads(pickle.dumps(deidentifier))
    assert as_json(again.describe(header())) == as_json(deidentifier.describe(header()))
    assert pickle.loads(pickle.dumps(deidentifier.describe(header()))) == deidentifier.describe(header())
    assert "tests only" not in repr(deidentifier)


def test_table_names_real_attributes_and_known_actions() -> None:
    assert len(ps3_15.TABLE) > 600
    for tag, rule in ps3_15.TABLE.items():
        assert keyword_for_tag(tag) == rule.keyword
        assert re.fullmatch(r"[XZDUKC](/[XZDU]){0,2}", rule.basic)
        assert set(rule.options) <= {"graphics", "structured_content", "institution", "uids", *ps3_15.OPTION_CODES}
        assert set(rule.options.values()) <= {"K", "C"}


@pytest.mark.parametrize(
    ("keyword", "options", "wanted"),
    [
        ("PatientName", set(), "Z"),
        ("PatientID", set(), "Z/D"),
        ("PatientBirthDate", {"full_dates", "patient"}, "Z"),
        ("StudyInstanceUID", set(), "U"),
        ("StudyDate", set(), "Z"),
        ("StudyDate", {"full_dates"}, "K"),
        ("StudyDate", {"modified_dates"}, "C"),
        ("SeriesDescription", set(), "X"),
        ("SeriesDescription", {"descriptors"}, "C"),
        ("PatientAge", {"patient"}, "K"),
        ("DeviceSerialNumber", set(), "X/Z/D"),
        ("DeviceSerialNumber", {"device"}, "K"),
        ("DateOfLastCalibration", {"device"}, "X"),
        ("DateOfLastCalibration", {"device", "modified_dates"}, "C"),
        ("KVP", set(), "K"),
    ],
)
def test_table_answers_as_the_standard_says(keyword: str, options: set[ps3_15.Option], wanted: str) -> None:
    assert ps3_15.action(tag_for_keyword(keyword), dictionary_VR(keyword), options) == wanted


@pytest.mark.parametrize("tag", [0x00091001, 0x50002500, 0x501E3000, 0x60003000, 0x60FE4000])
def test_private_curve_and_overlay_elements_are_removed(tag: int) -> None:
    assert ps3_15.action(tag, "LO", set(ps3_15.OPTION_CODES)) == "X"


def test_nothing_is_described_that_the_profile_removes_under_every_option() -> None:
    for keyword, treatment in DESCRIBED.items():
        tag = tag_for_keyword(keyword)
        assert tag is not None, keyword
        assert treatment.stands_in or ps3_15.action(tag, dictionary_VR(tag), set(ps3_15.OPTION_CODES)) in (
            "K",
            "C",
            "U",
        )
