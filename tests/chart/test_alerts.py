"""Alerts by Prometheus' own tool: each goes off where its trouble is, and none where all is well."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = 'namespace="tomoray"'
HOURS_OF_TROUBLE: dict[str, dict[str, str]] = {  # by alert: series, and their values minute by minute
    "TomoRayManyRefused": {
        'tomoray_preprocess_series_total{outcome="refused"': "0+2x240",
        'tomoray_preprocess_series_total{outcome="stored"': "0+1x240",
    },
    "TomoRaySeriesFail": {'tomoray_preprocess_series_total{outcome="failed"': "0+1x240"},
    "TomoRayIngestStalled": {
        'tomoray_preprocess_series_total{outcome="stored"': "7+0x240",
        'ray_tasks{State="RUNNING", component="preprocess"': "4+0x240",
    },
    "TomoRayJobFailed": {'kuberay_job_deployment_status{name="train", deployment_status="Failed"': "1+0x240"},
    "TomoRayClusterNotProvisioned": {'kuberay_cluster_condition_provisioned{name="x", condition="false"': "1+0x240"},
    "TomoRayGpuIdle": {'ray_node_gpus_utilization{ray_io_cluster="x"': "2+0x240"},
    "TomoRayEndpointNotReady": {'kuberay_service_condition_ready{name="x", condition="false"': "1+0x240"},
    "TomoRayReplicaUnhealthy": {'ray_serve_deployment_replica_healthy{ray_io_cluster="x", deployment="m"': "0+0x240"},
    "TomoRayEndpointErrors": {
        'ray_serve_num_http_error_requests_total{application="tomoray", error_code="503"': "0+1x240",
        'ray_serve_num_http_requests_total{application="tomoray"': "0+4x240",
    },
    "TomoRayEndpointSlow": {
        'ray_serve_http_request_latency_ms_bucket{application="tomoray", le="100000"': "0+1x240",
        'ray_serve_http_request_latency_ms_bucket{application="tomoray", le="200000"': "0+9x240",
        'ray_serve_http_request_latency_ms_bucket{application="tomoray", le="+Inf"': "0+9x240",
    },
    "TomoRayDiskFull": {'ray_node_disk_usage{pod="x"': "95+0x240", 'ray_node_disk_free{pod="x"': "5+0x240"},
    "TomoRayMemoryShort": {'ray_node_mem_used{pod="x"': "97+0x240", 'ray_node_mem_total{pod="x"': "100+0x240"},
    "TomoRayWorkersDie": {'ray_node_manager_unexpected_worker_failure_total{ray_io_cluster="x"': "0+1x240"},
}
ALL_IS_WELL = {
    'tomoray_preprocess_series_total{outcome="refused"': "0+1x240",
    'tomoray_preprocess_series_total{outcome="stored"': "0+9x240",
    'tomoray_preprocess_series_total{outcome="failed"': "0+0x240",
    'ray_tasks{State="RUNNING", component="preprocess"': "4+0x240",
    'kuberay_job_deployment_status{name="train", deployment_status="Running"': "1+0x240",
    'kuberay_cluster_condition_provisioned{name="x", condition="true"': "1+0x240",
    'ray_node_gpus_utilization{ray_io_cluster="x"': "93+0x240",
    'kuberay_service_condition_ready{name="x", condition="true"': "1+0x240",
    'ray_serve_deployment_replica_healthy{ray_io_cluster="x", deployment="m"': "1+0x240",
    'ray_serve_num_http_error_requests_total{application="tomoray", error_code="422"': "0+1x240",
    'ray_serve_num_http_requests_total{application="tomoray"': "0+4x240",
    'ray_serve_http_request_latency_ms_bucket{application="tomoray", le="100000"': "0+9x240",
    'ray_serve_http_request_latency_ms_bucket{application="tomoray", le="+Inf"': "0+9x240",
    'ray_node_disk_usage{pod="x"': "40+0x240",
    'ray_node_disk_free{pod="x"': "60+0x240",
    'ray_node_mem_used{pod="x"': "60+0x240",
    'ray_node_mem_total{pod="x"': "100+0x240",
    'ray_node_manager_unexpected_worker_failure_total{ray_io_cluster="x"': "0+0x240",
}


def case(series: dict[str, str], query: str, value: int) -> dict[str, Any]:
    return {
        "interval": "1m",
        "input_series": [{"series": f"{name}, {HERE}}}", "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": query, "eval_time": "3h", "exp_samples": [{"labels": "{}", "value": value}]},
        ],
    }


def test_each_alert_goes_off_in_its_own_trouble_and_none_where_all_is_well(
    render: Callable[..., list[dict[str, Any]]], tool: Callable[..., Any], tmp_path: Path
) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("no promtool: apt-get install prometheus")
    (rule,) = [each for each in render("everything.yaml") if each["kind"] == "PrometheusRule"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]), encoding="utf-8")
    names = [each["alert"] for group in rule["spec"]["groups"] for each in group["rules"]]
    assert sorted(names) == sorted(HOURS_OF_TROUBLE)
    firing = 'count(ALERTS{{alertname=~"{}", alertstate="firing"}}) or vector(0)'
    cases = [case(series, firing.format(name), 1) for name, series in HOURS_OF_TROUBLE.items()]
    cases.append(case(ALL_IS_WELL, firing.format(".+"), 0))
    document = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": cases}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    done = tool("promtool", "test", "rules", tmp_path / "tests.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
