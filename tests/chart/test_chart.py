"""The chart as Helm sees it: linted, packaged, rendered from many values, and refusing wrong ones."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from ray.serve.schema import ServeDeploySchema

from cluster import cli
from tomoray.config import PreprocessConfig
from tomoray.serving_config import ServeConfig

CHART = Path(__file__).parents[2] / "helm" / "tomoray"
SHIPPED = ("values.yaml", "values-laptop.yaml", "values-eks-gpu.yaml", "values-airgapped.yaml")
VALUES = (*SHIPPED, "everything.yaml", "once.yaml")
GATES = ("RayCronJob", "RayClusterMTLS", "GCSFaultToleranceEmbeddedStorage")
OTHER_KINDS = yaml.safe_load((Path(__file__).parent / "other_kinds.yaml").read_text(encoding="utf-8"))
Render = Callable[..., list[dict[str, Any]]]


def test_lint_finds_nothing(tool: Callable[..., Any]) -> None:
    for name in SHIPPED:
        done = tool("helm", "lint", "--strict", CHART, "--values", CHART / name)
        assert done.returncode == 0, done.stdout
        assert "[WARNING]" not in done.stdout


def test_package_holds_what_the_chart_needs(tool: Callable[..., Any], tmp_path: Path) -> None:
    done = tool("helm", "package", CHART, "--destination", tmp_path)
    assert done.returncode == 0, done.stderr
    shown = tool("helm", "template", "x", next(tmp_path.glob("*.tgz")), "--set", "monitoring.dashboards.enabled=true")
    assert "tomoray-ingest.json: |" in shown.stdout


@pytest.mark.parametrize("values", VALUES)
def test_an_api_server_and_the_operators_would_take_everything(
    values: str, render: Render, kubernetes_errors: Callable[..., list[str]]
) -> None:
    for manifest in render(values):
        kind = f"{manifest['apiVersion']} {manifest['kind']}"
        if kind in OTHER_KINDS:
            spec = {"type": "object", "additionalProperties": False, **OTHER_KINDS[kind]}
            jsonschema.Draft202012Validator(spec).validate(manifest["spec"])
        else:
            assert kubernetes_errors(manifest, gates=GATES) == [], f"{kind} {manifest['metadata']['name']}"


@pytest.mark.parametrize("values", VALUES)
def test_nothing_is_rendered_twice_and_all_of_it_says_whose_it_is(values: str, render: Render) -> None:
    manifests = render(values)
    names = [(each["kind"], each["metadata"]["name"]) for each in manifests]
    assert len(set(names)) == len(names)
    for each in manifests:
        labels = each["metadata"]["labels"]
        assert (labels["app.kubernetes.io/part-of"], labels["app.kubernetes.io/managed-by"]) == ("tomoray", "Helm")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--set=servng.enabled=true", "additional properties 'servng' not allowed"),
        ("--set=serving.kind=Pod", "'/serving/kind': value must be one of 'RayService', 'Deployment'"),
        ("--set=serving.enabled=true", "'/serving/config': missing property 'run'"),
        ("--set=serving.enabled=true,serving.config.run=x", "serving: without auth the server answers nobody"),
        ("--set=serving.enabled=true,serving.config.run=x,serving.tokens.secretName=t", "pods need one queue"),
        (
            "--set=serving.enabled=true,serving.config.run=x,serving.tokens.secretName=t,redis.enabled=true",
            "serving.config.queue.store is wanted",
        ),
        ("--set=preprocess.enabled=true", "'/preprocess/config': missing properties 'sources', 'archive'"),
        ("--set=preprocess.schedule=nightly", "'/preprocess/schedule': 'nightly' does not match pattern"),
        ("--set=image.digest=sha256:abc", "'/image/digest'"),
        ("--set=ray.version=2.51.0", "'/ray/version'"),
        ("--set=ray.drainSeconds=-1", "'/ray/drainSeconds': minimum: got -1, want 0"),
        ("--set=pods.runAsUser=0", "'/pods/runAsUser': minimum: got 0, want 1"),
        ("--set=redis.image.tag=latest", "'/redis/image/tag': 'not' failed"),
        ("--set=networkPolicies.storage.cidrs={s3.example}", "'/networkPolicies/storage/cidrs/0'"),
        ("--set=interactive.workers.cpu.resources.limits=null", "missing property 'limits'"),
        ("--set=interactive.workers.Gpu.maxReplicas=1", "propertyName"),
        ("--set=ray.faultTolerance.backend=redis", "backend is redis and there is none: turn on redis.enabled"),
        ("--set=ray.drainSeconds=120", "ray.terminationGraceSeconds is 90, which is no longer than ray.drainSeconds"),
    ],
)
def test_wrong_values_are_refused_in_words(flags: str, told: str, tool: Callable[..., Any]) -> None:
    done = tool("helm", "template", "x", CHART, flags, "--set", "interactive.enabled=true")
    assert done.returncode != 0
    assert told in done.stderr


def leaves(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all values, of mappings themselves too."""
    for key, value in values.items() if isinstance(values, dict) else ():
        yield (*path, key)
        yield from leaves(value, (*path, key))


def own_leaves() -> Iterator[tuple[str, ...]]:
    """Those of them that are the chart's to explain, not keys of Kubernetes' own."""
    free = {"resources", "labels", "annotations", "quota", "hard", "default", "defaultRequest", "secrets"}
    for path in leaves(yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))):
        if not free & set(path[:-1]):
            yield path


