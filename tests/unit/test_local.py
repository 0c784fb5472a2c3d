from __future__ import annotations

import socket

import pytest

from cluster.local import local_ray
from tomoray.errors import Fatal


def test_cluster_that_is_not_there_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(Fatal, match=f"no Ray cluster at RAY_ADDRESS=127.0.0.1:{port}; start one"), local_ray():
        pytest.fail("there is no cluster")
