"""Three real processes: forming, proxying, failover, restart, catch-up."""

import json
import signal
import threading
import time

import cairn
import pytest
from cluster import SLOW, Cluster, wait_until
from load import Load, put

AT = "2013-01-01T{:02}:{:02}:00Z"


def owner_of(cluster, aggregate):
    """The node that owns the aggregate, by asking for its partition."""
    with cairn.Client(cluster.endpoints) as client:
        partition = client.dispatch(put(aggregate)).partition
        topology = client.topology()
    owner = topology.partitions[partition].owner
    name = next(m.name for m in topology.members if m.node_id == owner)
    return next(n for n in cluster.nodes if n.name == name)



def test_three_nodes_found_one_cluster_and_share_the_partitions(three):
    ids = set()
    for node in three.nodes:
        with cairn.Client([node.endpoint]) as client:
            topology = client.topology()
        ids.add(topology.cluster_id)
        assert len(topology.members) == 3
        assert topology.partition_count == 64 and topology.hash == "XXH3_64bits"
    assert len(ids) == 1
    three.wait_balanced()


def test_the_system_partition_keeps_the_placement(three):
    def versions():
        return [n.metrics()["cairn_placement_version"] for n in three.nodes]

    wait_until(lambda: versions() == [1, 1, 1], 10 * SLOW, "the placement on every replica")
    with cairn.Client(three.endpoints) as client:
        client.update_settings(moves_at_once=3)
    wait_until(lambda: versions() == [2, 2, 2], 10 * SLOW, "the next one")
    for node in three.nodes:
        node.kill()
        node.start()
    for node in three.nodes:
        node.wait_ready()
    # Who was killed before it had written the newest one hears of it. Were it lost, they would begin at 1 again.
    wait_until(lambda: versions() == [2, 2, 2], 10 * SLOW, "what was kept")


def test_metrics_tell_membership_and_consensus(three):
    three.nodes[2].kill()
    for node in three.nodes[:2]:
        wait_until(lambda: node.metrics()["cairn_members_dead"] == 1, 60 * SLOW, "the death known")
        wait_until(lambda: node.metrics()["cairn_members_alive"] == 2, 20 * SLOW, "nobody else suspected")
        assert node.metrics()["cairn_raft_term_sum"] >= 2
    wait_until(lambda: sum(n.metrics()["cairn_raft_leading"] for n in three.nodes[:2]) == 65,
               20 * SLOW, "a leader for 64 partitions and the system's")
    wait_until(lambda: all(n.metrics()["cairn_raft_entries_unstored"] == 0 for n in three.nodes[:2]),
               20 * SLOW, "everything stored")


def test_any_node_takes_any_command(three):
    owner = owner_of(three, "other")
    for turn in range(3):
        for number, node in enumerate(three.nodes):
            with cairn.Client([node.endpoint]) as client:
                assert client.dispatch(put("other")).owner in ("", owner.endpoint)
                assert (client.dispatch(put("other")).owner == "") == (node is owner)
                outcome = client.dispatch(put("everywhere"))
                assert outcome.first_sequence == turn * 3 + number
                assert len(list(client.read("everywhere"))) == turn * 3 + number + 1


def test_a_read_after_a_write_waits_for_no_heartbeat(three):
    """A heartbeat comes every 100 ms; the replica that is asked must not need one."""
    with cairn.Client(three.endpoints) as writer:
        for node in three.nodes:
            with cairn.Client([node.endpoint]) as reader:
                times = []
                for number in range(21):
                    writer.dispatch(put(f"fresh-{number}"))
                    started = time.monotonic()
                    list(reader.read(f"fresh-{number}"))
                    times.append(time.monotonic() - started)
                assert sorted(times)[10] < 0.04 * SLOW


def test_a_repeat_through_another_node_gets_the_recorded_outcome(three):
    command = put("once", {"n": 1})
    outcomes = []
    for node in three.nodes * 2:
        with cairn.Client([node.endpoint]) as client:
            outcomes.append(client.dispatch(command))
    assert len(set(outcomes)) == 1
    with cairn.Client(three.endpoints) as client:
        assert len(list(client.read("once"))) == 1


def test_kill_9_of_an_owner_loses_nothing(three):
    with Load(three.endpoints) as load:
        load.wait_for(200)
        victim = three.busiest()
        victim.kill()
        load.wait_for(400)
        victim.start()
        victim.wait_ready()
        load.wait_for(200)
    assert load.errors == []
    for node in three.nodes:
        with cairn.Client([node.endpoint]) as client:
            load.check(client)


def test_dedupe_survives_the_owners_death(three):
    command = put("dedupe", {"n": 1})
    with cairn.Client(three.endpoints) as client:
        before = client.dispatch(command)
        owner_of(three, "dedupe").kill()
        assert client.dispatch(command, timeout=20) == before
        assert len(list(client.read("dedupe"))) == 2  # owner_of put one


