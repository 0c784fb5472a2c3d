"""Dashboards and alerts ask for what exists: metrics of TomoRay, Ray and KubeRay, in PromQL that parses."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from jobs.telemetry import Telemetry
from serving.watch import Numbers

ROOT = Path(__file__).parents[2]
DASHBOARDS = sorted((ROOT / "helm" / "tomoray" / "dashboards").glob("*.json"))
RAY = Path(str(importlib.util.find_spec("ray").origin)).parent
KUBERAY = {  # release 1.7, ray-operator/controllers/ray/metrics
    "kuberay_cluster_condition_provisioned",
    "kuberay_job_deployment_status",
    "kuberay_service_condition_ready",
}
Render = Callable[..., list[dict[str, Any]]]


@cache
def existing() -> frozenset[str]:
    """Names that Prometheus finds: TomoRay's own, those of Ray's own dashboards, and Serve's as its code makes them."""
    telemetry, numbers = Telemetry(None), Numbers("replica")
    telemetry.count("stored")
    telemetry.add_bytes(1, 1)
    numbers.count("segment", 200, 1.0, 1)
    counted = generate_latest(telemetry._registry) + numbers.text({})
    own = [sample.name for family in text_string_to_metric_families(counted.decode()) for sample in family.samples]
    panels = "".join(path.read_text(encoding="utf-8") for path in RAY.glob("dashboard/modules/metrics/dashboards/*.py"))
    serve = "".join(path.read_text(encoding="utf-8") for path in RAY.glob("serve/_private/**/*.py"))
    gauges = {f"ray_{name}" for name in re.findall(r'Gauge\(\s*"(serve_\w+)"', serve)}
    return frozenset(own) | frozenset(re.findall(r"(ray_\w+)\{\{", panels)) | gauges | KUBERAY


def metrics(expression: str) -> set[str]:
    """Names of the metrics in a PromQL expression; Grafana's variables are put in. Raises `ValueError`."""
    filled = re.sub(r"\$(__rate_interval|__range)", "5m", expression)
    filled = re.sub(r"\$(cpu|gpu)_price", "0.05", filled)
    assert not re.search(r"\$(?!namespace|cluster)", filled), expression
    return set(_names(promql_parser.parse(filled)))


def _names(node: Any) -> Iterator[str]:
    if isinstance(node, promql_parser.VectorSelector):
        yield node.name
    for field in ("expr", "lhs", "rhs", "vector_selector"):
        if (child := getattr(node, field, None)) is not None:
            yield from _names(child)
    for child in getattr(node, "args", None) or []:
        yield from _names(child)


def test_the_parser_of_these_tests_finds_every_metric() -> None:
    found = metrics('1000 * sum(rate(a{x="1"}[$__range])) / (histogram_quantile(0.9, sum by (le) (b)) or vector(0))')
    assert found == {"a", "b"}
    assert metrics("sum(sum_over_time(c[$__range:1m])) > -d") == {"c", "d"}
    with pytest.raises(ValueError, match="unclosed"):
        metrics("sum(rate(a[5m])")


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_ask_for_metrics_that_exist(path: Path) -> None:
    dashboard = json.loads(path.read_text(encoding="utf-8"))
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            assert metrics(target["expr"]) <= existing(), f"{panel['title']}: {target['expr']}"
            assert 'namespace="$namespace"' in target["expr"], panel["title"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_are_explained_and_do_not_overlap(path: Path) -> None:
    panels = json.loads(path.read_text(encoding="utf-8"))["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["description"], panel["title"]
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def alerts(render: Render) -> list[dict[str, Any]]:
    (rule,) = [each for each in render("everything.yaml") if each["kind"] == "PrometheusRule"]
    return [each for group in rule["spec"]["groups"] for each in group["rules"]]


def test_alerts_ask_for_metrics_that_exist_in_their_own_namespace(render: Render) -> None:
    for alert in alerts(render):
        assert metrics(alert["expr"]) <= existing(), alert["alert"]
        assert alert["expr"].count('namespace="tomoray"') == len(re.findall(r"\{", alert["expr"])), alert["alert"]


def test_alerts_say_what_is_wrong_and_what_to_do(render: Render) -> None:
    for alert in alerts(render):
        assert alert["labels"]["severity"] in {"info", "warning", "critical"}
        assert all(alert["annotations"][key] for key in ("summary", "description")), alert["alert"]
        for label in re.findall(r"\$labels\.(\w+)", str(alert["annotations"])):
            kept = f"by ({label}" in alert["expr"] or f", {label})" in alert["expr"] or " by " not in alert["expr"]
            assert kept, f"{alert['alert']} names {label}, which its expression drops"


def test_everything_that_is_scraped_has_a_port_of_that_name(render: Render) -> None:
    manifests = render("everything.yaml")
    specs = [each["spec"] for each in manifests if each["kind"] in {"PodMonitor", "ServiceMonitor"}]
    scraped = {end["port"] for spec in specs for end in spec.get("podMetricsEndpoints") or spec["endpoints"]}
    text = json.dumps(manifests)
    assert scraped == {"metrics", "driver", "serve", "as-metrics", "dash-metrics"}
    assert all(f'"name": "{port}", "containerPort"' in text for port in scraped)
