"""Exactly once: whatever is killed with -9 at whatever moment, the archive ends as if nothing had been."""

from __future__ import annotations

import random
import re
import runpy
import shutil
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace

once = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "exactly_once.py")))
LOSE_A_NODE = Path(__file__).parent / "lose_a_node.py"


N_KILLS = 20


def test_twenty_kills_at_random_times_change_no_byte(every_kind, undisturbed, tmp_path):
    rng, n_kills = random.Random(2026), 0
    for number in count():
        archive = str(tmp_path / f"archive-{number}")
        n_drivers, n_runs = 3, 0
        while True:
            out, left = tmp_path / f"run-{number}-{n_runs}", N_KILLS - n_kills
            killed, ended = disturb(every_kind, archive, out, rng, left, kills_driver=n_runs < n_drivers and left > 0)
            n_kills += killed
            n_runs += 1
            assert n_runs < 10, "it does not come to an end"
            if ended and once.answer(out).get("failed") == []:  # else run it again, as its message says
                break
        once.check(archive, undisturbed)
        shutil.rmtree(archive)
        if n_kills >= N_KILLS:
            return


def disturb(
    cohort: Path, archive: str, out: Path, rng: random.Random, at_most: int, *, kills_driver: bool
) -> tuple[int, bool]:
    """One run of the command with some of the kills that are left: how many, and whether it ended by itself.

    A worker that begins again costs three seconds of imports; so no more are killed than were asked for.
    """
    driver = once.start(cohort, archive, out)
    n_kills = 0
    for _ in range(rng.randint(1, 3) if kills_driver else 12):
        if n_kills >= at_most:
            break
        wanted = n_scans(archive) + rng.randint(0, 2)
        while driver.poll() is None and not (n_scans(archive) >= wanted and once.workers(driver.pid)):
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.4))
        working = once.workers(driver.pid)
        for process in rng.sample(working, rng.randint(min(1, len(working)), len(working))):
            n_kills += process.kill()
    if kills_driver and driver.poll() is None:
        kill_driver(driver)
        return n_kills + 1, False
    driver.wait()
    assert driver.returncode in (0, 1), (out / "stderr").read_text()
    return n_kills, True


def n_scans(archive: str) -> int:
    """Complete ones."""
    return sum(1 for _ in Path(archive).glob("scans/*/zarr.json"))


def kill_driver(driver: subprocess.Popen[bytes]) -> None:
    """Kill -9; then wait until Ray, which dies with it, is gone, and take away the folder that it leaves behind."""
    below = once.descendants(driver.pid)
    driver.kill()
    driver.wait()
    once.wait_until_gone(below)
    for folder in {found for process in below for found in re.findall(r"/tmp/tomoray-\w+", process.name)}:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_node_that_is_lost_changes_no_byte(every_kind, undisturbed, tmp_path):
    archive = tmp_path / "archive"
    (tmp_path / "config.yaml").write_text(once.CONFIG)
    command = [sys.executable, str(LOSE_A_NODE), str(every_kind), str(archive), str(tmp_path / "config.yaml")]
    env = {**once.os.environ, "PYTHONPATH": str(once.ROOT)}
    done = subprocess.run(command, cwd=once.ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (said,) = (once.json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert said["stored"] == once.N_STORED
    assert said["lost_after"] < once.N_STORED
    once.check(str(archive), undisturbed)
