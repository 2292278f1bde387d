"""A rolling upgrade to a build that pretends to be the next release, and back for as long as that is possible."""

import cairn
import pytest
from cluster import ROOT, SLOW, Cluster, wait_until
from load import Load

NEXT = ROOT / "build" / "next" / "bin" / "cairnd"
QUICK = ("--balance-after", "500ms")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not NEXT.exists(), reason="there is no build/next; see tools/test")]


def restart(node, program):
    assert node.stop() == 0
    node.program = program
    node.start()
    node.wait_ready()


def release(cluster):
    with cairn.Client(cluster.endpoints, timeout=20) as client:
        return client.topology().release


@pytest.mark.timeout(300)
def test_one_node_after_the_other_with_no_error_and_the_new_release_at_the_end():
    with Cluster(3, arguments=QUICK) as cluster, Load(cluster.endpoints) as load:
        load.wait_for(50)
        for node in cluster.nodes[:2]:
            restart(node, NEXT)
            load.wait_for(50)
            assert release(cluster) == 1  # a mixed cluster does what both know
        restart(cluster.nodes[1], "cairnd")  # one thinks again: that is possible now
        load.wait_for(50)
        for node in cluster.nodes[1:]:
            restart(node, NEXT)
        wait_until(lambda: release(cluster) == 2, 20 * SLOW, "what is new is switched on")
        load.wait_for(50)
        load.stop()
        assert load.errors == []
        with cairn.Client(cluster.endpoints) as client:
            load.check(client)
        wait_until(lambda: all("release-raised" in n.log() for n in cluster.nodes), 20 * SLOW, "every store")
        victim = cluster.nodes[2]
        assert victim.stop() == 0
        victim.program = "cairnd"
        victim.start()
        assert victim.process.wait(20) == 3
        assert "form of release 2" in victim.log() and "one release at a time" in victim.log()


def test_an_old_node_does_not_join_a_cluster_that_has_moved_on():
    with Cluster(1, modules=("echo",), arguments=QUICK) as cluster:
        restart(cluster.nodes[0], NEXT)
        wait_until(lambda: release(cluster) == 2, 20 * SLOW, "one node has it")
        old = cluster.add("old")
        old.start()
        wait_until(lambda: "RELEASE_OLD" in old.log(), 20 * SLOW, "it is told why")


def test_nothing_moves_while_releases_differ():
    with Cluster(3, arguments=QUICK) as cluster:
        restart(cluster.nodes[0], NEXT)
        fourth = cluster.add("n4")
        fourth.program = NEXT
        fourth.start()
        fourth.wait_ready()
        with cairn.Client(cluster.endpoints, timeout=20) as client:
            load = client.topology()
            assert next(m for m in load.members if m.name == "n4").replicas == 0
            for node in cluster.nodes[1:3]:
                restart(node, NEXT)
            wait_until(lambda: next(m for m in client.topology().members if m.name == "n4").replicas >= 40, 40 * SLOW,
                       "all are of one release: n4 gets its share")
