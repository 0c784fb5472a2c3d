import socket
import urllib.request

from jobs.telemetry import Telemetry


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_counts_can_be_scraped_while_a_run_lasts_and_the_port_is_free_after_it():
    port = free_port()
    for _ in range(2):  # the second would find the port taken
        with Telemetry(port) as telemetry:
            telemetry.count("stored")
            telemetry.count("stored")
            telemetry.count("refused")
            telemetry.add_bytes(100, 400)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
                lines = reply.read().decode().splitlines()
    assert 'tomoray_preprocess_series_total{outcome="stored"} 2.0' in lines
    assert 'tomoray_preprocess_series_total{outcome="refused"} 1.0' in lines
    assert 'tomoray_preprocess_bytes_total{of="voxels"} 400.0' in lines


def test_without_a_port_nothing_listens():
    with Telemetry(None) as telemetry:
        telemetry.count("failed")
