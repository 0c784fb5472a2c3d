import pytest

from tomoray.config import make_config
from tomoray.errors import Usage
from tomoray.serving_config import ServeConfig


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
