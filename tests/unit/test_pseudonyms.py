from __future__ import annotations

import pickle

from pydicom.uid import UID

from tomoray.privacy.pseudonyms import Pseudonyms

KEY = b"0123456789abcdef"


def test_same_key_and_identifier_give_the_same_pseudonym_another_key_another():
    assert Pseudonyms(KEY).token("patient", "DOE^JANE") == Pseudonyms(KEY).token("patient", "DOE^JANE")
    assert Pseudonyms(KEY).token("patient", "DOE^JANE") != Pseudonyms(b"another key here").token("patient", "DOE^JANE")


def test_kinds_and_parts_do_not_run_together():
    names = Pseudonyms(KEY)
    assert names.token("patient", "17") != names.token("series", "17")
    assert names.token("scan", "1", "23") != names.token("scan", "12", "3")


def test_uid_is_a_valid_dicom_uid():
    uid = Pseudonyms(KEY).uid("study", "1.2.840.113619")
    assert UID(uid).is_valid
    assert len(uid) <= 64


def test_key_is_not_shown_and_survives_pickling():
    names = Pseudonyms(KEY)
    assert KEY.decode() not in repr(names)
    assert pickle.loads(pickle.dumps(names)) == names
