from __future__ import annotations

from pathlib import Path

import pytest

TERRAFORM = Path(__file__).parents[2] / "terraform"
FOLDERS = sorted({path.parent.relative_to(TERRAFORM).as_posix() for path in TERRAFORM.rglob("*.tf")})


def test_is_in_terraforms_own_format(workspace):
    workspace(init=False).run("fmt", "-check", "-recursive")


@pytest.mark.parametrize("folder", FOLDERS)
def test_is_valid_against_the_providers_schemas(workspace, folder):
    workspace(folder).run("validate")
