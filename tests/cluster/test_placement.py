"""Real processes that join, leave, are replaced and removed, while commands keep coming."""

import shutil
import time

import cairn
import pytest
from cluster import SLOW, Cluster, wait_until
from load import Load

QUICK = ("--balance-after", "500ms", "--member-grace", "2s")


def topology(cluster):
    with cairn.Client([n.endpoint for n in cluster.nodes if n.process and n.process.poll() is None]) as client:
        return client.topology()


def member(view, name):
    return next(m for m in view.members if m.name == name and m.placement != 3)


def is_settled(view):
    """Everything is held by who should hold it, and owned."""
    return all(p.owner != 0 and set(p.replicas) == set(p.target) and not p.standbys
               for p in [*view.partitions, view.system_partition])


def ordered(view):
    """What an order could change; who of its replicas owns a partition is balanced meanwhile."""
    return (view.replication_factor, str(view.settings), sorted((m.node_id, m.placement) for m in view.members),
            [set(p.target) for p in view.partitions])


def wait_settled(cluster, names, timeout=60, width=3):
    """Until these members hold everything in equal shares, and own it in equal shares."""
    def done():
        view = topology(cluster)
        ids = {m.node_id for m in view.members if m.name in names and m.placement == 1}
        replicas = [sum(i in p.replicas for p in view.partitions) for i in ids]
        owned = [sum(i == p.owner for p in view.partitions) for i in ids]
        share = len(view.partitions) * min(width, len(names)) / len(names)
        own_share = len(view.partitions) / len(names)
        return (len(ids) == len(names) and is_settled(view)
                and {r for p in view.partitions for r in p.replicas} <= ids
                and max(replicas) <= 1.15 * share and max(owned) <= 1.15 * own_share + 1 and view)
    try:
        return wait_until(done, timeout * SLOW, f"{names} hold everything", 0.2)
    except TimeoutError as error:
        view = topology(cluster)
        raise TimeoutError(f"{error}: {[(m.name, m.status, m.placement, m.replicas, m.owned) for m in view.members]}, "
                           f"{[(p.id, list(p.replicas), list(p.target)) for p in view.partitions][:5]}") from None


