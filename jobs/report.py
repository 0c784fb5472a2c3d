"""Run -> how its training went, as one HTML file; no cluster needed."""

from __future__ import annotations

import time
from typing import Any

from jobs.main import main
from tomoray.config import ReportConfig
from tomoray.reports.pages import write_page
from tomoray.reports.training_report import REPORT, render, report_of
from tomoray.storage import open_store


def run(config: ReportConfig) -> dict[str, Any]:
    """Write the report of a run, finished or still training.

    Returns:
        `run`, `report` (where it is), `steps` done, `seconds`.

    Raises:
        Fatal: there is no run.
    """
    began = time.monotonic()
    store = open_store(config.run)
    store.check()
    report = report_of(store, pictures=config.pictures)
    page = render(report)
    if config.out is None:
        store.write(REPORT, page.encode())
        written = store.child(REPORT).url
    else:
        written = str(write_page(config.out, page))
    return {
        "run": store.url,
        "report": written,
        "steps": report.history[-1]["step"] if report.history else 0,
        "seconds": round(time.monotonic() - began, 3),
    }


if __name__ == "__main__":
    main(run, ReportConfig)
