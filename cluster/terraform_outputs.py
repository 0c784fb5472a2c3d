"""What Terraform made, as a target for jobs and as values for the chart."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tomoray.errors import Fatal, Usage
from tomoray.ingest.estimate import NodePrice, read_prices

STORAGE_CLASS = "ebs-csi-default-sc"  # that EKS's add-on makes
CAPACITY = "tomoray.io/capacity"
GPU_TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
WANTED = ("cluster", "namespace", "buckets", "groups", "image")
SHARE = 0.85  # of a machine, for a pod; the rest is the system's


def read_outputs(source: Path) -> dict[str, Any]:
    """Outputs by name, from a file of `terraform output -json` or from a folder where Terraform has been applied.

    Raises:
        Usage: no such file, or not what terraform/ puts out.
        Fatal: terraform is not there, or says no.
    """
    text = _ask_terraform(source) if source.is_dir() else _read(source)
    try:
        outputs = {name: output["value"] for name, output in json.loads(text).items()}
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise Usage(f"{source} is not what `terraform output -json` prints") from error
    missing = [name for name in WANTED if not outputs.get(name)]
    if missing:
        raise Usage(f"{source} lacks the outputs {', '.join(missing)}; those of terraform/ are wanted, after an apply")
    return outputs


def target_values(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Kubernetes target: kubectl's context, image, buckets, and pods as large as the machines."""
    groups = outputs["groups"].values()
    cpu = _largest_known([group for group in groups if not group["gpu"]])
    gpu = _largest_known([group for group in groups if group["gpu"]])
    pools: dict[str, Any] = {}
    if cpu:
        pools["cpu"] = _pool(*cpu)
    if gpu:
        pools["gpu"] = _pool(*gpu) | {"gpus": gpu[1].gpus, "tolerations": [GPU_TAINT]}
    return {
        "kind": "kubernetes",
        "context": outputs["cluster"]["arn"],
        "namespace": outputs["namespace"],
        "image": outputs["image"],
        "buckets": [f"s3://{outputs['buckets'][kind]}" for kind in ("raw", "archive", "models")],
        "storage_class": STORAGE_CLASS,
        "env": {"AWS_REGION": outputs["cluster"]["region"]},
        "pools": pools,
        "spot": {"node_selector": {CAPACITY: "spot"}},
        "on_demand": {"node_selector": {CAPACITY: "on-demand"}},
    }


def chart_values(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Values for helm/tomoray, for those who install the chart themselves (`addons = false`)."""
    image, _, digest = outputs["image"].partition("@")
    repository, _, tag = (image, "", "") if digest else image.rpartition(":")
    return {
        "image": {"repository": repository, "tag": tag, "digest": digest},
        "pods": {"env": [{"name": "AWS_REGION", "value": outputs["cluster"]["region"]}]},
        "scheduling": {
            "spot": {"nodeSelector": {CAPACITY: "spot"}},
            "onDemand": {"nodeSelector": {CAPACITY: "on-demand"}},
        },
    }


def _largest_known(groups: list[Mapping[str, Any]]) -> tuple[str, NodePrice] | None:
    """The largest machine that the price table knows, of groups that may grow most."""
    nodes = read_prices().nodes
    known = [
        (group["max"], nodes[kind].vcpus, kind)
        for group in groups
        for kind in group["instance_types"][:1]
        if kind in nodes
    ]
    return (name, nodes[name]) if (name := max(known, default=(0, 0, ""))[2]) else None


def _pool(name: str, node: NodePrice) -> dict[str, Any]:
    return {"node_type": name, "cpus": node.vcpus - 1, "memory_gb": round(node.memory_gb * SHARE)}


def _ask_terraform(folder: Path) -> str:
    try:
        done = subprocess.run(
            ["terraform", "output", "-json"],  # noqa: S607
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except FileNotFoundError as error:
        raise Fatal("terraform is not installed; save `terraform output -json` elsewhere and name the file") from error
    except subprocess.CalledProcessError as error:
        raise Fatal(f"terraform output failed in {folder}: {' '.join(error.stderr.split())[:200]}") from error
    return done.stdout


def _read(file: Path) -> str:
    if not file.is_file():
        raise Usage(f"no file or folder {file}")
    return file.read_text(encoding="utf-8")
