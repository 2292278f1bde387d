"""What events carry: identity, revision and origin, from the command through the log to every consumer."""

import asyncio
import json
import threading

import cairn
import grpc
import pytest
from cairn.v1 import event_pb2, event_pb2_grpc
from cluster import SLOW, Cluster, wait_until

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ORIGIN = cairn.Origin("conversation-1", "event-before", TRACE, "vendor=1")


@pytest.fixture(scope="module")
def three():
    with Cluster(3) as cluster:
        yield cluster


@pytest.fixture
def client(three):
    with cairn.Client(three.endpoints, timeout=60 * SLOW, try_timeout=5 * SLOW) as client:
        yield client


def put(client, key, **more):
    return client.dispatch(cairn.Command("echo", key, "Put", {"n": 1}, **more))


def check(event, command_id):
    assert event.origin == ORIGIN
    assert event.command_id == command_id
    assert event.metadata == {"tenant": "blue"}
    assert event.id == f"{event.partition:x}.{event.position:x}"
    assert event.time is not None


def test_from_the_command_to_every_reader(three, client):
    put(client, "carried", id="carried-1", origin=ORIGIN, metadata={"tenant": "blue"})
    check(next(client.read("carried")), "carried-1")
    mine = cairn.Filter(aggregate_id_prefixes=["carried"])
    check(next(client.read_all(filter=mine)), "carried-1")
    with client.subscribe(filter=mine) as subscription:
        check(next(iter(subscription)), "carried-1")
    seen = []
    processor = client.processor("carries", seen.append, filter=mine)
    thread = threading.Thread(target=processor.run, daemon=True)
    thread.start()
    wait_until(lambda: seen, 20 * SLOW, "a delivery")
    processor.stop()
    thread.join()
    check(seen[0], "carried-1")


def test_ids_and_revisions_of_appended_events(client):
    outcome = client.append("plain", "appended", [
        cairn.NewEvent("A", {"x": 1}, id="axon-17", revision=3, metadata={"own": "1"}), cairn.NewEvent("B", {"x": 2})],
        command_id="append-ids", origin=ORIGIN)
    first, second = client.read("appended")
    assert (first.id, first.revision, first.metadata, first.origin) == ("axon-17", 3, {"own": "1"}, ORIGIN)
    assert (second.id, second.revision) == (f"{outcome.partition:x}.{second.position:x}", 0)


def test_an_events_own_metadata_wins():
    with Cluster(1, modules=("ledger",)) as one, cairn.Client(one.endpoints) as client:
        client.dispatch(cairn.Command("ledger", "own", "Add", {"cents": 1}, metadata={"module": "mine", "tenant": "blue"}))
        assert next(client.read("own")).metadata == {"module": "ledger", "tenant": "blue"}


def test_a_command_that_answers_an_event_belongs_to_its_conversation(client):
    put(client, "cause", id="cause-1", origin=cairn.Origin(traceparent=TRACE))
    cause = next(client.read("cause"))
    answer = cairn.Command.caused_by(cause, "echo", "effect", "Put", {"n": 2})
    assert answer.id == cairn.Command.caused_by(cause, "echo", "effect", "Put", {"n": 2}).id
    client.dispatch(answer)
    client.dispatch(answer)
    effects = list(client.read("effect"))
    assert len(effects) == 1
    assert effects[0].origin == cairn.Origin("cause-1", cause.id, TRACE)


@pytest.mark.parametrize("field", ["correlation_id", "causation_id", "traceparent", "tracestate"])
def test_too_long_an_origin_is_refused(client, field):
    with pytest.raises(cairn.InvalidCommand) as error:
        put(client, "long", origin=cairn.Origin(**{field: "x" * 600}))
    assert error.value.reason == "FIELD_TOO_LONG" and f"origin.{field}" in str(error.value)
    with pytest.raises(cairn.NotFound):
        list(client.read("long"))


