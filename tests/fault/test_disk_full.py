"""A disk that fills up: commands are refused, reads go on, nothing is lost, and room helps at once."""

import os
import shutil
import subprocess
import tempfile

import cairn
import pytest
from cluster import SLOW, Cluster, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")


def put(number):
    return cairn.Command("echo", f"full-{number % 50}", "Put", os.urandom(150_000), id=f"full {number}")


@pytest.fixture
def small_disks():
    """Three nodes, each with a disk of 640 MiB; a compaction may need as much as there is of its own."""
    folder = tempfile.mkdtemp(prefix="cairn-full-")
    mounts = [os.path.join(folder, f"n{i + 1}") for i in range(3)]
    for mount in mounts:
        os.mkdir(mount)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=640m", "cairn-test", mount], check=True)
    cluster = Cluster(3, arguments=("--disk-reserve", "400MiB", "--memory", "16MiB"), folder=folder)
    try:
        with cluster:
            yield cluster, mounts
    finally:
        for mount in mounts:
            subprocess.run(["umount", "-l", mount], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def fill(client):
    """Until the cluster refuses. Gives what was acknowledged."""
    acknowledged = 0
    while True:
        try:
            client.dispatch(put(acknowledged), timeout=5 * SLOW)  # it asks again as long as that
            acknowledged += 1
        except cairn.CairnError as error:
            return acknowledged, error


def test_a_full_disk_refuses_commands_and_serves_reads(small_disks):
    cluster, mounts = small_disks
    with cairn.Client(cluster.endpoints, timeout=3) as client:
        acknowledged, error = fill(client)
        assert error.reason == "DISK_FULL", error
        assert acknowledged > 100
        assert all(node.process.poll() is None for node in cluster.nodes)
        for number in range(10):
            assert len(list(client.read(f"full-{number}"))) == len(range(number, acknowledged, 50))
        for mount in mounts:
            subprocess.run(["mount", "-o", "remount,size=2000m", mount], check=True)
        wait_until(lambda: fills(client, acknowledged), 20 * SLOW, "commands being taken again")
        total = sum(len(list(client.read(f"full-{n}"))) for n in range(50))
        assert total == acknowledged + 1


def fills(client, number):
    try:
        client.dispatch(put(number))
        return True
    except cairn.CairnError:
        return False
