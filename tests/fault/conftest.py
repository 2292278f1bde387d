"""Faults that need root: mounts and network namespaces of the test's own."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "support"))


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: sanitizers leave it out, what it adds to another test is time")
