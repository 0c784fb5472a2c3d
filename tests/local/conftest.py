import pytest

from cluster.local import local_ray


@pytest.fixture(scope="session")
def ray_local():
    """One Ray cluster on this machine for the whole run; its four CPUs are logical."""
    with local_ray(num_cpus=4):
        yield
