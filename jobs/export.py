"""Run -> its network as ONNX, as a PyTorch program or as a MONAI bundle; no cluster needed."""

from __future__ import annotations

import time
from typing import Any

from jobs.main import main
from tomoray.config import ExportConfig
from tomoray.export import export_run
from tomoray.runs import open_run
from tomoray.storage import open_store


def run(config: ExportConfig) -> dict[str, Any]:
    """Export, compare with the checkpoint, write.

    Returns:
        `run`, `out`, `format`, `files` (SHA-256 by name), `largest_difference` of scores, `about`, `seconds`.

    Raises:
        Fatal, Usage: as `tomoray.export.export_run`.
    """
    began = time.monotonic()
    model, out = open_run(config.run), open_store(config.to)
    exported = export_run(model, out, config.format)
    return {
        "run": model.store.url,
        "out": out.url,
        "format": config.format,
        "files": dict(exported.files),
        "largest_difference": exported.largest_difference,
        "about": dict(exported.about),
        "seconds": round(time.monotonic() - began, 3),
    }


if __name__ == "__main__":
    main(run, ExportConfig)
