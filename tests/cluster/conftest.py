"""Fixtures: a cluster for each test that changes it, one shared node for those that don't."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "support"))

import cairn.client  # noqa: E402
from cluster import Cluster  # noqa: E402

cairn.client.ROUTE = False  # most tests are about what the nodes do; test_routing.py is about the clients


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: sanitizers leave it out, what it adds to another test is time")


@pytest.fixture
def three():
    with Cluster(3) as cluster:
        yield cluster


@pytest.fixture
def three_without_modules():
    with Cluster(3, modules=()) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def one():
    with Cluster(1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def shared_three():
    with Cluster(3) as cluster:
        yield cluster