def test_too_long_an_event_id_is_refused(client):
    with pytest.raises(cairn.InvalidCommand) as error:
        client.append("plain", "long", [cairn.NewEvent("A", id="x" * 129)])
    assert error.value.reason == "FIELD_TOO_LONG"


# ---- upcasting in the SDK ----

UPCASTERS = {
    ("Booked", 0): lambda event: event.upcast(1, {"euros": event.json()["euros"]}, "Added"),
    ("Added", 1): lambda event: event.upcast(2, {"cents": event.json()["euros"] * 100}),
}


class Purse:
    """Knows revision 2 of Added only."""

    aggregate_type = "purse"
    commands = ["Total"]
    upcasters = UPCASTERS

    def initial(self, aggregate_id):
        return 0

    def evolve(self, state, event):
        assert (event.type, event.revision) == ("Added", 2)
        return state + event.json()["cents"]

    def decide(self, state, command):
        return [cairn.Reply("Total", {"cents": state})]


OLD = [cairn.NewEvent("Booked", {"euros": 3}), cairn.NewEvent("Added", {"euros": 4}, revision=1),
       cairn.NewEvent("Added", {"cents": 5}, revision=2)]
NEW = [("Added", 2, '{"cents":300}'), ("Added", 2, '{"cents":400}'), ("Added", 2, '{"cents":5}')]


def test_workers_and_consumers_see_the_newest_revision(three, client):
    client.append("purse", "purse-1", OLD, command_id="purse-1")
    worker = cairn.Worker(three.endpoints, Purse())
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(worker.serve()), daemon=True)
    thread.start()
    try:
        for node in three.nodes:
            wait_until(lambda: node.metrics()["cairn_workers_connected"] >= 1, 20 * SLOW, "a worker")
        total = client.dispatch(cairn.Command("purse", "purse-1", "Total"))
    finally:
        loop.call_soon_threadsafe(worker.stop)
        thread.join()
    assert json.loads(total.reply.payload) == {"cents": 705}
    mine = cairn.Filter(aggregate_types=["purse"])
    with client.subscribe(filter=mine, upcasters=UPCASTERS) as subscription:
        assert [(e.type, e.revision, e.payload) for _, e in zip(range(3), subscription)] == NEW
    seen = []
    processor = client.processor("purses", seen.append, filter=mine, upcasters=UPCASTERS)
    thread = threading.Thread(target=processor.run, daemon=True)
    thread.start()
    wait_until(lambda: len(seen) == 3, 20 * SLOW, "three deliveries")
    processor.stop()
    thread.join()
    assert [(e.type, e.revision, e.payload) for e in seen] == NEW
    assert [e.revision for e in client.read("purse-1")] == [0, 1, 2]  # history stays


# ---- asyncio ----

def test_async_iteration_survives_a_killed_node():
    async def follow(cluster):
        seen = []
        async with cairn.AsyncClient(cluster.endpoints, timeout=60 * SLOW) as client:
            async with client.subscribe(credits=20, heartbeat=1.0) as subscription:
                async for event in subscription:
                    seen.append(event.command_id)
                    if len(seen) == 150:
                        node = cluster.nodes[subscription._first % 3]
                        await asyncio.to_thread(node.kill)
                        for number in range(300, 400):
                            await client.dispatch(cairn.Command("echo", f"a-{number % 30}", "Put", {}, id=f"a {number}"))
                    if len(set(seen)) == 400:
                        break
            assert subscription.reconnects >= 1
        return seen

    with Cluster(3) as cluster:
        with cairn.Client(cluster.endpoints) as client:
            for number in range(300):
                client.dispatch(cairn.Command("echo", f"a-{number % 30}", "Put", {}, id=f"a {number}"))
        seen = asyncio.run(asyncio.wait_for(follow(cluster), 120 * SLOW))
    assert sorted(seen) == sorted(f"a {number}" for number in range(400))  # each once
