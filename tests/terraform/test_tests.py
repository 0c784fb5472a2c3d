from __future__ import annotations

from pathlib import Path

import pytest

TERRAFORM = Path(__file__).parents[2] / "terraform"
FOLDERS = sorted({path.parents[1].relative_to(TERRAFORM).as_posix() for path in TERRAFORM.rglob("*.tftest.hcl")})


@pytest.mark.parametrize("folder", FOLDERS)
def test_its_own_tests_pass(workspace, folder):
    workspace(folder).run("test")
