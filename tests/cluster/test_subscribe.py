"""Subscriptions and ReadAll: nothing left out, nothing twice, in order, whatever happens to the nodes."""

import datetime
import signal
import threading

import cairn
import grpc
import pytest
from cairn.v1 import event_pb2, event_pb2_grpc
from cluster import SLOW, Cluster, wait_until


def put(client, number, spread=40):
    return client.dispatch(cairn.Command("echo", f"s-{number % spread}", "Put", {"n": number}, id=f"put {number}"))


class Consumer:
    """A subscription with a thread that takes what it gives."""

    def __init__(self, client, *arguments, **settings):
        self.subscription = client.subscribe(*arguments, heartbeat=0.3 * SLOW, **settings)
        self.events = []
        self.error = None
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        try:
            for event in self.subscription:
                self.events.append(event)
        except cairn.CairnError as error:
            self.error = error

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self.subscription.close()
        self._thread.join()

    def wait_for(self, count):
        wait_until(lambda: len(self.events) >= count or self.error, 60 * SLOW, f"{count} events")
        assert self.error is None, self.error

    def check(self, expected, starts=None):
        """As many events, each partition from its start on without a hole."""
        following = dict(starts or {})
        for event in self.events:
            assert event.position == following.get(event.partition, 0)
            following[event.partition] = event.position + 1
        assert len(self.events) == expected


@pytest.fixture(scope="module")
def three():
    with Cluster(3) as cluster:
        yield cluster


@pytest.fixture
def client(three):
    with cairn.Client(three.endpoints, timeout=30 * SLOW, try_timeout=1 * SLOW) as client:
        yield client


@pytest.fixture(scope="module")
def filled(three):
    """How many events are there when the tests of this module begin."""
    with cairn.Client(three.endpoints, timeout=30 * SLOW) as client:
        for number in range(300):
            put(client, number)
    return 300


def test_read_all_sees_what_was_acknowledged_before(three, client, filled):
    for number in range(filled, filled + 20):
        put(client, number)
        seen = {event.command_id for event in client.read_all()}
        assert f"put {number}" in seen
    events = list(client.read_all(limit=7))
    assert len(events) == 7


def test_it_catches_up_and_goes_on_live(three, filled):
    with cairn.Client(three.endpoints, timeout=30 * SLOW) as client:
        before = len(list(client.read_all()))
        with Consumer(client) as consumer:
            for number in range(1000, 1200):
                put(client, number)
            consumer.wait_for(before + 200)
        consumer.check(before + 200)


def test_from_the_end_a_token_and_a_time(three, client, filled):
    with Consumer(client, cairn.END) as consumer:
        wait_until(lambda: consumer.subscription.token, 10 * SLOW, "the first token")
        start = datetime.datetime.now(datetime.timezone.utc)
        for number in range(2000, 2050):
            put(client, number)
        # A replica that lags has its end a little before; what comes is whole all the same.
        wait_until(lambda: {f"put {n}" for n in range(2000, 2050)} <= {e.command_id for e in consumer.events},
                   30 * SLOW, "fifty events")
        seen = consumer.subscription.tokens_seen
        wait_until(lambda: consumer.subscription.tokens_seen > seen, 10 * SLOW, "a token behind all")
        token = consumer.subscription.token
    put(client, 2050)
    with Consumer(client, token) as later:
        later.wait_for(1)
        assert later.events[0].command_id == "put 2050"
    with Consumer(client, start) as timed:
        timed.wait_for(51)
        assert {e.command_id for e in timed.events} == {f"put {n}" for n in range(2000, 2051)}


def test_filters(three, client, filled):
    client.append("shelf", "shelf-1", [cairn.NewEvent("Stocked", {"n": 1}), cairn.NewEvent("Sold", {"n": 1})],
                  command_id="shelf")
    by_type = list(client.read_all(filter=cairn.Filter(event_types=["Sold"])))
    assert [e.aggregate_id for e in by_type] == ["shelf-1"]
    by_kind = list(client.read_all(filter=cairn.Filter(aggregate_types=["shelf"])))
    assert [e.type for e in by_kind] == ["Stocked", "Sold"]
    by_prefix = list(client.read_all(filter=cairn.Filter(aggregate_id_prefixes=["s-1", "shelf"])))
    assert {e.aggregate_id for e in by_prefix} == {f"s-{n}" for n in (1, *range(10, 20))} | {"shelf-1"}
    partition = by_kind[0].partition
    only = list(client.read_all(filter=cairn.Filter(partitions=[partition])))
    assert {e.partition for e in only} == {partition}
    outcome = put(client, 3000)
    put(client, 3040)
    after = list(client.read_all(outcome.token, cairn.Filter(partitions=[outcome.partition])))
    assert [e.command_id for e in after] == ["put 3040"]


