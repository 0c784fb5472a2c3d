"""The archive: scans as OME-NGFF 0.5 on sharded Zarr v3, in a folder or on S3.

    ARCHIVE/tomoray.json                         format version and layout
    ARCHIVE/scans/<scan_id>/{zarr.json,0,1,…}    int16 HU
    ARCHIVE/scans/<scan_id>/labels/<name>/       uint8 masks, 0 or 1, laid out alike

A scan's own `zarr.json` is written last and is its completion mark: without it the scan is invisible, and writing it
again ends with the same bytes. Nothing but pseudonyms is stored.
"""

from __future__ import annotations

import colorsys
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from tomoray import multiscale
from tomoray.config import Layout
from tomoray.errors import Fatal, TomoRayError, Usage
from tomoray.geometry import Geometry
from tomoray.storage import Store, open_store
from tomoray.volume import Mask, ScanInfo, ScanUids, Volume

FORMAT = 1
_MARK = "zarr.json"
_HEADER = "tomoray.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclasses.dataclass(frozen=True)
class Archive:
    """Scans in one place, all in one layout. Pickles; cheap to send to tasks.

    Example:
        >>> archive = Archive.open("s3://ct/nlst")
        >>> window = archive.scan(archive.scan_ids()[0]).image()[:64, :64, :64].read().result()
    """

    store: Store
    layout: Layout

    @classmethod
    def create(cls, url: str, layout: Layout) -> Archive:
        """The archive at `url`, made if there is none. Safe to repeat, also from many processes at once.

        Raises:
            Usage: there is one already, in another layout.
            Fatal: the place cannot be used.
        """
        store = open_store(url)
        store.check()
        header = {"format": FORMAT, "layout": layout.model_dump(mode="json")}
        if store.write_new(_HEADER, multiscale.to_json(header)):
            return cls(store, layout)
        archive = cls.open(url)
        if archive.layout != layout:
            found, wanted = archive.layout.model_dump(), layout.model_dump()
            differ = "; ".join(f"{k} {found[k]}, not {wanted[k]}" for k in found if found[k] != wanted[k])
            raise Usage(f"{archive.url} is laid out with {differ}; keep its layout, or make another archive")
        return archive

    @classmethod
    def open(cls, url: str) -> Archive:
        """The archive at `url`.

        Raises:
            Fatal: there is none, the place cannot be reached, or a later release made it.
        """
        store = open_store(url)
        store.check(writable=False)
        try:
            header = json.loads(store.read(_HEADER))
            made_by, layout = int(header["format"]), header["layout"]
        except FileNotFoundError as error:
            raise Fatal(
                f"{store.url} is not an archive (no {_HEADER}); make one with: tomoray preprocess SOURCE {store.url}"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise Fatal(f"{store.url}/{_HEADER} is not an archive's header; restore it") from error
        if made_by > FORMAT:
            raise Fatal(f"{store.url} has format {made_by}; this release reads up to {FORMAT}: upgrade tomoray")
        return cls(store, Layout.model_validate(layout))

    @property
    def url(self) -> str:
        """The absolute path, or `s3://bucket/prefix`."""
        return self.store.url

    def has_scan(self, scan_id: str) -> bool:
        """True where the scan is complete. One small request."""
        return bool(_NAME.fullmatch(scan_id)) and self._scan_store(scan_id).exists(_MARK)

    def scan_ids(self) -> list[str]:
        """Ids of all complete scans, sorted. For large archives ask the catalog instead."""
        names = self.store.folders("scans")
        with ThreadPoolExecutor(16) as pool:
            return [name for name, complete in zip(names, pool.map(self.has_scan, names), strict=True) if complete]

    def scan(self, scan_id: str) -> Scan:
        """One complete scan. Raises `Fatal` where there is none of that id, or it is unfinished."""
        try:
            if not _NAME.fullmatch(scan_id):
                raise FileNotFoundError(scan_id)
            mark = json.loads(self._scan_store(scan_id).read(_MARK))
        except FileNotFoundError as error:
            raise Fatal(f"{self.url} holds no complete scan {scan_id!r}; tomoray preprocess finishes it") from error
        return Scan(self._scan_store(scan_id), scan_id, mark["attributes"]["tomoray"])

    def write_scan(self, volume: Volume, header: Mapping[str, Any] | None = None) -> None:
        """Store a scan with its masks; its mark last. A complete one is left alone, an unfinished one rewritten.

        Safe to repeat, and for two processes at once: both write the same bytes.

        Raises:
            ValueError: a scan id or label name that cannot be a folder's name.
            Transient, Fatal: the place is in trouble; the scan stays invisible.
        """
        info, image = volume.info, volume.image_zyx
        if self.has_scan(info.scan_id):
            return
        store = self._scan_store(info.scan_id)
        store.clear_partial()
        multiscale.write_levels(store, image, self.layout)
        self._write_labels(store, volume.labels, volume.geometry, info.scan_id)
        tomoray = {
            "geometry": dataclasses.asdict(volume.geometry),
            "hu_max": int(image.max()),
            "hu_min": int(image.min()),
            "header": dict(header or {}),
            "info": dataclasses.asdict(info),
            "labels": sorted(volume.labels),
        }
        ome = {"version": "0.5", "multiscales": multiscale.multiscales(volume.geometry, self.layout, info.scan_id)}
        store.write(_MARK, multiscale.group_json({"ome": ome, "tomoray": tomoray}))

    def write_masks(
        self, scan_id: str, masks: Mapping[str, Mask], geometry: Geometry, attributes: Mapping[str, Any]
    ) -> None:
        """Store masks without their image, as predictions are; the mark last.

        Complete ones with the same `attributes` (JSON-able; say which model) are left alone, others replaced.
        """
        tomoray = {"attributes": dict(attributes), "geometry": dataclasses.asdict(geometry), "labels": sorted(masks)}
        mark = multiscale.group_json({"tomoray": tomoray})
        store = self._scan_store(scan_id)
        if self.has_scan(scan_id):
            if store.read(_MARK) == mark:
                return
            self.delete_scan(scan_id)
        self._write_labels(store, masks, geometry, scan_id)
        store.write(_MARK, mark)

    def delete_scan(self, scan_id: str) -> None:
        """Remove a scan: its mark first, so that it is never seen in part. Absent is no error."""
        store = self._scan_store(scan_id)
        store.delete([_MARK])
        store.delete_all()

    def _scan_store(self, scan_id: str) -> Store:
        if not _NAME.fullmatch(scan_id):
            raise ValueError(f"scan id {scan_id!r} is no folder's name; wanted letters, digits, '.', '_' and '-'")
        return self.store.child(f"scans/{scan_id}")

    def _write_labels(self, scan: Store, masks: Mapping[str, Mask], geometry: Geometry, scan_id: str) -> None:
        for name in sorted(masks):
            if not _NAME.fullmatch(name):
                raise ValueError(f"label {name!r} is no folder's name; wanted letters, digits, '.', '_' and '-'")
            store = scan.child(f"labels/{name}")
            multiscale.write_levels(store, masks[name], self.layout)
            seed = hashlib.sha256(f"{scan_id}/{name}".encode()).digest()
            voxels = multiscale.random_voxels(masks[name], seed)
            ome = {
                "version": "0.5",
                "multiscales": multiscale.multiscales(geometry, self.layout, name, mask=True),
                "image-label": {"version": "0.5", "colors": [_color(name)], "source": {"image": "../../"}},
            }
            tomoray = {"foreground_voxels_zyx": voxels.tolist(), "n_voxels": int(np.count_nonzero(masks[name]))}
            store.write(_MARK, multiscale.group_json({"ome": ome, "tomoray": tomoray}))
        if masks:
            scan.write(f"labels/{_MARK}", multiscale.group_json({"ome": {"version": "0.5", "labels": sorted(masks)}}))


class Scan:
    """One complete scan of an archive. Opens its arrays when they are asked for, and keeps them open. Pickles."""

    def __init__(self, store: Store, scan_id: str, attributes: dict[str, Any]) -> None:
        self.scan_id = scan_id
        self.geometry = _geometry(attributes["geometry"])
        self.label_names: tuple[str, ...] = tuple(attributes["labels"])
        self.attributes: dict[str, Any] = attributes.get("attributes", {})
        self.header: dict[str, Any] = attributes.get("header", {})
        self._store = store
        self._info = attributes.get("info")
        self._arrays: dict[str, ts.TensorStore] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}

    @property
    def url(self) -> str:
        """Where the scan stands: a path, or `s3://bucket/prefix`."""
        return self._store.url

    def explain(self, error: Exception) -> TomoRayError:
        """An error of reading an array as `Transient` or `Fatal`, in one line."""
        return self._store.explain(error)

    @cached_property
    def info(self) -> ScanInfo:
        """Provenance. Raises `Fatal` where only masks are stored."""
        if self._info is None:
            raise Fatal(f"{self._store.url} holds masks only; the scan itself is in the archive they were made from")
        return _info(self._info)

    def image(self, level: int = 0) -> ts.TensorStore:
        """The image at a level: int16 HU, [z, y, x]. Many `image[window].read()` may be in flight at once.

        Raises `Fatal` where only masks are stored; a lost object raises at reading, and is never read as air.
        """
        if self._info is None:
            raise Fatal(f"{self._store.url} holds masks only; the scan itself is in the archive they were made from")
        return self._array(str(level))

    def label(self, name: str, level: int = 0) -> ts.TensorStore:
        """A mask at a level: uint8, 0 or 1, [z, y, x]. Raises `ValueError` for a name not in `label_names`."""
        return self._array(f"labels/{self._known(name)}/{level}")

    def foreground_voxels_zyx(self, name: str) -> npt.NDArray[np.int64]:
        """At most 512 voxels of a mask, drawn evenly when it was stored: (n, 3) indices of level 0. One request."""
        group = json.loads(self._store.read(f"labels/{self._known(name)}/{_MARK}"))
        voxels = group["attributes"]["tomoray"]["foreground_voxels_zyx"]
        return np.array(voxels, dtype=np.int64).reshape(-1, 3)

    def read(self) -> Volume:
        """The whole scan with all its masks, in memory."""
        image = self.image().read()
        labels = {name: self.label(name).read() for name in self.label_names}
        try:
            masks = {name: future.result() for name, future in labels.items()}
            return Volume(image_zyx=image.result(), geometry=self.geometry, info=self.info, labels=masks)
        except ValueError as error:
            raise self._store.explain(error) from error

    def _known(self, name: str) -> str:
        if name not in self.label_names:
            raise ValueError(
                f"scan {self.scan_id} has no label {name!r}; it has: {', '.join(self.label_names) or 'none'}"
            )
        return name

    def _array(self, path: str) -> ts.TensorStore:
        if path not in self._arrays:
            self._arrays[path] = multiscale.open_array(self._store.child(path))
        return self._arrays[path]


def _color(label: str) -> dict[str, Any]:
    """How viewers paint a mask: always the same color for the same label."""
    hue = hashlib.sha256(label.encode()).digest()[0] / 256
    return {"label-value": 1, "rgba": [*(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.8, 1.0)), 255]}


def _geometry(stored: dict[str, Any]) -> Geometry:
    z, y, x = stored["shape_zyx"]
    return Geometry(shape_zyx=(z, y, x), affine_lps=tuple(stored["affine_lps"]))


def _info(stored: dict[str, Any]) -> ScanInfo:
    uids = ScanUids(**{**stored["uids"], "instances": tuple(stored["uids"]["instances"])})
    return ScanInfo(**{**stored, "uids": uids, "notes": tuple(stored["notes"])})