def leave(cluster, client, node):
    """Drain a node for good, remove and stop it."""
    client.drain_node(node.name)
    wait_until(lambda: member(topology(cluster), node.name).replicas == 0, 60 * SLOW, f"{node.name} is drained", 0.1)
    client.remove_node(node.name)
    assert node.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_growing_and_shrinking_shows_no_client_an_error():
    with Cluster(1, arguments=QUICK) as cluster:
        first = cluster.nodes[0]
        with Load([first.endpoint]) as load, cairn.Client([first.endpoint], timeout=20 * SLOW) as client:
            load.wait_for(50)
            for count in (3, 5, 7):
                while len(cluster.nodes) < count:
                    cluster.add(f"n{len(cluster.nodes) + 1}").start()
                names = [n.name for n in cluster.nodes]
                began = time.monotonic()
                wait_settled(cluster, names)
                print(f"{count} nodes after {time.monotonic() - began:.1f} s")
                load.wait_for(100)
            for node in cluster.nodes[:2:-1]:
                leave(cluster, client, node)
            wait_settled(cluster, ["n1", "n2", "n3"])
            load.wait_for(100)
        assert load.errors == []
        with cairn.Client([n.endpoint for n in cluster.nodes[:3]]) as client:
            load.check(client)
        slow = sorted(took for _, took in load.stalls)
        rank = max(1, load.total // 1000)
        print(f"{load.total} commands, {len(slow)} over 50 ms, longest {load.longest:.3f} s, "
              f"p99.9 of all {slow[-rank] if len(slow) >= rank else 0.05:.3f} s or less")
        assert load.longest < 5 * SLOW


def test_a_dead_nodes_replicas_are_made_anew_and_it_is_removed():
    with Cluster(4, arguments=QUICK) as cluster, Load(cluster.endpoints[:2]) as load:
        wait_settled(cluster, ["n1", "n2", "n3", "n4"])
        load.wait_for(50)
        cluster.nodes[3].kill()

        def healed():
            view = topology(cluster)
            dead = member(view, "n4").node_id
            return is_settled(view) and all(dead not in p.replicas for p in view.partitions)
        wait_until(healed, 60 * SLOW, "three hold everything", 0.2)
        with cairn.Client(cluster.endpoints[:3], timeout=20) as client:
            client.remove_node("n4")
            load.wait_for(50)
        cluster.nodes[3].start()
        wait_until(lambda: "REMOVED" in cluster.nodes[3].log(), 20 * SLOW, "it is told that it was removed")
        assert load.errors == []


@pytest.mark.slow
def test_an_empty_disk_takes_a_dead_members_place():
    with Cluster(3, arguments=QUICK) as cluster, Load(cluster.endpoints[:2]) as load:
        load.wait_for(50)
        lost = cluster.nodes[2]
        lost.kill()
        shutil.rmtree(lost.folder)
        heir = cluster.add("n3", "--replace", "n3", like=0)
        cluster.nodes.remove(heir)

        heir.start()  # refused as long as the others think that the old one lives
        wait_until(lambda: "MEMBER_ALIVE" in heir.log() or heir.is_ready(), 20 * SLOW, "an answer")

        def replaced():
            view = topology(cluster)
            return is_settled(view) and any(m.name == "n3" and m.placement == 1 and m.replicas == 64
                                            for m in view.members)
        wait_until(replaced, 90 * SLOW, "the new n3 holds everything", 0.3)
        heir.wait_ready()
        load.wait_for(50)
        assert load.errors == []
        assert heir.stop() == 0


@pytest.mark.slow
def test_ownership_of_one_partition_is_transferred(three):
    with cairn.Client(three.endpoints, timeout=20) as client:
        view = client.topology()
        partition = view.partitions[7]
        target = next(m for m in view.members if m.node_id != partition.owner)
        client.transfer_ownership(7, target.name)
        wait_until(lambda: client.topology().partitions[7].owner == target.node_id, 20 * SLOW, "the transfer")


@pytest.mark.slow
def test_a_drain_is_taken_back(three):
    with cairn.Client(three.endpoints, timeout=20) as client:
        client.drain_node("n2", force=True)
        wait_until(lambda: member(client.topology(), "n2").owned == 0, 20 * SLOW, "n2 owns nothing")
        client.undrain_node("n2")
        wait_settled(three, ["n1", "n2", "n3"])


@pytest.mark.slow
def test_a_lower_replication_factor_drops_replicas_and_a_higher_one_makes_them(three):
    with cairn.Client(three.endpoints, timeout=20) as client:
        client.update_settings(replication_factor=1)
        wait_until(lambda: is_settled(client.topology()) and
                   all(len(p.replicas) == 1 for p in client.topology().partitions), 30 * SLOW, "one replica each")
        client.update_settings(replication_factor=5)  # more than there are members: degraded
        wait_until(lambda: is_settled(client.topology()) and
                   all(len(p.replicas) == 3 for p in client.topology().partitions), 60 * SLOW, "three replicas each")
        assert client.topology().replication_factor == 5


@pytest.mark.parametrize("order, reason", [
    (lambda c: c.drain_node("n9"), "MEMBER_UNKNOWN"),
    (lambda c: c.drain_node(""), "NODE_INVALID"),
    (lambda c: c.drain_node("x" * 64), "NODE_INVALID"),
    (lambda c: c.drain_node("n1"), "REDUNDANCY"),
    (lambda c: c.remove_node("n2"), "MEMBER_ALIVE"),
    (lambda c: c.remove_node("ffffffffffffffff"), "MEMBER_UNKNOWN"),
    (lambda c: c.transfer_ownership(64, "n2"), "PARTITION_UNKNOWN"),
    (lambda c: c.update_settings(replication_factor=0), "SETTING_INVALID"),
    (lambda c: c.update_settings(replication_factor=6), "SETTING_INVALID"),
    (lambda c: c.update_settings(moves_at_once=0), "SETTING_INVALID"),
])
def test_an_order_that_would_lose_something_is_refused_and_changes_nothing(shared_three, order, reason):
    for node in shared_three.nodes:
        with cairn.Client([node.endpoint], timeout=10) as client:
            # Ready is who can serve; the first placement may come a moment later.
            wait_until(lambda: client.topology().settings.moves_at_once > 0, 20 * SLOW, "the node knows the placement", 0.1)
            before = ordered(client.topology())
            with pytest.raises(cairn.CairnError) as refused:
                order(client)
            assert refused.value.reason == reason
            assert ordered(client.topology()) == before


def test_a_node_with_another_partition_count_takes_the_cluster_s():
    with Cluster(1, modules=("echo",), arguments=QUICK) as cluster:
        other = cluster.add("n2", "--partitions", "32")
        other.start()
        wait_until(lambda: "setting-ignored" in other.log() and "founded with 64" in other.log(), 20 * SLOW, "it says so")
        other.wait_ready()
        assert len(topology(cluster).partitions) == 64


def test_the_last_member_is_not_drained(one):
    with cairn.Client(one.endpoints, timeout=10) as client, pytest.raises(cairn.CairnError) as refused:
        client.drain_node("n1", force=True)
    assert refused.value.reason == "LAST_MEMBER"


def test_two_nodes_with_one_name_are_not_both_members(shared_three):
    twin = shared_three.add("n2")
    shared_three.nodes.remove(twin)
    twin.start()
    wait_until(lambda: "IDENTITY_LOST" in twin.log(), 20 * SLOW, "it is told that the name is taken")
    twin.process.wait(20 * SLOW)
    assert twin.process.returncode == 3


@pytest.mark.slow
def test_a_live_members_place_is_not_taken(shared_three):
    heir = shared_three.add("n8", "--replace", "n2")
    shared_three.nodes.remove(heir)
    heir.start()
    wait_until(lambda: "MEMBER_ALIVE" in heir.log(), 20 * SLOW, "it is told that n2 is alive")
    heir.kill()


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.parametrize("step", ["gets a standby", "replica-joins", "gets a voter", "loses a replica"])
def test_a_node_that_dies_at_a_step_of_a_move_loses_nothing(step):
    """kill -9 of whoever comes to the step first, while a node leaves and another takes its place."""
    with Cluster(4, arguments=QUICK) as cluster, Load(cluster.endpoints) as load:
        wait_settled(cluster, ["n1", "n2", "n3", "n4"])
        load.wait_for(50)
        seen = {n.name: len(n.log()) for n in cluster.nodes}
        with cairn.Client(cluster.endpoints, timeout=30 * SLOW, try_timeout=1) as client:
            client.drain_node("n4")
        victim = wait_until(lambda: next((n for n in cluster.nodes if step in n.log()[seen[n.name]:]), None),
                            30 * SLOW, step, 0.002)
        victim.kill()
        load.wait_for(50)
        victim.start()
        if victim.name != "n4":  # which is drained, and serves nobody any more
            victim.wait_ready()
        wait_settled(cluster, ["n1", "n2", "n3"], 90)
        load.wait_for(50)
        load.stop()
        assert load.errors == []
        with cairn.Client(cluster.endpoints[:3]) as client:
            load.check(client)


@pytest.mark.slow
def test_the_owner_of_the_placement_dies_in_the_middle_of_a_plan():
    with Cluster(3, arguments=QUICK) as cluster, Load(cluster.endpoints) as load:
        for name in ("n4", "n5"):
            cluster.add(name).start()
        view = wait_until(lambda: next((v for v in [topology(cluster)] if v.placement_version > 4 and
                                        not is_settled(v)), None), 30 * SLOW, "a plan is under way", 0.02)
        owner = next(m.name for m in view.members if m.node_id == view.system_partition.owner)
        victim = next(n for n in cluster.nodes if n.name == owner)
        victim.kill()
        load.wait_for(50)
        victim.start()
        wait_settled(cluster, ["n1", "n2", "n3", "n4", "n5"], 90)
        assert load.errors == []


@pytest.mark.slow
def test_a_move_keeps_to_its_limit_and_memory_stays_flat():
    """What a new node takes in a second is what is allowed, within a tenth, and others' commands stay quick."""
    limit = 4 << 20
    with Cluster(1, arguments=("--partitions", "8", "--replication-factor", "1",
                               "--transfer-limit", "4MiB", *QUICK)) as cluster:
        first = cluster.nodes[0]
        with cairn.Client([first.endpoint], timeout=20 * SLOW) as client:
            for i in range(640):
                client.dispatch(cairn.Command("echo", f"big-{i}", "Put", {"x": "ab" * 40000}))
            second = cluster.add("n2")
            second.start()
            second.wait_ready()

            def taken():
                return second.metrics()["cairn_partition_range_bytes_total"]
            wait_until(lambda: taken() > limit / 2, 30 * SLOW, "the first range comes", 0.01)
            began, before = time.monotonic(), taken()
            slowest = 0.0
            while time.monotonic() - began < 4:
                started = time.monotonic()
                client.dispatch(cairn.Command("echo", "small", "Put", "x"))
                slowest = max(slowest, time.monotonic() - started)
            rate = (taken() - before) / (time.monotonic() - began)
            print(f"{rate / limit:.3f} of the limit; slowest command {slowest * 1000:.0f} ms")
            assert rate <= 1.1 * limit
            assert rate >= 0.9 * limit / SLOW
            view = wait_settled(cluster, ["n1", "n2"], 60, width=1)
            assert sorted(m.replicas for m in view.members) == [4, 4]
