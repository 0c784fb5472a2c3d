"""A wheel holds the page that serving answers at `/`; it is built here where `make page` has not done so."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PageHook(BuildHookInterface):  # type: ignore[type-arg]
    """Asked for by name in pyproject.toml."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the page, if it is a wheel to be passed on that is made. Raises `RuntimeError` where npm is missing."""
        viewer = Path(self.root) / "serving" / "viewer"
        if version == "editable" or (viewer / "dist" / "index.html").is_file():
            return
        npm = shutil.which("npm")
        if npm is None:
            raise RuntimeError("the page at / is not built and there is no npm; run make page, then this again")
        for command in (["ci", "--no-audit", "--no-fund"], ["run", "build"]):
            subprocess.run([npm, *command], cwd=viewer, check=True)
