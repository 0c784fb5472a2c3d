"""One work item -> volumes with the masks that were drawn on them, or the reasons why not.

The only way into an archive: what `load_dicom` and `load_volume_files` give as a scan is right, and every instance
ends in exactly one of: part of a scan, or refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType

from pydicom import Dataset

from tomoray import nifti, nrrd
from tomoray.assembly.interleaved import check_alternation
from tomoray.assembly.scans import assemble
from tomoray.assembly.stack import Rules, Stack
from tomoray.dicom.headers import NotDicomError, read_dataset
from tomoray.errors import Reason, Refused
from tomoray.ingest.drawings import Drawing, draw, read_drawings
from tomoray.ingest.planes import DecodedSeries, Read, decode_series, take_stack
from tomoray.ingest.series import DicomSeries, Item, VolumeCase
from tomoray.privacy.burned_in import burned_in_suspect
from tomoray.privacy.deidentify import Deidentified, Deidentifier
from tomoray.privacy.identifiers import identifiers, scrub_uri
from tomoray.volume import AIR_HU, LABEL_NAME, Mask, ScanInfo, ScanUids, Volume


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedScan:
    """A scan, and for DICOM the real headers in plane order, without pixels (results refer to them)."""

    volume: Volume
    header: Deidentified | None = None
    headers: tuple[Dataset, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusedPart:
    """Instances that end in no scan, and why.

    Attributes:
        item: what they are an item of; a segmentation that does not fit is an item of its own.
        part: which of them, where the item has other parts; empty for the whole.
    """

    item: Item
    refusal: Refused
    part: str = ""
    n_instances: int = 1
    source_uri: str = ""
    header: Deidentified | None = None


def load_dicom(
    series: DicomSeries,
    read: Read,
    deidentifier: Deidentifier,
    rules: Rules,
    *,
    source_uri: str = "",
    keep_headers: bool = False,
) -> Iterator[LoadedScan | RefusedPart]:
    """Read one DICOM series: every scan in it, one after the other, and every part that is none.

    Args:
        series: its files.
        read: gives the bytes of a file.
        deidentifier: turns identifiers into pseudonyms, and keeps back what may show some.
        rules: what makes a scan, and which repairs were asked for.
        source_uri: what to write down as the source, where no identifier of the headers is in it.
        keep_headers: give the scans' `headers`.
    """
    try:
        decoded = decode_series(series, read, keep_headers=keep_headers)
    except Refused as refusal:
        yield RefusedPart(item=series, refusal=refusal, n_instances=len(series.files), source_uri=source_uri)
        return
    yield from load_decoded(
        series, decoded, read, deidentifier, rules, source_uri=source_uri, keep_headers=keep_headers
    )


def load_decoded(
    series: DicomSeries,
    decoded: DecodedSeries,
    read: Read,
    deidentifier: Deidentifier,
    rules: Rules,
    *,
    source_uri: str = "",
    keep_headers: bool = False,
) -> Iterator[LoadedScan | RefusedPart]:
    """As `load_dicom`, of files that were read and decoded; `read` is for what was drawn on them."""
    stacks, rejected = assemble(decoded.instances, rules, decoded.same_pixels)

    def refused(part: str, refusal: Refused, n_instances: int, header: _Header) -> RefusedPart:
        return RefusedPart(
            item=series,
            refusal=refusal,
            part=part,
            n_instances=n_instances,
            source_uri=header.source_uri,
            header=header.described,
        )

    for each in rejected:
        header = _read_header(decoded, each.instances[0], read, deidentifier, source_uri)
        yield refused(each.part, each.refusal, len(each.instances) if series.is_ct else series.n_instances, header)
    drawings = read_drawings(series.drawings, read) if stacks else []
    n_scans = 0
    for n, stack in enumerate(stacks):
        header = _read_header(decoded, stack.planes[0].instance, read, deidentifier, source_uri)
        unfit = decoded.refusal_of(stack) or header.refusal
        unfit = unfit or check_alternation([decoded.planes[ref] for ref in stack.planes])
        if unfit is not None:
            yield refused(stack.part, unfit, len({ref.instance for ref in (*stack.planes, *stack.dropped)}), header)
            continue
        n_scans += 1
        image = take_stack(stack, decoded, last=n == len(stacks) - 1)
        labels, drawn = draw(drawings, stack.geometry, header.identifiers)
        info = _info(series, stack, decoded, deidentifier, header, [*decoded.digests_of(stack), *drawn])
        yield LoadedScan(
            volume=Volume(image_zyx=image, geometry=stack.geometry, info=info, labels=labels),
            header=header.described,
            headers=tuple(decoded.headers[ref.instance] for ref in stack.planes) if keep_headers else (),
        )
    if n_scans:  # else drawings share the refusal of their series
        yield from (_unfit(drawing, source_uri, header) for drawing in drawings if not drawing.fits)


def load_volume_files(
    case: VolumeCase, read: Read, deidentifier: Deidentifier, rules: Rules, *, source_uri: str = ""
) -> Iterator[LoadedScan | RefusedPart]:
    """Read one NIfTI or NRRD image and the masks that lie on its grid."""
    try:
        data = read(case.root, case.image)
        image, geometry = _format(case.image).read_image(data)
        if min(geometry.shape_zyx) < rules.min_slices:
            found = f"shape {geometry.shape_zyx}; wanted {rules.min_slices} or more along each axis"
            raise Refused(Reason.TOO_FEW_SLICES, found)
    except Refused as refusal:
        yield RefusedPart(item=case, refusal=refusal, source_uri=source_uri)
        return
    digests = [hashlib.sha256(data).hexdigest()]
    labels: dict[str, Mask] = {}
    unfit: list[RefusedPart] = []
    for name, key, size_bytes in case.labels:
        try:
            data = read(case.root, key)
            if not LABEL_NAME.fullmatch(name):
                raise Refused(Reason.LABEL_UNSUPPORTED, "the label's name holds other than letters, digits, . _ and -")
            labels[name] = _format(key).read_mask(data, geometry)
        except Refused as refusal:
            alone = VolumeCase(root=case.root, case=f"{case.case} {name}", image=key, size_bytes=size_bytes, labels=())
            unfit.append(RefusedPart(item=alone, refusal=refusal, source_uri=source_uri))
            continue
        digests.append(hashlib.sha256(data).hexdigest())
    pseudonyms = deidentifier.pseudonyms
    identity, name = case.identify(pseudonyms), f"nifti {case.case}"
    info = ScanInfo(
        scan_id=pseudonyms.token("scan", name, identity.digest),
        series_id=identity.series_id,
        patient_id=identity.patient_id,
        source_uri=source_uri,
        n_instances=1,
        instances_sha256=identity.digest,
        input_sha256=_digest_of(digests),
        uids=ScanUids(
            study=pseudonyms.uid("study", name),
            series=pseudonyms.uid("series", name),
            frame_of_reference=pseudonyms.uid("frame", name),
            instances=tuple(pseudonyms.uid("instance", f"{name} {z}") for z in range(geometry.shape_zyx[0])),
        ),
    )
    yield LoadedScan(volume=Volume(image_zyx=image, geometry=geometry, info=info, labels=labels))
    yield from unfit


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    """One header of a part: what may be known of it, and what must not."""

    described: Deidentified
    source_uri: str
    identifiers: frozenset[str] | None  # None: they are kept
    refusal: Refused | None


def _read_header(
    decoded: DecodedSeries, number: int, read: Read, deidentifier: Deidentifier, source_uri: str
) -> _Header:
    """The header of one instance: as it was kept, else read again."""
    instance, head = decoded.instances[number], decoded.heads[number]
    try:
        dataset = read_dataset(read(instance.root, instance.key) if head is None else head, pixels=False)
    except (NotDicomError, Refused) as error:  # then nothing is known of the names in it
        return _Header(
            described=deidentifier.describe(Dataset()),
            source_uri=source_uri,
            identifiers=frozenset(),
            refusal=Refused(Reason.UNREADABLE, f"a header cannot be read whole ({type(error).__name__})"),
        )
    described, names = deidentifier.examine(dataset)
    if deidentifier.config.keep_identifiers:
        return _Header(described=described, source_uri=source_uri, identifiers=None, refusal=None)
    suspect = burned_in_suspect(dataset)
    return _Header(
        described=described,
        source_uri=scrub_uri(source_uri, names),
        identifiers=names,
        refusal=None
        if suspect is None
        else Refused(Reason.BURNED_IN_ANNOTATION, f"{suspect}; wanted pixels without text"),
    )


def _n_instances(stack: Stack) -> int:
    return len({ref.instance for ref in stack.planes})


def _unfit(drawing: Drawing, source_uri: str, header: _Header) -> RefusedPart:
    alone = DicomSeries(series_uid="", study_uid="", patient_id="", files=(drawing.file,))
    refusal = drawing.refusal or Refused(Reason.LABEL_WITHOUT_IMAGE, "the series it was drawn on holds no scan")
    if header.identifiers is not None:
        own = frozenset() if drawing.dataset is None else identifiers(drawing.dataset)
        source_uri = scrub_uri(source_uri, header.identifiers | own)
    return RefusedPart(item=alone, refusal=refusal, source_uri=source_uri)


def _info(
    series: DicomSeries,
    stack: Stack,
    decoded: DecodedSeries,
    deidentifier: Deidentifier,
    header: _Header,
    digests: Iterable[str],
) -> ScanInfo:
    pseudonyms, described = deidentifier.pseudonyms, header.described
    first = decoded.instances[stack.planes[0].instance]
    identity = series.identify(pseudonyms)
    padded = sum(decoded.padded[ref] for ref in stack.planes)
    notes = [*stack.notes, f"{padded} padding voxels were set to {AIR_HU} HU"] if padded else list(stack.notes)
    return ScanInfo(
        scan_id=pseudonyms.token("scan", first.series_uid, identity.digest, *([stack.part] if stack.part else [])),
        series_id=identity.series_id,
        patient_id=identity.patient_id,
        source_uri=header.source_uri,
        part=stack.part,
        n_instances=_n_instances(stack),
        instances_sha256=identity.digest,
        input_sha256=_digest_of(digests),
        uids=ScanUids(
            study=pseudonyms.uid("study", first.study_uid),
            series=pseudonyms.uid("series", first.series_uid),
            frame_of_reference=pseudonyms.uid("frame", first.frame_of_reference_uid or first.series_uid),
            instances=tuple(
                pseudonyms.uid("instance", decoded.instances[ref.instance].sop_uid) for ref in stack.nearest_planes()
            ),
        ),
        manufacturer=described.manufacturer,
        model=described.model,
        kernel=described.kernel,
        kvp=first.kvp,
        body_part=described.body_part,
        slice_thickness_mm=first.planes[stack.planes[0].plane].slice_thickness_mm,
        sex=described.sex,
        age_years=described.age_years,
        notes=tuple(notes),
    )


def _format(key: str) -> ModuleType:
    return nrrd if key.lower().endswith(".nrrd") else nifti


def _digest_of(digests: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
