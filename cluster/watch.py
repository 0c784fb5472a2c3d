"""Follow a run of preprocessing that another process or machine drives."""

from __future__ import annotations

import time
from typing import Any

from tomoray.archive import Archive
from tomoray.errors import Fatal
from tomoray.lease import RENEW_S, STALE_S, read_run
from tomoray.progress import track


def follow(url: str, *, every_s: float = RENEW_S) -> dict[str, Any]:
    """Show how far the run is that writes the archive at `url`, until it ends.

    Returns:
        `archive`, and what the run last said of itself: `done`, `total`, `stored`, `refused`, `voxel_mb`, …

    Raises:
        Fatal: nothing writes there, or what did was killed.
    """
    store = Archive.open(url).store
    run = read_run(store)
    if run is None:
        raise Fatal(f"nothing writes {url} now; start it with: tomoray preprocess SOURCE {url}")
    done, last = 0, run
    with track("preprocess", run["progress"].get("total")) as advance:
        while run is not None:
            if run["age_s"] > STALE_S:
                raise Fatal(
                    f"the run on {run['host']} has said nothing for {run['age_s']:.0f} s; run its command again"
                )
            last, counts = run, run["progress"]
            now = counts.get("done", 0)
            rate = f"{counts.get('voxel_mb', 0):.0f} MB, {counts.get('mb_per_s', 0):.0f} MB/s"
            advance(now - done, f"{rate}, {counts.get('refused', 0)} refused")
            done = now
            time.sleep(every_s)
            run = read_run(store)
    return {"archive": url, **last["progress"]}
