from __future__ import annotations

from tomoray.config import NiftiPattern
from tomoray.ingest.volume_files import group_volumes
from tomoray.nifti import write
from tomoray.privacy.identifiers import names_in
from tomoray.sources import SourceFile


def test_nifti_masks_find_their_image_though_names_hold_underscores():
    names = ["STS_001_ct.nii.gz", "STS_001_gtv.nii.gz", "STS_001_lung_left.nii.gz", "STS_002_gtv.nii.gz"]
    files = [SourceFile(root="r", key=f"deep/{name}", size_bytes=1) for name in names]

    cases, unpaired = group_volumes(files, NiftiPattern())

    assert [(case.case, [name for name, *_ in case.labels]) for case in cases] == [("STS_001", ["gtv", "lung_left"])]
    assert [entry.file.key for entry in unpaired] == ["deep/STS_002_gtv.nii.gz"]


def test_nifti_pattern_is_free():
    files = [SourceFile(root="r", key=key, size_bytes=1) for key in ("img-7.nii", "liver-of-7.nii")]
    cases, unpaired = group_volumes(files, NiftiPattern(image="img-{case}.nii", label="{label}-of-{case}.nii"))
    assert [(case.case, case.labels) for case in cases] == [("7", (("liver", "liver-of-7.nii", 1),))]
    assert unpaired == []


def test_a_source_named_after_the_patient_is_stored_without_that_name(make_volume, load_source, tmp_path):
    folder = tmp_path / "DOE_JANE"
    (folder / "doe-jane").mkdir(parents=True)
    volume = make_volume((4, 5, 6), labels=())
    (folder / "doe_jane_ct.nii.gz").write_bytes(write(volume.image_zyx, volume.geometry))
    (folder / "doe-jane" / "1.dcm").write_bytes(b"no DICOM")
    found = load_source(str(folder))
    places = [part.volume.info.source_uri if hasattr(part, "volume") else part.source_uri for part in found]
    assert places == [f"{tmp_path}/…"] * 2


def test_words_that_describe_a_ct_are_no_names():
    assert names_in("chest/DOE_JANE/lung.nii") == {"doejane", "jane", "lungnii"}