def test_a_hung_owner_is_replaced_and_its_old_work_refused(three):
    victim = owner_of(three, "hung")
    others = [n.endpoint for n in three.nodes if n is not victim]
    with cairn.Client(others, try_timeout=1.0) as client:
        victim.signal(signal.SIGSTOP)
        started = time.monotonic()
        for number in range(20):
            client.dispatch(put("hung", {"n": number}), timeout=20)
        assert time.monotonic() - started < 10 * SLOW
        victim.signal(signal.SIGCONT)
        with cairn.Client([victim.endpoint]) as old:
            wait_until(lambda: len(list(old.read("hung"))) == 21, 20 * SLOW, "the old owner's sight")
            old.dispatch(put("hung", {"n": 20}))
        assert [e.sequence for e in client.read("hung")] == list(range(22))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_without_a_majority_a_node_is_not_serving(three, number):
    left, *others = three.nodes
    for node in others:
        node.signal(number)
    wait_until(lambda: not left.is_ready(), 20 * SLOW, "NOT_SERVING")
    with cairn.Client([left.endpoint], try_timeout=1.0) as client:
        with pytest.raises(cairn.Unavailable):
            client.dispatch(put("minority"), timeout=2.0)
    for node in others:
        if number == signal.SIGSTOP:
            node.signal(signal.SIGCONT)
        else:
            node.process.wait()
            node.start()
    left.wait_ready(20)


def test_a_node_stopped_under_load_costs_no_error(three):
    with Load(three.endpoints) as load:
        load.wait_for(200)
        node = three.busiest()
        assert node.stop() == 0
        load.wait_for(200)
        node.start()
        node.wait_ready()
        load.wait_for(100)
    assert load.errors == []
    with cairn.Client(three.endpoints) as client:
        load.check(client)


def test_all_nodes_killed_at_once_lose_nothing(three):
    with Load(three.endpoints) as load:
        load.wait_for(300)
    for node in three.nodes:
        node.kill()
    three.start()
    with cairn.Client(three.endpoints) as client:
        load.check(client)


@pytest.mark.slow
def test_a_node_that_missed_more_than_the_log_catches_up():
    """One partition, so that its log is trimmed past what the sleeping node has."""
    with Cluster(3, arguments=("--partitions", "1")) as three:
        sleeper = next(n for n in three.nodes if n is not owner_of(three, "bulk"))
        sleeper.kill()
        others = [n.endpoint for n in three.nodes if n is not sleeper]

        async def play():
            import asyncio

            async with cairn.AsyncClient(others) as client:
                gate = asyncio.Semaphore(64)

                async def one(number):
                    async with gate:
                        await client.dispatch(put(f"bulk-{number % 50}", "x" * 2000), timeout=60)

                await asyncio.gather(*(one(n) for n in range(20000)))

        import asyncio

        asyncio.run(play())
        sleeper.start()
        sleeper.wait_ready()
        with cairn.Client([sleeper.endpoint]) as client:
            wait_until(lambda: len(list(client.read("bulk-7", stale=False, timeout=60))) == 400,
                       60, "catching up", 0.5)
        assert sleeper.metrics()["cairn_partition_ranges_installed_total"] >= 1


def test_a_node_with_an_emptied_disk_is_refused(three):
    import shutil

    node = three.nodes[1]
    node.kill()
    shutil.rmtree(node.folder)
    node.start()
    assert node.process.wait(15 * SLOW) == 3
    assert "IDENTITY_LOST" in node.log()


def test_a_node_of_another_cluster_is_refused(three):
    with Cluster(1) as stranger:
        node = stranger.nodes[0]
        node.stop()
        node.arguments += ["--join", three.nodes[0].endpoint]
        node.start()
        node.wait_ready()
        wait_until(lambda: "belongs to cluster" in node.log(), 10 * SLOW, "the refusal")
        with cairn.Client([three.nodes[0].endpoint]) as client:
            assert len(client.topology().members) == 3


def test_a_graceful_stop_leaves_nothing_behind(three):
    with cairn.Client(three.endpoints) as client:
        for number in range(50):
            client.dispatch(put(f"bye-{number}"))
    codes = [node.stop(40) for node in three.nodes]
    logs = "".join(node.log() for node in three.nodes)
    assert codes == [0, 0, 0], logs[-3000:]
    assert "ERROR: " not in logs


def test_a_node_without_a_replica_reads_through_one_that_has():
    with Cluster(5) as five, cairn.Client(five.endpoints) as client:
        names = [f"far-{n}" for n in range(20)]
        for name in names:
            for number in range(3):
                client.dispatch(put(name, {"n": number}))
        client.append("echo", "far-long", [cairn.NewEvent("E", "x" * 1000)] * 1000)
        def seen(reader, name):
            try:
                return [e.sequence for e in reader.read(name, stale=True)]
            except cairn.NotFound:  # a replica may be behind
                return []

        for node in five.nodes:
            with cairn.Client([node.endpoint]) as here:
                for name in names:
                    assert [e.sequence for e in here.read(name)] == [0, 1, 2]
                    wait_until(lambda: seen(here, name) == [0, 1, 2], 10 * SLOW, "all events")
        for node in five.nodes:
            with cairn.Client([node.endpoint]) as here:
                assert len(list(here.read("far-long"))) == 1000
                assert [e.sequence for e in here.read("far-long", backwards=True, limit=2)] \
                    == [999, 998]
                for number in range(10):
                    with pytest.raises(cairn.NotFound) as error:
                        list(here.read(f"nothing-{number}"))
                    assert error.value.reason == "AGGREGATE_NOT_FOUND"
        owner = owner_of(five, "far-0")
        owner.kill()
        for node in five.nodes:
            if node is not owner:
                with cairn.Client([node.endpoint]) as here:
                    assert len(list(here.read("far-0", timeout=20 * SLOW))) == 4
