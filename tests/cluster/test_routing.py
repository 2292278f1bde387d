"""Clients that go straight to the owner: the hop that is saved, and what happens when the owner moves or dies."""

import asyncio
import statistics
import subprocess
import time

import cairn
import pytest
from cluster import BIN, SLOW, wait_until
from load import put

pytestmark = pytest.mark.slow  # what it does at the nodes others do as well


def forwarded(cluster):
    return sum(n.metrics()["cairn_router_forwarded_total"] for n in cluster.nodes if n.process.poll() is None)


def at_home(view):
    return all(p.target and p.owner == p.target[0] for p in view.partitions)


def agrees(client):
    view = client.topology()
    addresses = {m.node_id: m.address for m in view.members}
    return client._router.table._owners == [addresses.get(p.owner) for p in view.partitions]


def knows_owners(client, cluster):
    client.dispatch(put("first"))
    wait_until(lambda: client._router.table.known, 10 * SLOW, "the topology is pushed")


def test_no_command_takes_a_second_hop_and_that_shows(three):
    with cairn.Client(three.endpoints, route=True) as smart, cairn.Client(three.endpoints, route=False) as plain:
        knows_owners(smart, three)
        wait_until(lambda: at_home(smart.topology()), 40 * SLOW, "every partition at its preferred owner", 0.2)
        wait_until(lambda: agrees(smart), 10 * SLOW, "the push of the last change")
        times = {smart: [], plain: []}
        hops = {}
        for client in (smart, plain):
            before = forwarded(three)
            for i in range(300):
                started = time.monotonic()
                client.dispatch(put(f"hop-{i}"))
                times[client].append(time.monotonic() - started)
            hops[client] = forwarded(three) - before
        print(f"hops: routed {hops[smart]:.0f}, to any node {hops[plain]:.0f} of 300; median "
              f"{statistics.median(times[smart]) * 1e6:.0f} and {statistics.median(times[plain]) * 1e6:.0f} us")
        assert hops[smart] <= 3 and hops[plain] > 100
        events = [len(list(smart.read(f"hop-{i}"))) for i in range(0, 300, 50)]
        assert events == [2] * 6


def test_the_owner_dies_and_the_client_goes_on(three):
    with cairn.Client(three.endpoints, timeout=20 * SLOW, try_timeout=0.5 * SLOW, route=True) as client:
        knows_owners(client, three)
        for i in range(50):
            client.dispatch(put(f"die-{i % 10}"))
        three.busiest().kill()
        for i in range(50):
            client.dispatch(put(f"die-{i % 10}"))
        assert [len(list(client.read(f"die-{i}"))) for i in range(10)] == [10] * 10


def test_ownership_moves_and_the_hint_follows(three):
    with cairn.Client(three.endpoints, timeout=20 * SLOW, route=True) as client:
        knows_owners(client, three)
        partition = client.dispatch(put("moves")).partition
        view = client.topology()
        target = next(m for m in view.members if m.node_id != view.partitions[partition].owner)
        client.transfer_ownership(partition, target.name)
        wait_until(lambda: client._router.table.owner_of("moves") == target.address, 20 * SLOW, "the push")
        before = forwarded(three)
        client.dispatch(put("moves"))
        assert forwarded(three) == before


def test_an_asyncio_client_routes_as_well(three):
    async def go():
        async with cairn.AsyncClient(three.endpoints, timeout=20 * SLOW, route=True) as client:
            await client.dispatch(put("first"))
            while not client._watcher.table.known:
                await asyncio.sleep(0.01)
            before = forwarded(three)
            await asyncio.gather(*(client.dispatch(put(f"a-{i % 20}")) for i in range(300)))
            assert forwarded(three) - before <= 3
            three.busiest().kill()
            await asyncio.gather(*(client.dispatch(put(f"a-{i % 20}")) for i in range(100)))
            events = [e async for e in client.read("a-0")]
            assert [e.sequence for e in events] == list(range(20))
    asyncio.run(go())


def test_the_c_client_routes_and_outlives_the_owner(three):
    with cairn.Client(three.endpoints) as client:
        wait_until(lambda: at_home(client.topology()), 40 * SLOW, "every partition at its preferred owner", 0.2)

    def send(*more):
        done = subprocess.run([BIN / "c-client", ",".join(three.endpoints), "300", *more], capture_output=True,
                              text=True, timeout=120 * SLOW)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)
    before = forwarded(three)
    routed = send("route")
    hops = forwarded(three) - before
    plain = send()
    print(f"C client: {hops:.0f} hops of 300; median {routed} us, through one node {plain} us")
    assert hops <= 3 and forwarded(three) - before - hops > 100
    process = subprocess.Popen([BIN / "c-client", ",".join(three.endpoints), "3000", "route"], stdout=subprocess.PIPE)
    busy = three.busiest()
    commands = busy.metrics()['cairn_commands_total{result="accepted"}']
    wait_until(lambda: busy.metrics()['cairn_commands_total{result="accepted"}'] > commands + 100, 20 * SLOW, "commands")
    busy.kill()
    assert process.wait(120) == 0
