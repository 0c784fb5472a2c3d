"""What is rendered is safe to run: restricted pods, closed networks, few rights, and time to drain."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.checks import WANTED_RIGHTS

VALUES = ("values-laptop.yaml", "values-eks-gpu.yaml", "values-airgapped.yaml", "everything.yaml", "once.yaml")
KUBERAY_KINDS = {"RayCluster", "RayJob", "RayService", "RayCronJob"}
Render = Callable[..., list[dict[str, Any]]]
Manifest = dict[str, Any]


def pods(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """Every pod template with the object that it is in."""

    def templates(value: Any) -> Iterator[Manifest]:
        if isinstance(value, dict) and "containers" in value.get("spec", {}):
            yield value
        for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from templates(each)

    for manifest in manifests:
        for template in templates(manifest.get("spec", {})):
            yield manifest, template


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [each for each in manifests if each["kind"] in kinds]


@pytest.mark.parametrize("values", VALUES)
def test_every_pod_keeps_to_the_restricted_standard_on_a_read_only_root(values: str, render: Render) -> None:
    found = list(pods(render(values)))
    assert found
    for manifest, template in found:
        spec = template["spec"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        contexts = [each["securityContext"] for each in spec["containers"] + spec.get("initContainers", [])]
        for ray in ("spec", "jobTemplate", "rayClusterSpec", "rayClusterConfig"):
            manifest = manifest.get(ray, manifest)
        if manifest.get("enableInTreeAutoscaling"):
            contexts.append(manifest["autoscalerOptions"]["securityContext"])
        for context in contexts:
            assert context["runAsNonRoot"]
            assert context["readOnlyRootFilesystem"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
        assert not spec.get("hostNetwork") and not spec.get("hostPID")  # noqa: PT018
        assert not any("hostPath" in volume for volume in spec.get("volumes", []))


@pytest.mark.parametrize("values", VALUES)
def test_every_mount_has_its_volume_and_tmp_and_home_can_be_written(values: str, render: Render) -> None:
    for _, template in pods(render(values)):
        volumes = {volume["name"] for volume in template["spec"].get("volumes", [])} | {"data"}
        for container in template["spec"]["containers"]:
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert set(mounts.values()) <= volumes
            assert container["name"] == "redis" or {"/tmp", "/home/tomoray"} <= mounts.keys()


@pytest.mark.parametrize("values", VALUES)
def test_ray_pods_drain_before_they_are_killed(values: str, render: Render) -> None:
    for manifest, template in pods(render(values)):
        container = template["spec"]["containers"][0]
        if container["name"] in {"ray-head", "ray-worker", "serve"}:
            variables = {each["name"]: each.get("value") for each in container["env"]}
            drain_s = int(variables["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
            assert template["spec"]["terminationGracePeriodSeconds"] >= drain_s + 30, manifest["kind"]


@pytest.mark.parametrize("values", VALUES)
def test_pods_that_kuberay_does_not_make_bring_their_own_probes(values: str, render: Render) -> None:
    for manifest, template in pods(of_kind(render(values), "Deployment", "StatefulSet")):
        for container in template["spec"]["containers"]:
            assert {"livenessProbe", "readinessProbe"} <= container.keys(), manifest["metadata"]["name"]


def test_only_heads_that_scale_have_a_token_of_kubernetes(render: Render) -> None:
    for values in VALUES:
        for _, template in pods(render(values)):
            is_head = template["spec"]["containers"][0]["name"] == "ray-head"
            scales = values != "once.yaml"
            assert template["spec"]["automountServiceAccountToken"] is (is_head and scales)


def test_heads_stay_on_demand_and_only_groups_that_say_so_are_spot(render: Render) -> None:
    kinds = {}
    for manifest, template in pods(of_kind(render("values-eks-gpu.yaml"), *KUBERAY_KINDS)):
        container = template["spec"]["containers"][0]["name"]
        kinds[manifest["kind"], container] = template["spec"]["nodeSelector"]["tomoray.io/capacity"]
    assert kinds == {
        ("RayCronJob", "ray-head"): "on-demand",
        ("RayCronJob", "ray-worker"): "spot",
        ("RayCronJob", "ray-job-submitter"): "on-demand",
        ("RayService", "ray-head"): "on-demand",
        ("RayService", "ray-worker"): "on-demand",
    }


def test_an_upgrade_of_the_chart_alone_restarts_no_ray_cluster(render: Render, tmp_path: Path) -> None:
    chart = Path(__file__).parents[2] / "helm" / "tomoray"
    for path in (each for each in chart.rglob("*") if each.is_file()):
        target = tmp_path / path.relative_to(chart)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    text = (tmp_path / "Chart.yaml").read_text(encoding="utf-8")
    (tmp_path / "Chart.yaml").write_text(text.replace("ersion: 0.1.0", "ersion: 0.2.0"), encoding="utf-8")
    before, after = render("everything.yaml"), render("everything.yaml", chart=tmp_path)
    assert before != after
    for kind in ("RayCluster", "RayService", "RayCronJob", "StatefulSet"):
        assert of_kind(before, kind)[0]["spec"] == of_kind(after, kind)[0]["spec"]


def test_another_config_is_another_rayjob_and_the_same_config_the_same(render: Render) -> None:
    def name(*flags: str) -> str:
        return str(of_kind(render("once.yaml", *flags), "RayJob")[0]["metadata"]["name"])

    assert name() == name("--set", "monitoring.enabled=true")
    assert name() != name("--set", "preprocess.config.archive=s3://other/archive")
    assert name() != name("--set", "image.digest=,image.tag=0.2.0")


def test_networks_are_closed_but_for_what_is_listed(render: Render) -> None:
    policies = of_kind(render("everything.yaml"), "NetworkPolicy")
    closed = [each["spec"] for each in policies if each["metadata"]["name"] == "ct-default-deny"]
    assert closed == [{"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}]
    for policy in policies:
        for rule in policy["spec"].get("ingress", []):
            assert all(rule["from"]), f"{policy['metadata']['name']} lets everybody in"
        for rule in policy["spec"].get("egress", []):
            assert all(rule["to"]), f"{policy['metadata']['name']} lets out to anywhere"


def test_without_internet_nothing_goes_outside(render: Render) -> None:
    text = json.dumps(of_kind(render("values-airgapped.yaml"), "NetworkPolicy"))
    assert "0.0.0.0/0" not in text
    assert "10.20.0.15/32" in text
    images = {each["image"] for _, pod in pods(render("values-airgapped.yaml")) for each in pod["spec"]["containers"]}
    assert all(image.startswith("registry.hospital.example/") for image in images)


def test_pods_that_heads_and_redis_talk_to_are_those_of_the_policies(render: Render) -> None:
    manifests = render("everything.yaml")
    components = {template["metadata"]["labels"]["app.kubernetes.io/component"] for _, template in pods(manifests)}
    policies = {each["metadata"]["name"] for each in of_kind(manifests, "NetworkPolicy")}
    assert components == {"interactive", "preprocess", "serving", "redis"}
    assert {f"ct-ray-{each}" for each in components - {"redis"}} | {
        "ct-redis",
        "ct-redis-from-heads",
        "ct-redis-from-serving",
    } <= policies


def test_the_endpoint_is_told_of_its_tokens_and_its_queue_unless_the_values_say_otherwise(render: Render) -> None:
    def config(values: str, *flags: str) -> Manifest:
        (service,) = of_kind(render(values, *flags), "RayService")
        return dict(yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"])

    given = config("everything.yaml")
    assert given["auth"] == {"tokens": "/etc/tomoray/tokens/tokens.json"}
    assert given["queue"] == {"url": "redis://ct-redis:6379/1", "store": "s3://research/queue"}
    for _, template in pods(of_kind(render("everything.yaml"), "RayService")):
        container = template["spec"]["containers"][0]
        assert {"TOMORAY_REDIS_PASSWORD"} <= {each["name"] for each in container["env"]}
        assert "/etc/tomoray/tokens" in {each["mountPath"] for each in container["volumeMounts"]}
    other = config("everything.yaml", "--set", "serving.config.queue.url=redis://elsewhere:6379/0")
    assert other["queue"]["url"] == "redis://elsewhere:6379/0"


def allowed(rules: list[Manifest], verb: str, group: str, resource: str) -> bool:
    return any(group in r["apiGroups"] and resource in r["resources"] and verb in r["verbs"] for r in rules)


def test_submitters_may_do_what_the_command_line_does_and_read_no_secret(render: Render) -> None:
    roles = of_kind(render("everything.yaml"), "Role")
    rules = [rule for role in roles for rule in role["rules"]]
    for verb, group, resource, subresource in WANTED_RIGHTS:
        assert allowed(rules, verb, group, f"{resource}/{subresource}" if subresource else resource)
    for role in of_kind(render("everything.yaml"), "Role", "ClusterRole"):
        text = json.dumps(role["rules"])
        assert "secrets" not in text
        assert '"*"' not in text
    bound = {each["roleRef"]["name"]: each["subjects"] for each in of_kind(render("everything.yaml"), "RoleBinding")}
    assert [each["name"] for each in bound["ct-submit"]] == ["engineers"]
    assert [each["name"] for each in bound["ct-view"]] == ["engineers", "dashboard"]


@pytest.mark.parametrize("values", VALUES)
def test_budgets_are_whole_numbers_and_heads_need_one_only_without_fault_tolerance(values: str, render: Render) -> None:
    manifests = render(values)
    budgets = of_kind(manifests, "PodDisruptionBudget")
    assert all(isinstance(budget["spec"]["minAvailable"], int) for budget in budgets)
    if any(budget["metadata"]["name"].endswith("-head") for budget in budgets):
        assert "gcsFaultToleranceOptions" not in json.dumps(manifests)


def test_a_budget_that_lets_no_node_go_is_refused(tool: Callable[..., Any]) -> None:
    flags = ("--values", "helm/tomoray/values-eks-gpu.yaml", "--set", "podDisruptionBudgets.servingMinAvailable=1")
    done = tool("helm", "template", "x", "helm/tomoray", *flags)
    assert "servingMinAvailable is 1 and serving has no more than 1 pods" in done.stderr


def test_queues_and_worker_groups_mean_the_same_nodes(render: Render) -> None:
    manifests = render("values-eks-gpu.yaml")
    (queue,) = of_kind(manifests, "ClusterQueue")
    (local,) = of_kind(manifests, "LocalQueue")
    assert local["metadata"]["name"] == local["spec"]["clusterQueue"] == queue["metadata"]["name"] == "tomoray"
    flavors = {each["metadata"]["name"]: each["spec"]["nodeLabels"] for each in of_kind(manifests, "ResourceFlavor")}
    assert flavors == {
        "tomoray-on-demand": {"tomoray.io/capacity": "on-demand"},
        "tomoray-spot": {"tomoray.io/capacity": "spot"},
    }
    named = [each["name"] for each in queue["spec"]["resourceGroups"][0]["flavors"]]
    assert sorted(named) == sorted(flavors)


def test_nodes_are_chosen_by_labels_that_terraform_gives_them(render: Render) -> None:
    terraform = Path(__file__).parents[2] / "terraform"
    labels = (terraform / "modules" / "nodes" / "main.tf").read_text(encoding="utf-8")
    groups = (terraform / "nodes.tf").read_text(encoding="utf-8")
    for _, template in pods(render("values-eks-gpu.yaml")):
        for key, value in template["spec"]["nodeSelector"].items():
            assert f'"{key}"' in labels
            assert f'"{value}"' in labels or f" {value} = {{" in groups, value


def test_accounts_have_the_names_that_clouds_are_told(render: Render) -> None:
    accounts = {each["metadata"]["name"] for each in of_kind(render("values-eks-gpu.yaml"), "ServiceAccount")}
    assert accounts == {"tomoray-preprocess", "tomoray-train", "tomoray-serving"}
    used = {pod["spec"].get("serviceAccountName") for _, pod in pods(render("values-eks-gpu.yaml"))} - {None}
    assert used <= accounts


def test_checkov_finds_nothing(render: Render, tool: Callable[..., Any], tmp_path: Path) -> None:
    for values in ("everything.yaml", "once.yaml"):
        manifests = render(values)
        plain = [each for each in manifests if each["kind"] not in KUBERAY_KINDS]
        for number, (manifest, template) in enumerate(pods(of_kind(manifests, *KUBERAY_KINDS))):
            metadata = {**template["metadata"], "name": f"{manifest['kind'].lower()}-{number}"}
            plain.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
        (tmp_path / values).write_text(yaml.safe_dump_all(plain), encoding="utf-8")
    config = Path(__file__).parent / "checkov.yaml"
    done = tool("checkov", "--skip-download", "--config-file", config, "--directory", tmp_path)
    assert done.returncode == 0, done.stdout
    assert "Passed checks: 1" in done.stdout  # more than a thousand
