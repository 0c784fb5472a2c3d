import re
from pathlib import Path

import pytest
import yaml

from tomoray.config import make_config
from tomoray.errors import Usage
from tomoray.serving_config import ServeConfig

DOCS = Path(__file__).parents[2] / "docs"


def test_a_run_is_short_for_a_model_of_so_many_replicas():
    config = make_config(ServeConfig, {"run": "out/run", "replicas": 3, "models": [{"source": "other"}]})
    assert [model.source for model in config.served] == ["out/run", "other"]
    assert (config.served[0].min_replicas, config.served[0].max_replicas) == (3, 3)


def test_refuses_to_serve_nothing():
    with pytest.raises(Usage, match="nothing to serve; wanted run or models"):
        make_config(ServeConfig, {})


def test_refuses_fewer_replicas_at_most_than_at_least():
    with pytest.raises(Usage, match="max_replicas 1 is less than min_replicas 2"):
        make_config(ServeConfig, {"models": [{"source": "run", "min_replicas": 2}]})


def test_a_misspelt_key_of_a_model_is_named():
    with pytest.raises(Usage, match=r"'models\.0\.bakend'"):
        make_config(ServeConfig, {"models": [{"source": "run", "bakend": "torch"}]})


@pytest.mark.parametrize("page", sorted(DOCS.glob("serving*.md")), ids=lambda page: page.name)
def test_every_config_shown_is_one(page):
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        shown = yaml.safe_load(block)
        for application in shown.get("applications", [{"args": shown}]):
            make_config(ServeConfig, application["args"])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"tls": {"certificate": "a.pem"}}, "TLS wants certificate and key"),
        ({"queue": {"url": "redis://queue"}}, "wants store"),
        ({"destinations": {"pacs": {"stow": "https://pacs", "files": "out"}}}, "one of stow, files and archive"),
        ({"limits": {"body_mb": 100, "bodies_mb": 10}}, "no body would ever fit"),
        ({"references": {"s3": ["/etc"]}}, "references.s3.0"),
    ],
)
def test_refuses_what_could_not_work(wrong, told):
    with pytest.raises(Usage, match=told):
        make_config(ServeConfig, {"run": "out/run", **wrong})
