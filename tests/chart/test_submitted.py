"""checkov on the pods that `tomoray submit` asks for, in the chart's namespace and with its exceptions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from cluster.manifests import job_manifests
from cluster.submission import Shape, prepare
from cluster.targets import Cache, Gcs, KubernetesTarget, Nodes

IMAGE = "r/tomoray@sha256:" + "0" * 64
SPOT = Nodes(node_selector={"capacity": "spot"})
TARGETS = (
    KubernetesTarget(kind="kubernetes", image=IMAGE, spot=SPOT, pseudonym_key="pseudonyms/key"),
    KubernetesTarget(
        kind="kubernetes",
        image=IMAGE,
        spot=SPOT,
        env_from=["aws"],
        cache=Cache(kind="volume", size="1Ti", storage_class="nvme"),
        gcs=Gcs(kind="redis", address="redis:6379", password="redis/password"),
        volumes={"/data": "shared"},
    ),
)
SHAPES = (Shape(), Shape(workers=(8, 8), gpus=8, queue="tomoray"), Shape(workers=(2, 16), spot=True))
TRAINING = {"archive": "s3://ct/archive", "out": "s3://ct/run", "batch_size": 128}


def pods(job: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    cluster = job["spec"]["rayClusterSpec"]
    yield "head", cluster["headGroupSpec"]["template"]
    yield "submitter", job["spec"]["submitterPodTemplate"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]


def test_checkov_finds_nothing_in_submitted_pods(
    render: Callable[..., Any], tool: Callable[..., Any], tmp_path: Path
) -> None:
    plain = [each for each in render("everything.yaml") if each["kind"] == "NetworkPolicy"]
    assert plain
    for target in TARGETS:
        for shape in SHAPES:
            others, job = job_manifests(prepare("phantom", TRAINING, target, shape), target)
            plain.append(others)
            for name, template in pods(job):
                metadata = {**template.get("metadata", {}), "name": f"{name}-{len(plain)}", "namespace": "tomoray"}
                plain.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
    (tmp_path / "submitted.yaml").write_text(yaml.safe_dump_all(plain), encoding="utf-8")
    config = Path(__file__).parent / "checkov.yaml"
    done = tool("checkov", "--skip-download", "--config-file", config, "--directory", tmp_path)
    assert done.returncode == 0, done.stdout
    assert "Passed checks: 1" in done.stdout  # more than a thousand
