from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECKOV = ROOT / ".tools" / "bin" / "checkov"


def checkov(*arguments):
    """What checkov found: its summary, and every failed check."""
    if not CHECKOV.exists():
        pytest.skip("no checkov; install it: make tools")
    command = [CHECKOV, *arguments, "--quiet", "--skip-download", "--output", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    report = json.loads(done.stdout)
    failed = [f"{each['check_id']} {each['resource']}" for each in report["results"]["failed_checks"]]
    return report["summary"], failed


def test_the_code_fails_no_check_that_is_not_explained(providers):
    summary, failed = checkov("--directory", str(ROOT / "terraform"), "--framework", "terraform")
    assert failed == []
    assert summary["parsing_errors"] == 0
    assert summary["passed"] > 200


def test_a_plan_fails_no_check_that_is_not_explained_in_the_code(everything):
    explained = {
        name
        for path in (ROOT / "terraform").rglob("*.tf")
        for name in re.findall(r"checkov:skip=(\w+): \S", path.read_text(encoding="utf-8"))
    }
    summary, failed = checkov("--file", str(everything.folder / "again.json"), "--framework", "terraform_plan")
    assert [each for each in failed if each.split()[0] not in explained] == []
    assert summary["passed"] > 150


def test_a_bucket_that_may_be_public_is_found(everything, tmp_path):
    text = (everything.folder / "again.json").read_text()
    assert '"block_public_acls":true' in text
    (tmp_path / "plan.json").write_text(text.replace('"block_public_acls":true', '"block_public_acls":false'))
    _, failed = checkov("--file", str(tmp_path / "plan.json"), "--framework", "terraform_plan")
    assert any(each.startswith("CKV_AWS_53 ") for each in failed)
