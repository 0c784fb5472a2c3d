"""What each task's model finds in a scan, as the gateway is told it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch

from serving.messages import Box, Classification, Detections, Explanation, Finding, Segmentation
from serving.schemas import Operation
from tomoray.archive import Scan
from tomoray.errors import Usage
from tomoray.geometry import Geometry
from tomoray.inference.batcher import Forward, Infer
from tomoray.inference.classifier import ScanClassifier
from tomoray.inference.detector import ScanDetector
from tomoray.inference.models import BackendName, Model, compile_segmenter, read_weights
from tomoray.inference.scan_input import Voxels

OPERATIONS: dict[str, Operation] = {"segmentation": "segment", "classification": "classify", "detection": "detect"}
Told = Callable[..., Finding]
"""Makes a finding of what is known of the scan besides: geometry, seconds, info, header."""


class Finder(Protocol):
    """A model of one task.

    Attributes:
        forward: its network, for windows of many requests together.
        backend: what runs it.
        step: what its work is called where seconds are told.
    """

    forward: Forward
    backend: str
    step: str

    def working_bytes(self, geometry: Geometry) -> int:
        """Memory that a scan takes while it is worked on, without its voxels."""
        ...

    def find(
        self,
        image: Voxels,
        geometry: Geometry,
        infer: Infer,
        advance: Callable[[int, int], None],
        *,
        scan: Scan | None,
        explain: Explanation | None,
    ) -> Told:
        """What is in a scan.

        Args:
            image: HU.
            geometry: where it is.
            infer: the network.
            advance: is told how many windows are done, and of how many.
            scan: what else is known of an archived one.
            explain: what is asked for besides. Raises `Usage` where this model cannot.
        """
        ...


def load_finder(model: Model, backend: BackendName, device: str) -> Finder:
    """Read, compile and check a model. Raises `Fatal`."""
    if model.config.task == "segmentation":
        return _Segmenting(model, backend, device)
    if backend not in ("auto", "torch"):
        raise Usage(f"{model.url}: {model.config.task} is run by torch; leave backend out")
    return {"classification": _Classifying, "detection": _Detecting}[model.config.task](model, device)


class _Segmenting:
    step = "segment"

    def __init__(self, model: Model, backend: BackendName, device: str) -> None:
        self._segmenter, compiled = compile_segmenter(model, backend, device=device, threads=torch.get_num_threads())
        self.forward, self.backend = compiled.forward, compiled.backend

    def working_bytes(self, geometry: Geometry) -> int:
        return self._segmenter.working_bytes(geometry)

    def find(
        self,
        image: Voxels,
        geometry: Geometry,
        infer: Infer,
        advance: Callable[[int, int], None],
        *,
        scan: Scan | None,
        explain: Explanation | None,
    ) -> Told:
        if explain not in (None, "uncertainty"):
            raise Usage(f"a segmentation is explained by uncertainty, not by {explain}")
        segmenter = self._segmenter
        found = segmenter.find(image, geometry, infer, advance=advance, uncertainty=explain is not None)
        packed: dict[str, Any] = {name: segmenter.packed(found.classes_zyx, name) for name in segmenter.config.labels}
        return partial(Segmentation, packed=packed, map_zyx=found.uncertainty_zyx)


class _Classifying:
    step, backend = "classify", "torch"

    def __init__(self, model: Model, device: str) -> None:
        self._classifier = ScanClassifier(model.config, read_weights(model), device, temperature=model.temperature)
        self.forward, self.working_bytes = self._classifier.forward, self._classifier.working_bytes

    def find(
        self,
        image: Voxels,
        geometry: Geometry,
        infer: Infer,
        advance: Callable[[int, int], None],
        *,
        scan: Scan | None,
        explain: Explanation | None,
    ) -> Told:
        if explain not in (None, "gradcam", "occlusion"):
            raise Usage(f"a classification is explained by gradcam or occlusion, not by {explain}")
        classifier, info = self._classifier, scan.info if scan is not None else None
        found = classifier.find(image, geometry, infer, info, advance)
        likeliest, drawn = max(found, key=lambda name: found[name]), None
        if explain == "gradcam":
            drawn = classifier.gradcam(image, geometry, info, likeliest)
        elif explain == "occlusion":
            drawn = classifier.occlusion(image, geometry, infer, info, likeliest)
        return partial(Classification, probabilities=found, map_zyx=drawn)


class _Detecting:
    step, backend = "detect", "torch"

    def __init__(self, model: Model, device: str) -> None:
        self._detector = ScanDetector(model.config, read_weights(model), device)
        self.forward, self.working_bytes = self._detector.forward, self._detector.working_bytes

    def find(
        self,
        image: Voxels,
        geometry: Geometry,
        infer: Infer,
        advance: Callable[[int, int], None],
        *,
        scan: Scan | None,
        explain: Explanation | None,
    ) -> Told:
        if explain is not None:
            raise Usage("a detection has no explanation besides its boxes; leave explain out")
        boxes = [
            Box(label=box.label, center_lps_mm=box.center_lps_mm, size_mm=box.size_mm, probability=box.score)
            for box in self._detector.find(image, geometry, infer, advance)
        ]
        return partial(Detections, boxes=boxes)