def comments() -> dict[tuple[str, ...], str]:
    """What stands above each value in values.yaml."""
    found: dict[tuple[str, ...], str] = {}
    path: list[str] = []
    above: list[str] = []
    for line in (CHART / "values.yaml").read_text(encoding="utf-8").splitlines():
        if match := re.match(r" *# (.*)$", line):
            above.append(match[1])
            continue
        if match := re.match(r"( *)([\w./-]+):", line):
            path = [*path[: len(match[1]) // 2], match[2]]
            if above:
                found[tuple(path)] = " ".join(above)
        above = []
    return found


def schema_of(path: tuple[str, ...]) -> dict[str, Any]:
    """The part of values.schema.json that a value must satisfy."""
    schema = whole = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    for key in path:
        schema = schema.get("properties", {}).get(key) or schema["additionalProperties"]
        while "$ref" in schema:
            schema = whole["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def test_every_value_is_in_the_schema() -> None:
    for path in leaves(yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))):
        schema = schema_of(path)
        assert {"type", "enum", "properties"} & schema.keys(), path


def test_every_value_is_commented_and_the_schema_says_the_same() -> None:
    told = comments()
    for path in own_leaves():
        assert path in told, f"no comment: {'.'.join(path)}"
    document = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    for path, comment in told.items():
        schema = document
        for key in path:
            schema = schema.get("properties", {}).get(key, {})
        assert not schema or schema["description"] == comment, ".".join(path)


def test_every_value_is_used_in_a_template() -> None:
    templates = "\n".join(path.read_text(encoding="utf-8") for path in CHART.glob("templates/**/*") if path.is_file())
    for path in own_leaves():
        by_name = path[0] in {"serviceAccounts", "priorityClasses"} or path[-2:-1] in {("workers",), ("flavors",)}
        assert by_name or re.search(rf"\.{re.escape(path[-1])}\b", templates), ".".join(path)


def test_configs_of_jobs_and_endpoints_are_what_tomoray_reads(render: Render) -> None:
    for values in VALUES:
        for manifest in render(values):
            if "preprocess.yaml" in manifest.get("data", {}):
                PreprocessConfig.model_validate(yaml.safe_load(manifest["data"]["preprocess.yaml"]))
            serve = manifest.get("data", {}).get("serve.yaml") or manifest.get("spec", {}).get("serveConfigV2")
            if serve:
                ServeDeploySchema.model_validate(yaml.safe_load(serve))
                (application,) = yaml.safe_load(serve)["applications"]
                ServeConfig.model_validate(application["args"])


def parse(command: Any, words: list[str]) -> None:
    """Raises where the command line would not take the words."""
    if hasattr(command, "commands"):
        parse(command.commands[words[0]], words[1:])
    else:
        command.make_context(command.name, words)


def test_notes_say_what_to_do_next(tool: Callable[..., Any]) -> None:
    def notes(*flags: str | Path) -> str:
        done = tool("helm", "install", "tomoray", CHART, "--namespace", "tomoray", "--dry-run=client", *flags)
        assert done.returncode == 0, done.stderr
        return str(done.stdout.partition("NOTES:")[2])

    assert "Nothing of Ray runs yet" in notes()
    assert "service/tomoray-interactive-head-svc" in notes("--set", "interactive.enabled=true")
    eks = notes("--values", CHART / "values-eks-gpu.yaml")
    assert "feature gates on: RayCronJob" in eks
    assert "create secret generic tomoray-redis" in eks
    assert "service/tomoray-serving-serve-svc 8000" in eks
    assert "create secret" not in notes("--values", CHART / "values-airgapped.yaml")
    commands = typer.main.get_command(cli.app)
    shown = re.findall(r"^    tomoray (.*)$", eks, flags=re.MULTILINE)
    assert [line.split()[0] for line in shown] == ["token", "cluster", "cluster", "submit"]
    for line in shown:
        parse(commands, shlex.split(line))


def documented() -> list[list[str]]:
    """The commands with `helm` in docs/helm.md that name the chart."""
    page = (CHART.parents[1] / "docs" / "helm.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```sh\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    return [shlex.split(line) for line in code.splitlines() if re.match(r"helm \w+ .*helm/tomoray", line)]


@pytest.mark.parametrize("command", documented(), ids=" ".join)
def test_commands_of_the_docs_do_what_they_say(command: list[str], tool: Callable[..., Any], tmp_path: Path) -> None:
    name, action, *flags = command
    if action == "package":
        flags[flags.index("--destination") + 1] = str(tmp_path)
        assert tool(name, action, *flags).returncode == 0
        return
    if "--reuse-values" in flags:
        flags[flags.index("--reuse-values")] = f"--values={CHART / 'values-eks-gpu.yaml'}"
    flags = [flag for flag in flags if flag != "--create-namespace"]
    done = tool(name, "template", *flags)
    assert done.returncode == 0, done.stderr
    for flag in flags:
        if "=" in flag and not flag.startswith("--"):
            assert flag.rpartition("=")[2] in done.stdout


def test_docs_count_alerts_and_quote_refusals_as_they_are(render: Render, tool: Callable[..., Any]) -> None:
    page = (CHART.parents[1] / "docs" / "helm.md").read_text(encoding="utf-8")
    (rule,) = [each for each in render("everything.yaml") if each["kind"] == "PrometheusRule"]
    assert f"{sum(len(group['rules']) for group in rule['spec']['groups'])} alerts" in page
    assert (
        tool("helm", "template", "x", CHART, "--set=serving.kind=Pod")
        .stderr.strip()
        .endswith(re.findall(r"^- at .*$", page, flags=re.MULTILINE)[0])
    )
