"""Questions to the log: the newest first, which aggregates, how many of each type; also of what other nodes hold."""

import cairn
import grpc
import pytest
from cairn.v1 import event_pb2, event_pb2_grpc
from cluster import SLOW, Cluster

AGGREGATES = 70
ROUNDS = 4


def fill(client):
    """70 aggregates of two types with four events each, in a known order."""
    commands = []
    for number in range(AGGREGATES * ROUNDS):
        key = number % AGGREGATES
        kind = "tree" if key % 3 == 0 else "bush"
        commands.append(f"q {number}")
        client.append(kind, f"{kind}-{key:03}", [cairn.NewEvent("Grew" if number % 2 else "Bloomed", {"n": number})],
                      command_id=f"q {number}")
    return commands


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow), 5],
                ids=["one", "three", "five"])
def filled(request):
    """Of five nodes none has all."""
    with Cluster(request.param, arguments=("--partitions", "20")) as cluster, \
            cairn.Client(cluster.endpoints, timeout=60 * SLOW, try_timeout=5 * SLOW) as client:
        yield cluster, client, fill(client)


def each_node(cluster):
    for node in cluster.nodes:
        with cairn.Client([node.endpoint], timeout=30 * SLOW) as client:
            yield client


def test_backwards_is_the_reverse_of_the_writing(filled):
    cluster, _, commands = filled
    for client in each_node(cluster):
        seen = list(client.read_all(backwards=True))
        assert sorted(e.command_id for e in seen) == sorted(commands)
        times = [e.time for e in seen]
        assert times == sorted(times, reverse=True)
        last = {}
        for event in seen:
            assert event.position == last.get(event.partition, event.position + 1) - 1  # none left out
            last[event.partition] = event.position
        assert set(last.values()) == {0}


def test_the_newest_few_with_a_filter(filled):
    cluster, _, commands = filled
    for client in each_node(cluster):
        trees = cairn.Filter(aggregate_types=["tree"], event_types=["Grew"])
        seen = list(client.read_all(backwards=True, limit=5, filter=trees))
        assert len(seen) == 5
        assert {(e.aggregate_type, e.type) for e in seen} == {("tree", "Grew")}
        assert min(int(e.command_id[2:]) for e in seen) > AGGREGATES * (ROUNDS - 1)


def test_backwards_from_a_token_and_a_time(filled):
    cluster, client, commands = filled
    half = sorted(client.read_all(), key=lambda e: e.time)[len(commands) // 2].time
    with grpc.insecure_channel(cluster.endpoints[0]) as channel:
        *_, last = event_pb2_grpc.EventServiceStub(channel).ReadAll(event_pb2.ReadAllRequest(limit=100))
        token = last.token
    for one in each_node(cluster):
        by_time = {e.command_id for e in one.read_all(half, backwards=True)}
        assert by_time == {e.command_id for e in client.read_all() if e.time < half}
        forwards = {e.command_id for e in one.read_all(token)}
        assert len(forwards) == len(commands) - 100
        assert {e.command_id for e in one.read_all(token, backwards=True)} == set(commands) - forwards


def test_the_last_event_of_an_aggregate(filled):
    _, client, _ = filled
    newest = next(client.read("tree-003", backwards=True, limit=1))
    assert (newest.sequence, newest.command_id) == (ROUNDS - 1, f"q {AGGREGATES * (ROUNDS - 1) + 3}")


def test_ids_by_prefix_in_order(filled):
    cluster, _, _ = filled
    for client in each_node(cluster):
        everything = [a.aggregate_id for a in client.list_aggregates()]
        assert everything == sorted(everything) and len(everything) == AGGREGATES
        trees = [f"tree-{k:03}" for k in range(0, AGGREGATES, 3)]
        assert [a.aggregate_id for a in client.list_aggregates("tree-")] == trees
        assert [a.aggregate_id for a in client.list_aggregates(aggregate_types=["tree"])] == trees
        assert [a.aggregate_id for a in client.list_aggregates("tree-00")] == trees[:4]
        assert list(client.list_aggregates("nothing")) == []
        one = next(client.list_aggregates("tree-003"))
        assert (one.aggregate_type, one.event_count) == ("tree", ROUNDS)
        pages, after = [], ""
        while page := [a.aggregate_id for a in client.list_aggregates("tree-", after=after, limit=7)]:
            pages += page
            after = page[-1]
        assert pages == trees


def test_counts_by_type(filled):
    cluster, _, commands = filled
    expected = {}
    for number in range(AGGREGATES * ROUNDS):
        key = ("tree" if number % AGGREGATES % 3 == 0 else "bush", "Grew" if number % 2 else "Bloomed")
        expected[key] = expected.get(key, 0) + 1
    for client in each_node(cluster):
        assert client.count_events() == expected
        assert client.count_events(cairn.Filter(event_types=["Grew"])) == {k: v for k, v in expected.items() if k[1] == "Grew"}
        assert client.count_events(cairn.Filter(aggregate_id_prefixes=["tree-003"])) == {
            ("tree", "Grew"): ROUNDS}
        assert client.count_events(cairn.Filter(aggregate_types=["none"])) == {}


def test_a_query_that_begins_sees_what_was_acknowledged_before(filled):
    cluster, client, _ = filled
    for number in range(10):
        client.append("late", f"late-{number}", [cairn.NewEvent("Came")])
        for one in each_node(cluster):
            assert one.count_events(cairn.Filter(aggregate_types=["late"])) == {("late", "Came"): number + 1}
            assert next(one.read_all(backwards=True, filter=cairn.Filter(aggregate_types=["late"]))).aggregate_id == f"late-{number}"


def reason_of(error):
    return cairn.errors.from_rpc(error).reason


@pytest.mark.parametrize("method, request_, reason", [
    ("ListAggregates", event_pb2.ListAggregatesRequest(filter=event_pb2.EventFilter(event_types=["A"])), "FILTER_INVALID"),
    ("ListAggregates", event_pb2.ListAggregatesRequest(after="x" * 256), "FIELD_TOO_LONG"),
    ("ListAggregates", event_pb2.ListAggregatesRequest(filter=event_pb2.EventFilter(partitions=[20])), "FILTER_NEVER_MATCHES"),
    ("ReadAll", event_pb2.ReadAllRequest(direction=7), "UNKNOWN_ENUM"),
    ("ReadAll", event_pb2.ReadAllRequest(direction=2, **{"from": event_pb2.LogStart(token="2.x.y")}), "TOKEN_INVALID"),
])
def test_bad_questions(filled, method, request_, reason):
    cluster, _, _ = filled
    with grpc.insecure_channel(cluster.endpoints[0]) as channel:
        with pytest.raises(grpc.RpcError) as error:
            list(getattr(event_pb2_grpc.EventServiceStub(channel), method)(request_))
        assert reason_of(error.value) == reason


def test_a_bad_count(filled):
    cluster, _, _ = filled
    with grpc.insecure_channel(cluster.endpoints[0]) as channel:
        with pytest.raises(grpc.RpcError) as error:
            event_pb2_grpc.EventServiceStub(channel).CountEvents(event_pb2.CountEventsRequest(consistency=9))
        assert reason_of(error.value) == "UNKNOWN_ENUM"
