"""What driving a run of preprocessing takes, by the number of series: the driver's memory, and its CPU time a series.

    .venv/bin/python benchmarks/driver.py [--series 100 1000 10000] [--in-flight 0] [--json]

The whole of `jobs.preprocess.run` on a private Ray: a listing in a Parquet index, the inventory, a Ray task a series,
the catalog, the lease, the bar, the sweep; then the same once more, where everything is done already. Only decoding is
left out: a task returns the row of a made-up scan, and stores that scan's completion mark and no voxels.

Every size runs in a process of its own, which finds the index written. Memory is its peak (VmHWM), less what it was
before the run; CPU is that of its threads, Ray's among them. Ray's own servers and the workers are other processes and
not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydicom import Dataset

from cluster.local import local_ray
from jobs import preprocess
from tomoray.catalog import refused_row, stored_row
from tomoray.config import PreprocessConfig
from tomoray.errors import Reason, Refused
from tomoray.geometry import Geometry
from tomoray.ingest.ingester import Ingested, Ingester
from tomoray.ingest.series import Item
from tomoray.volume import ScanInfo, ScanUids, Volume

SERIES = (100, 1_000, 10_000, 100_000)
IMAGE = np.arange(-500, 500, dtype=np.int16).reshape(10, 10, 10)
GEOMETRY = Geometry(shape_zyx=(10, 10, 10), affine_lps=(1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1))
EVIDENCE = "gaps: 2 planes after plane 17, 1 after plane 40; wanted none"


class NoDecoder(Ingester):
    """Answers as an `Ingester` does, with a row of the right columns, and reads nothing."""

    __slots__ = ()

    def ingest(self, item: Item) -> Ingested:
        """A made-up scan; every fiftieth series is refused."""
        identity = item.identify(self.deidentifier.pseudonyms)
        header = self.deidentifier.describe(_header())
        if int(identity.digest[:8], 16) % 50 == 0:
            refusal = Refused(Reason.MISSING_SLICES, EVIDENCE)
            about = {"source_uri": "s3://idc-open-data", "n_instances": item.n_instances, "header": header}
            return Ingested(rows=(refused_row(identity, refusal, config_sha256=self.config_sha256, **about),))
        info = ScanInfo(
            scan_id=self.deidentifier.pseudonyms.token("scan", identity.digest),
            series_id=identity.series_id,
            patient_id=identity.patient_id,
            source_uri="s3://idc-open-data",
            n_instances=item.n_instances,
            instances_sha256=identity.digest,
            input_sha256=identity.digest,
            uids=ScanUids(study="2.25.1", series="2.25.2", frame_of_reference="2.25.3", instances=()),
            manufacturer=header.manufacturer,
            kernel=header.kernel,
        )
        self.archive.store.child(f"scans/{info.scan_id}").write("zarr.json", b"{}")
        volume = Volume(image_zyx=IMAGE, geometry=GEOMETRY, info=info, labels={})
        row = stored_row(volume, self.config_sha256, header)
        return Ingested(rows=(row,), voxel_bytes=item.voxel_bytes)


def main() -> None:
    """Run every size in a process of its own and print the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, nargs="+", default=SERIES, help="sizes")
    parser.add_argument("--in-flight", type=int, default=0, help="tasks at once; 0: twice the CPUs")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--index", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.index:
        print(json.dumps(measure(options.index, options.series[0], options.in_flight)))
        return
    if not options.json:
        print(f"{'series':>8}{'driver MB':>11}{'ms/series':>11}{'series/s':>10}  again:{'MB':>6}{'ms/series':>11}")
    found = []
    for n_series in options.series:
        arguments = ["--series", str(n_series), "--in-flight", str(options.in_flight)]
        with tempfile.TemporaryDirectory() as folder:
            index = Path(folder, "index.parquet")
            write_index(index, n_series)
            command = [sys.executable, __file__, "--index", str(index), *arguments]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        found.append(row)
        if not options.json:
            first, again = row["first"], row["again"]
            print(
                f"{n_series:8}{first['peak_mb']:11.0f}{first['cpu_ms']:11.2f}{first['series_per_s']:10.0f}"
                f"{again['peak_mb']:14.0f}{again['cpu_ms']:11.2f}",
                flush=True,
            )
    if options.json:
        print(json.dumps(found, indent=2))


def measure(index: Path, n_series: int, in_flight: int) -> dict[str, Any]:
    """One run over the series of an index, and the same again."""
    preprocess.Ingester = NoDecoder  # type: ignore[misc] # the one thing that is left out
    os.environ["TOMORAY_KEY_FILE"] = str(Path(__file__))
    with tempfile.TemporaryDirectory() as folder, local_ray(num_cpus=max(2, os.cpu_count() or 1)):
        config = PreprocessConfig(sources=[f"idc://{index}"], archive=str(Path(folder, "archive")), in_flight=in_flight)
        first, again = _run(config, n_series), _run(config, n_series)
    assert first["stored"] + first["refused"] == again["skipped"] == n_series
    return {"series": n_series, "first": first, "again": again}


def write_index(path: Path, n_series: int) -> None:
    """An index as of the Imaging Data Commons: three series a patient."""
    numbers = range(n_series)
    columns = {
        "SeriesInstanceUID": [f"1.3.6.1.4.1.14519.5.2.1.7009.9004.{number:018}" for number in numbers],
        "StudyInstanceUID": [f"1.3.6.1.4.1.14519.5.2.1.7009.9005.{number // 3:018}" for number in numbers],
        "PatientID": [f"{100_000 + number // 3}" for number in numbers],
        "instanceCount": [100 + number % 100 for number in numbers],
        "series_size_MB": [(100 + number % 100) * 0.527 for number in numbers],
        "series_aws_url": [f"s3://idc-open-data/{number:032x}/*" for number in numbers],
    }
    pq.write_table(pa.table(columns), path)


def _run(config: PreprocessConfig, n_series: int) -> dict[str, Any]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before_mb, cpu_s, started = _memory_mb("VmRSS"), _cpu_s(), time.monotonic()
    result = preprocess.run(config)
    seconds = time.monotonic() - started
    return {
        "peak_mb": round(_memory_mb("VmHWM") - before_mb, 1),
        "cpu_ms": round(1000 * (_cpu_s() - cpu_s) / n_series, 3),
        "series_per_s": round(n_series / seconds, 1),
        **{name: result[name] for name in ("stored", "refused", "skipped")},
    }


def _memory_mb(which: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {which} in /proc/self/status")


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _header() -> Dataset:
    dataset = Dataset()
    dataset.Modality, dataset.Manufacturer, dataset.PatientName = "CT", "GE MEDICAL SYSTEMS", "DOE^JANE"
    dataset.ConvolutionKernel, dataset.KVP, dataset.SliceThickness = "STANDARD", 120, 2.5
    dataset.PatientSex, dataset.PatientAge, dataset.BodyPartExamined = "F", "061Y", "CHEST"
    return dataset


if __name__ == "__main__":
    main()
