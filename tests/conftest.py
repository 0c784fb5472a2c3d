"""What every test shares: a pseudonym key of its own, and the real CT where it is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

REAL_CT = Path(__file__).parents[2] / "shared" / "ct"


@pytest.fixture(scope="session", autouse=True)
def _own_pseudonym_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set before Ray starts, so that its workers inherit it; the user's own key is never touched."""
    path = tmp_path_factory.mktemp("key") / "pseudonym.key"
    path.write_bytes(b"a key for tests only, of no worth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOMORAY_KEY_FILE", str(path))
        yield


@pytest.fixture(scope="session")
def real_ct() -> Path:
    """The folder of real CT; tests that need it are skipped where it is absent."""
    if not REAL_CT.is_dir():
        pytest.skip(f"no real CT at {REAL_CT}: put LIDC-IDRI and the other sets there (CONTRIBUTING.md)")
    return REAL_CT
