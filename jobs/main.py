"""`python -m jobs.NAME CONFIG.yaml`: what a cluster runs, and what the command line runs here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import ray

from tomoray import settings
from tomoray.config import ConfigT, load_config
from tomoray.errors import TomoRayError, Usage


def main(run: Callable[[ConfigT], dict[str, Any]], model: type[ConfigT]) -> None:
    """Run a job on the Ray cluster of `RAY_ADDRESS`, or on this machine; its result goes to stdout as JSON.

    Exit code 0: done; 1: failed; 2: wrong usage. Errors are one line on stderr.
    """
    try:
        if len(sys.argv) != 2:
            raise Usage(f"usage: python -m {run.__module__} CONFIG.yaml")
        config = load_config(sys.argv[1], model)
        ray.init(settings.ray_address() or "local", log_to_driver=False)
        print(json.dumps(run(config)))
    except TomoRayError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, Usage) else 1)