def raw(endpoint, requests, path="Subscribe"):
    """The first response, or the error."""
    with grpc.insecure_channel(endpoint) as channel:
        stub = event_pb2_grpc.EventServiceStub(channel)
        call = stub.Subscribe(iter(requests)) if path == "Subscribe" else stub.ReadAll(requests[0])
        try:
            responses = [next(call)]
            for response in call:
                responses.append(response)
            return responses
        except grpc.RpcError as error:
            raise cairn.errors.from_rpc(error) from None


def begin(**fields):
    return event_pb2.SubscribeRequest(start=event_pb2.StartSubscription(**fields))


def at_token(token):
    return begin(**{"from": event_pb2.LogStart(token=token)})


@pytest.mark.parametrize("requests, reason", [
    ([event_pb2.SubscribeRequest(credits=5)], "NOT_STARTED"),
    ([begin(), begin()], "ALREADY_STARTED"),
    ([begin(credits=2**21)], "CREDITS_INVALID"),
    ([begin(), event_pb2.SubscribeRequest(credits=0)], "CREDITS_INVALID"),
    ([event_pb2.SubscribeRequest()], "REQUEST_EMPTY"),
    ([at_token("")], "TOKEN_INVALID"),
    ([at_token("rubbish")], "TOKEN_INVALID"),
    ([at_token("9.1.1")], "TOKEN_VERSION"),
    ([at_token("1.7.3")], "TOKEN_OF_ONE_PARTITION"),
    ([at_token("1.ffff.3")], "TOKEN_OF_ANOTHER_CLUSTER"),
    ([at_token("2.12345678.40.0.12345678")], "TOKEN_OF_ANOTHER_CLUSTER"),
    ([begin(filter=event_pb2.EventFilter(partitions=[64]))], "FILTER_NEVER_MATCHES"),
    ([begin(filter=event_pb2.EventFilter(event_types=[""]))], "FILTER_NEVER_MATCHES"),
    ([begin(filter=event_pb2.EventFilter(event_types=["x"] * 300))], "FILTER_TOO_LARGE"),
    ([begin(heartbeat={"seconds": -1})], "HEARTBEAT_INVALID"),
])
def test_bad_requests_are_named(three, requests, reason):
    with pytest.raises(cairn.CairnError) as caught:
        raw(three.endpoints[0], requests)
    assert caught.value.reason == reason, caught.value
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT


def test_a_token_of_the_future_is_refused_and_a_lagging_replica_is_not_blamed(three, client, filled):
    outcome = put(client, 4000)
    partition, position = (int(part, 16) for part in outcome.token.split(".")[1:])
    request = begin(filter=event_pb2.EventFilter(partitions=[partition]),
                    **{"from": event_pb2.LogStart(token=f"1.{partition:x}.{position + 1:x}")})
    for endpoint in three.endpoints:
        with pytest.raises(cairn.CairnError) as caught:
            raw(endpoint, [request])
        assert caught.value.reason == "TOKEN_OF_THE_FUTURE"


def test_no_more_events_than_credits(three, filled):
    with grpc.insecure_channel(three.endpoints[1]) as channel:
        asked = threading.Event()

        def requests():
            yield begin(credits=10, heartbeat={"nanos": 50_000_000})
            asked.wait(30)
            yield event_pb2.SubscribeRequest(credits=5)

        call = event_pb2_grpc.EventServiceStub(channel).Subscribe(requests())
        got, tokens = 0, 0
        for response in call:
            got += len(response.events)
            tokens += bool(response.token)
            assert got <= (15 if asked.is_set() else 10)
            if got == 10 and tokens > 4:
                asked.set()
            if got == 15 and tokens > 9:
                break
        call.cancel()


