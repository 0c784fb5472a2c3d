"""A cohort of procedural thorax CTs as DICOM: one Ray task a patient."""

from __future__ import annotations

import time
from typing import Any

import ray

from jobs.main import main
from jobs.tasks import cluster_cpus, run_bounded
from tomoray.config import PhantomConfig
from tomoray.errors import Fatal, Usage
from tomoray.phantom import write_patient
from tomoray.progress import track

_write_patient = ray.remote(num_cpus=1)(write_patient)


def run(config: PhantomConfig) -> dict[str, Any]:
    """Write the cohort. Safe to repeat: the same config, the same bytes.

    Returns:
        `out`, `patients`, `files`, `file_mb`, `voxel_mb` (as int16), `seconds`, `mb_per_s` (of voxels).

    Raises:
        Usage: `out` is not a folder.
        Fatal: a patient could not be written.
    """
    if "://" in config.out:
        raise Usage(f"a phantom cohort goes to a folder, found {config.out}; copy it from there")
    started = time.monotonic()
    patients = []
    with track("phantom", config.patients) as advance:
        submitted = range(config.patients)
        for index, made in run_bounded(lambda i: _write_patient.remote(config, i), submitted, 2 * cluster_cpus()):
            if isinstance(made, Exception):
                cause = getattr(made, "cause", made)
                raise Fatal(f"patient {index} was not written to {config.out} ({cause})") from made
            patients.append(made)
            advance(1)
    seconds = time.monotonic() - started
    slices = sum(patient.slices for patient in patients)
    voxel_mb = slices * config.matrix**2 * 2 / 1e6
    return {
        "out": config.out,
        "patients": len(patients),
        "files": slices + len(patients),
        "file_mb": round(sum(patient.size_bytes for patient in patients) / 1e6, 3),
        "voxel_mb": round(voxel_mb, 3),
        "seconds": round(seconds, 3),
        "mb_per_s": round(voxel_mb / seconds, 3),
    }


if __name__ == "__main__":
    main(run, PhantomConfig)
