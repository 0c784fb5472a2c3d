"""Terraform with the providers' real schemas and no cloud: `terraform.copy()`, then `run("validate")`.

The schemas come out of packages in .tools (`make tools`), once for each set of resources in use. Every test works on
a copy, so that the stub's checksums stay out of the repository's lock files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import runpy
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TERRAFORM = ROOT / "terraform"
TOOLS = ROOT / ".tools"
HERE = Path(__file__).parent
HOST = "registry.terraform.io"
PACKAGES = {"aws": "cdktn_provider_aws", "helm": "cdktn_provider_helm"}
EVERYTHING = {
    "name": "ctlab",
    "admin_role_arns": ["arn:aws:iam::123456789012:role/admin"],
    "service_linked_roles": ["autoscaling.amazonaws.com", "spot.amazonaws.com"],
    "autoscaler": "karpenter",
    "nat": "per_zone",
    "public_access_cidrs": ["203.0.113.7/32"],
    "api_client_cidrs": ["10.200.0.0/16"],
    "require_encryption_header": True,
    "only_from_network": True,
    "object_lock_days": 365,
    "replica_region": "us-west-2",
    "cache": "fsx",
    "github": {"repository": "org/ct"},
    "break_glass_principals": ["arn:aws:iam::123456789012:user/oncall"],
    "alert_emails": ["oncall@example.org"],
    "image": "registry.example/tomoray@sha256:" + "0" * 64,
}


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """A copy of terraform/, and one folder of it."""

    folder: Path
    env: dict[str, str]
    tools: Path = TOOLS

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`terraform` with these arguments; fails with what it printed, or with `check=False` returns that too."""
        command = ["terraform", *arguments, "-no-color"] if arguments[0] != "show" else ["terraform", *arguments]
        done = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done

    def said(self, *arguments: str) -> str:
        """What a command that should fail printed, in one line without frames."""
        done = self.run(*arguments, check=False)
        assert done.returncode != 0, f"{arguments} passed"
        return " ".join(re.sub(r"[│╷╵]", " ", done.stdout + done.stderr).split())

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace text that is there exactly once."""
        text = (self.folder / path).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {path}"
        (self.folder / path).write_text(text.replace(old, new), encoding="utf-8")

    def state(self) -> dict[str, Any]:
        """Every resource by address, after an apply."""
        shown = json.loads(self.run("show", "-json").stdout)
        return dict(_resources(shown["values"]["root_module"]))

    def outputs(self) -> dict[str, Any]:
        """Outputs by name, as `terraform output -json` prints them."""
        return json.loads(self.run("output", "-json").stdout)


def _resources(module: dict[str, Any]) -> Any:
    for resource in module.get("resources", []):
        yield resource["address"], resource["values"]
    for child in module.get("child_modules", []):
        yield from _resources(child)


@pytest.fixture(scope="session")
def providers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of provider plugins for `filesystem_mirror`, with the schemas of what terraform/ uses."""
    if not shutil.which("terraform"):
        pytest.skip("no terraform; install it: https://developer.hashicorp.com/terraform/install")
    packages = {
        name: next(TOOLS.glob(f"lib/python*/site-packages/{folder}"), None) for name, folder in PACKAGES.items()
    }
    if None in packages.values():
        pytest.skip("no provider schemas; install them: make tools")
    types = sorted(_types_in_use())
    sources = [(HERE / name).read_bytes() for name in ("provider_schema.py", "stub_provider.py")]
    key = hashlib.sha256(b"".join([*sources, "\n".join(types).encode(), (ROOT / "tools.lock").read_bytes()]))
    mirror = TOOLS / "providers" / key.hexdigest()[:16]
    if not mirror.exists():
        made = tmp_path_factory.mktemp("providers")
        read_schema = runpy.run_path(str(HERE / "provider_schema.py"))["read_schema"]
        for name, package in packages.items():
            schema = read_schema(package, [each for each in types if each.removeprefix("data.").startswith(f"{name}_")])
            _install(made, name, schema)
        mirror.parent.mkdir(exist_ok=True)
        shutil.copytree(made, partial := mirror.with_suffix(f".{os.getpid()}"), symlinks=True)
        partial.rename(mirror)
    return mirror


def _types_in_use() -> set[str]:
    """`aws_s3_bucket`, `data.aws_region`: every type that a file below terraform/ names."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in TERRAFORM.rglob("*.tf"))
    found = re.findall(r'^\s*(resource|data)\s+"(\w+)"', text, flags=re.MULTILINE)
    return {f"data.{name}" if kind == "data" else name for kind, name in found}


def _install(mirror: Path, name: str, schema: dict[str, Any]) -> None:
    version = schema["version"]
    folder = mirror / HOST / "hashicorp" / name / version / "linux_amd64"
    folder.mkdir(parents=True)
    plugin = folder / f"terraform-provider-{name}_v{version}"
    python = TOOLS.resolve() / "bin" / "python"
    plugin.write_text(f"#!{python}\n" + (HERE / "stub_provider.py").read_text(encoding="utf-8"), encoding="utf-8")
    plugin.chmod(0o755)
    Path(f"{plugin}.json").write_text(json.dumps(schema), encoding="utf-8")


@pytest.fixture
def workspace(providers: Path, tmp_path: Path) -> Callable[..., Workspace]:
    """`workspace("modules/storage")`: a copy of terraform/ of one's own, `terraform init` done in that folder."""
    return _workspaces(providers, tmp_path)


@pytest.fixture(scope="session")
def everything(providers: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The root with every switch on, planned (`plan.json`), carried out by the stub, and planned again (`again.json`).

    No cloud is reached.
    """
    made = _workspaces(providers, tmp_path_factory.mktemp("everything"))()
    (made.folder / "terraform.tfvars.json").write_text(json.dumps(EVERYTHING), encoding="utf-8")
    made.run("plan", "-out=plan")
    (made.folder / "plan.json").write_text(made.run("show", "-json", "plan").stdout, encoding="utf-8")
    made.run("apply", "plan")
    made.run("plan", "-out=again")
    (made.folder / "again.json").write_text(made.run("show", "-json", "again").stdout, encoding="utf-8")
    return made


def _workspaces(providers: Path, folder: Path) -> Callable[..., Workspace]:
    def make(root: str = ".", *, init: bool = True) -> Workspace:
        copy = folder / "terraform"
        if not copy.exists():
            shutil.copytree(TERRAFORM, copy, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*"))
            shutil.copytree(ROOT / "helm", folder / "helm")
        config = folder / "terraformrc"
        config.write_text(
            f'provider_installation {{\n  filesystem_mirror {{\n    path = "{providers}"\n'
            f'    include = ["{HOST}/*/*"]\n  }}\n}}\n',
            encoding="utf-8",
        )
        env = {**os.environ, "TF_CLI_CONFIG_FILE": str(config), "CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1"}
        made = Workspace(folder=copy / root, env=env)
        if init:
            made.run("init", "-backend=false", "-input=false")
        return made

    return make