def test_a_stuck_consumer_delays_nobody(three, client, filled):
    with grpc.insecure_channel(three.endpoints[0]) as channel:
        stuck = event_pb2_grpc.EventServiceStub(channel).Subscribe(iter([begin(credits=1_000_000)]))
        next(stuck)  # and never again
        with Consumer(client, cairn.END) as consumer:
            wait_until(lambda: consumer.subscription.token, 10 * SLOW, "the first token")
            for number in range(5000, 5100):
                put(client, number)
            consumer.wait_for(100)
        stuck.cancel()


@pytest.mark.parametrize("fault", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow),
                                   pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_consumers_outlive_nodes(fault):
    with Cluster(3) as cluster, cairn.Client(cluster.endpoints, timeout=60 * SLOW, try_timeout=0.5 * SLOW) as client:
        with Consumer(client, credits=50) as one, Consumer(client) as other, \
                Consumer(client, filter=cairn.Filter(aggregate_id_prefixes=["s-1"])) as filtered:
            number, many = 0, 20 if fault == signal.SIGSTOP else 150  # every third command meets the hung one
            for victim in cluster.nodes:
                for number in range(number, number + many):
                    put(client, number)
                victim.signal(fault)
                for number in range(number, number + many):
                    put(client, number)
                if fault == signal.SIGSTOP:
                    victim.signal(signal.SIGCONT)
                else:
                    victim.process.wait(30)
                    victim.start()
                    victim.wait_ready(30)
            total = len({e.command_id for e in client.read_all()})
            one.wait_for(total)
            other.wait_for(total)
            chosen = sum(e.aggregate_id.startswith("s-1") for e in other.events)
            filtered.wait_for(chosen)
        one.check(total)
        other.check(total)
        assert [e.command_id for e in filtered.events if e.partition == filtered.events[0].partition] == \
            [e.command_id for e in other.events
             if e.aggregate_id.startswith("s-1") and e.partition == filtered.events[0].partition]
        assert one.subscription.reconnects + other.subscription.reconnects >= 1


@pytest.mark.slow
def test_a_node_gives_what_others_hold():
    """Five nodes, three copies of each partition: two fifths come from other nodes."""
    with Cluster(5, arguments=("--partitions", "20")) as cluster:
        with cairn.Client(cluster.endpoints, timeout=60 * SLOW, try_timeout=0.5 * SLOW) as client:
            for number in range(200):
                put(client, number)
            for node in cluster.nodes:
                with cairn.Client([node.endpoint], timeout=30 * SLOW) as at_one:
                    assert len(list(at_one.read_all())) == 200, node.name
            with cairn.Client([cluster.nodes[0].endpoint], timeout=60 * SLOW) as at_one, \
                    Consumer(at_one, credits=30) as consumer, \
                    Consumer(at_one, cairn.END) as live:
                wait_until(lambda: live.subscription.token, 20 * SLOW, "the first token")
                cluster.nodes[3].kill()
                for number in range(200, 400):
                    put(client, number)
                consumer.wait_for(400)
                live.wait_for(200)
            consumer.check(400)


@pytest.mark.slow
def test_a_node_that_hangs_is_asked_no_more():
    """Its connections stand: they would be given up for lost thirteen seconds later."""
    with Cluster(5, arguments=("--partitions", "20")) as cluster:
        first, victim = cluster.nodes[0], cluster.nodes[3]
        with cairn.Client([first.endpoint], timeout=60 * SLOW) as client, Consumer(client) as consumer:
            for number in range(200):
                put(client, number)
            consumer.wait_for(200)
            victim.signal(signal.SIGSTOP)
            with grpc.insecure_channel(first.endpoint) as channel:
                stub = event_pb2_grpc.EventServiceStub(channel)
                reads = [stub.ReadAggregate(event_pb2.ReadAggregateRequest(aggregate_id=f"s-{number}"),
                                            timeout=60 * SLOW) for number in range(40)]
                assert [sum(len(page.events) for page in read) for read in reads] == [5] * 40
            for number in range(200, 240):
                put(client, number)
            consumer.wait_for(240)
            assert len(list(client.read_all())) == 240
            assert "link-lost" not in first.log()
        consumer.check(240)


def test_one_partition_is_one_order():
    with Cluster(1, arguments=("--partitions", "1")) as cluster, cairn.Client(cluster.endpoints) as client:
        for number in range(100):
            put(client, number)
        assert [e.command_id for e in client.read_all()] == [f"put {n}" for n in range(100)]
