"""NIfTI and NRRD files to cases: images are paired with their masks by file name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache

from tomoray.config import NiftiPattern
from tomoray.errors import Reason, Refused
from tomoray.ingest.series import BadFile, VolumeCase
from tomoray.sources import SourceFile

_VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd")


def is_volume(file: SourceFile) -> bool:
    """True where the file's name is that of a NIfTI or NRRD volume."""
    return file.key.lower().endswith(_VOLUME_SUFFIXES)


def group_volumes(files: Iterable[SourceFile], pattern: NiftiPattern) -> tuple[list[VolumeCase], list[BadFile]]:
    """Pair NIfTI and NRRD images with their masks by file name.

    A pattern's own ending does not matter: `{case}_ct.nii.gz` finds `a_ct.nrrd` too, and its masks of either kind.

    Returns:
        The cases, and the files that match neither pattern, have no image beside them, or come twice.
    """
    image_pattern = _regex(pattern.image)
    images: dict[tuple[str, str, str], SourceFile] = {}
    rest: list[SourceFile] = []
    bad: list[BadFile] = []
    for file in sorted(files, key=lambda f: (f.root, f.key)):
        folder, name = _split(file)
        match = image_pattern.fullmatch(name)
        if not match:
            rest.append(file)
        elif images.setdefault((file.root, folder, match["case"]), file) is not file:
            bad.append(_twice(file, "image"))
    labels: dict[tuple[str, str, str], dict[str, SourceFile]] = {case: {} for case in images}
    for file in rest:
        folder, name = _split(file)
        for case, label in _readings(name, pattern.label):
            if (file.root, folder, case) in images:
                if labels[file.root, folder, case].setdefault(label, file) is not file:
                    bad.append(_twice(file, "mask"))
                break
        else:
            wanted = f"an image {pattern.image!r} nor a mask {pattern.label!r} of such an image"
            refusal = Refused(Reason.LABEL_WITHOUT_IMAGE, f"a NIfTI or NRRD file is neither {wanted}")
            bad.append(BadFile(file=file, refusal=refusal))
    cases = [
        VolumeCase(
            root=root,
            case=case,
            image=file.key,
            size_bytes=file.size_bytes,
            labels=tuple((name, mask.key, mask.size_bytes) for name, mask in labels[root, folder, case].items()),
        )
        for (root, folder, case), file in images.items()
    ]
    return cases, bad


def _twice(file: SourceFile, what: str) -> BadFile:
    evidence = f"a case has the same {what} in two files; wanted one, NIfTI or NRRD"
    return BadFile(file=file, refusal=Refused(Reason.DUPLICATE_INSTANCE, evidence))


def _split(file: SourceFile) -> tuple[str, str]:
    folder, _, name = file.key.rpartition("/")
    return folder, name


def _readings(name: str, pattern: str) -> Iterator[tuple[str, str]]:
    """Every (case, label) that `name` can be read as, the longest case first: both may hold underscores."""
    for length in range(len(name), 0, -1):
        match = _regex(pattern, length).fullmatch(name)
        if match:
            yield match["case"], match["label"]


@cache
def _regex(pattern: str, case_length: int | None = None) -> re.Pattern[str]:
    stem = next((pattern.removesuffix(end) for end in _VOLUME_SUFFIXES if pattern.endswith(end)), pattern)
    case = "(?P<case>.+)" if case_length is None else f"(?P<case>.{{{case_length}}})"
    escaped = re.escape(stem).replace(r"\{case\}", case).replace(r"\{label\}", "(?P<label>.+)")
    ends = "|".join(re.escape(end) for end in _VOLUME_SUFFIXES)
    return re.compile(escaped if stem == pattern else f"{escaped}(?:{ends})")
