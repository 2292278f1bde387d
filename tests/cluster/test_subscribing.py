"""Subscribing processors: the node that handled a command lets them process its events before it answers."""

import json
import signal
import threading
import time

import cairn
import grpc
import pytest
from cairn.v1 import event_pb2, event_pb2_grpc
from cluster import SLOW, Cluster, wait_until

PATIENCE = cairn.Subscribing(timeout=20.0 * SLOW, report_failure=True)


class Listener:
    """A subscribing processor at the given endpoints, with what each of them gave."""

    def __init__(self, endpoints, group, handler=None, subscribing=PATIENCE, **options):
        self.seen = []
        self._handler = handler
        self._processor = cairn.SubscribingProcessor(endpoints, group, self._handle, subscribing, **options)
        self._thread = threading.Thread(target=self._processor.run, daemon=True)

    def _handle(self, event):
        if self._handler is not None:
            self._handler(event)
        self.seen.append(event)

    def commands(self):
        return [event.command_id for event in list(self.seen)]

    def wait_joined(self):
        return self._processor.wait_joined(20 * SLOW)

    def __enter__(self):
        self._thread.start()
        assert self.wait_joined()
        return self

    def __exit__(self, *exc):
        self._processor.stop()
        self._thread.join(20 * SLOW)


@pytest.fixture(scope="module")
def three():
    with Cluster(3) as cluster:
        yield cluster


def put(client, number, key="s", **more):
    return client.dispatch(cairn.Command("echo", f"{key}-{number % 40}", "Put", {"n": number},
                                         id=f"{key} put {number}", **more))


def owner_of(topology, partition):
    node = next(p.owner for p in topology.partitions if p.id == partition)
    return next(m.name for m in topology.members if m.node_id == node)


def test_the_node_that_handles_a_command_does_the_processing_before_it_answers(three):
    with cairn.Client(three.endpoints, timeout=60 * SLOW, try_timeout=20 * SLOW) as client:
        listeners = {node.name: Listener([node.endpoint], "same-node") for node in three.nodes}
        for listener in listeners.values():
            listener.__enter__()
        try:
            for number in range(150):
                outcome = put(client, number, "near")
                handled_by = owner_of(client.topology(), outcome.partition)
                where = [name for name, l in listeners.items() if f"near put {number}" in l.commands()]
                assert where == [handled_by]
                assert outcome.processing_failures == ()
            assert all(listener.seen for listener in listeners.values())
        finally:
            for listener in listeners.values():
                listener.__exit__()


def test_in_commit_order_and_once(three):
    with cairn.Client(three.endpoints, timeout=60 * SLOW, try_timeout=20 * SLOW) as client, \
            Listener(three.endpoints, "in-order") as listener:
        threads = [threading.Thread(target=lambda k=k: [put(client, n, f"order{k}") for n in range(60)])
                   for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        last = {}
        for event in listener.seen:
            assert event.position > last.get(event.partition, -1)
            last[event.partition] = event.position
        assert len(set(listener.commands())) == len(listener.seen) == 240


def test_the_answer_waits_until_the_limit(three):
    go = threading.Event()

    def slow(event):
        go.wait(20 * SLOW)

    with cairn.Client(three.endpoints, timeout=60 * SLOW, try_timeout=20 * SLOW) as client:
        with Listener(three.endpoints, "slow", slow, cairn.Subscribing(timeout=0.5, report_failure=True)):
            begun = time.monotonic()
            outcome = put(client, 1, "slow")
            assert time.monotonic() - begun >= 0.5
            assert [(f.group, f.timed_out) for f in outcome.processing_failures] == [("slow", True)]
            assert put(client, 1, "slow").processing_failures == ()  # the recorded outcome
            go.set()
        with Listener(three.endpoints, "slow", slow, cairn.Subscribing(timeout=0.2)):
            go.clear()
            assert put(client, 2, "slow").processing_failures == ()  # late, but it doesn't report
            go.set()


def test_who_does_not_wait_is_told_all_the_same(three):
    go = threading.Event()
    with cairn.Client(three.endpoints, timeout=60 * SLOW, try_timeout=20 * SLOW) as client, \
            Listener(three.endpoints, "no-wait", lambda event: go.wait(20 * SLOW),
                     cairn.Subscribing(wait=False, report_failure=True)) as listener:
        for number in range(5):
            assert put(client, number, "nowait").processing_failures == ()
        assert listener.seen == []
        go.set()
        wait_until(lambda: len(listener.seen) == 5, 20 * SLOW, "five events")


def test_a_failure_is_reported_and_changes_nothing(three):
    def fail(event):
        if event.json()["n"] % 2 == 0:
            raise ValueError("an even number")

    with cairn.Client(three.endpoints, timeout=60 * SLOW, try_timeout=20 * SLOW) as client, \
            Listener(three.endpoints, "odd", fail, filter=cairn.Filter(aggregate_id_prefixes=["odd-"])):
        outcomes = [put(client, number, "odd") for number in range(6)]
        reasons = [[f.reason for f in outcome.processing_failures] for outcome in outcomes]
        assert reasons == [["ValueError: an even number"], []] * 3
        assert all(outcome.event_count == 1 for outcome in outcomes)
        assert len(list(client.read("odd-0"))) == 1


@pytest.fixture
def calm_three():
    """Whose owners stay also when the machine is slow: a new one answers from the record, without what was processed."""
    with Cluster(3, arguments=("--election-timeout", "3s")) as cluster:
        yield cluster


def test_the_last_member_goes_in_the_middle(calm_three):
    holding = threading.Event()
    go = threading.Event()

    def hold(event):
        holding.set()
        go.wait(20 * SLOW)

    with cairn.Client(calm_three.endpoints, timeout=60 * SLOW, try_timeout=30 * SLOW) as client:
        channels = []
        for node in calm_three.nodes:  # raw streams, to break them without a word
            channel = grpc.insecure_channel(node.endpoint)
            join = event_pb2.JoinGroup(group="goes", member="m", subscribing=event_pb2.Subscribing(report_failure=True))
            asks = iter([event_pb2.ProcessRequest(join=join)])
            block = threading.Event()

            def requests(asks=asks, block=block):
                yield from asks
                block.wait()
            call = event_pb2_grpc.EventServiceStub(channel).Process(requests())
            assert next(call).WhichOneof("response") == "assignment"
            channels.append((channel, call, block))
        result = []
        thread = threading.Thread(target=lambda: result.append(put(client, 1, "goes")))
        thread.start()
        wait_until(lambda: sum(n.metrics()["cairn_aggregate_processing"] for n in calm_three.nodes) == 1, 20 * SLOW,
                   "the command waits")
        for channel, call, block in channels:
            call.cancel()
            block.set()
            channel.close()
        thread.join(20 * SLOW)
        assert [f.timed_out for f in result[0].processing_failures] == [False]


def test_owners_die_and_processing_moves_with_them():
    with Cluster(3) as cluster, cairn.Client(cluster.endpoints, timeout=60 * SLOW, try_timeout=5 * SLOW) as client, \
            Listener(cluster.endpoints, "moves") as listener:
        for number in range(40):
            put(client, number, "before")
        cluster.nodes[0].kill()
        for number in range(40):
            put(client, number, "dead")
        cluster.nodes[0].start()
        cluster.nodes[0].wait_ready()
        assert listener.wait_joined()
        for number in range(40):
            put(client, number, "back")
        seen = set(listener.commands())
        # A command that was committed before its owner died, and is answered by the next one from the record,
        # wasn't processed: that is the promise of a subscribing processor, and at most what was in flight.
        assert len({c for c in seen if c.startswith("before")}) == 40
        assert len({c for c in seen if c.startswith("dead")}) >= 39
        assert len({c for c in seen if c.startswith("back")}) == 40


@pytest.mark.slow
def test_a_drain_loses_no_processing():
    with Cluster(3) as cluster, cairn.Client(cluster.endpoints, timeout=60 * SLOW, try_timeout=5 * SLOW) as client, \
            Listener(cluster.endpoints, "drains") as listener:
        stop = threading.Event()
        sent = []

        def send():
            while not stop.is_set():
                put(client, len(sent), "drain")
                sent.append(f"drain put {len(sent)}")

        thread = threading.Thread(target=send)
        thread.start()
        wait_until(lambda: len(sent) > 50, 30 * SLOW, "some commands")
        assert cluster.nodes[1].stop() == 0
        after = len(sent)
        wait_until(lambda: len(sent) > after + 50, 30 * SLOW, "some more")
        stop.set()
        thread.join()
        # One command at a time was sent: at most that one was in flight when its owner went.
        assert len(set(sent) - set(listener.commands())) <= 1


BAD = [
    ("from", dict(group="bad", member="m", subscribing=event_pb2.Subscribing(),
                  **{"from": event_pb2.LogStart(beginning=event_pb2.LogBeginning())}), "START_INVALID"),
    ("timeout", dict(group="bad", member="m", subscribing=event_pb2.Subscribing(timeout={"seconds": -1})),
     "TIMEOUT_INVALID"),
    ("timeout of nothing", dict(group="bad", member="m", subscribing=event_pb2.Subscribing(timeout={})),
     "TIMEOUT_INVALID"),
    ("partitions", dict(group="bad", member="m", subscribing=event_pb2.Subscribing(),
                        filter=event_pb2.EventFilter(partitions=[1])), "FILTER_INVALID"),
    ("no name", dict(group="", member="m", subscribing=event_pb2.Subscribing()), "NAME_INVALID"),
]


def reason_of(error):
    return cairn.errors.from_rpc(error).reason


@pytest.mark.parametrize("what, join, reason", BAD, ids=[b[0] for b in BAD])
def test_bad_joins_are_refused(three, what, join, reason):
    with grpc.insecure_channel(three.endpoints[0]) as channel:
        call = event_pb2_grpc.EventServiceStub(channel).Process(
            iter([event_pb2.ProcessRequest(join=event_pb2.JoinGroup(**join))]))
        with pytest.raises(grpc.RpcError) as error:
            next(call)
        assert reason_of(error.value) == reason


def test_acknowledging_what_was_never_given(three):
    with grpc.insecure_channel(three.endpoints[0]) as channel:
        join = event_pb2.JoinGroup(group="wrong-ack", member="m", subscribing=event_pb2.Subscribing())
        done = threading.Event()

        def requests():  # who ends the stream itself doesn't hear of it
            yield event_pb2.ProcessRequest(join=join)
            yield event_pb2.ProcessRequest(acknowledge=event_pb2.Acknowledgement(partition=1, position=1 << 40))
            done.wait(20 * SLOW)
        call = event_pb2_grpc.EventServiceStub(channel).Process(requests())
        with pytest.raises(grpc.RpcError) as error:
            for _ in call:
                pass
        done.set()
        assert reason_of(error.value) == "NOT_DELIVERED"


# ---- processors of modules, and upcasting by modules ----

@pytest.fixture(scope="module")
def ledgers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    with_ledger = Cluster(3, modules=("ledger",))
    for node in with_ledger.nodes:
        node.environment["CAIRN_TEST_AUDIT"] = str(folder / node.name)
    with with_ledger as cluster:
        yield cluster, folder


def audited(folder, cluster):
    """By node: the words of each line."""
    return {node.name: [line.split() for line in (folder / node.name).read_text().splitlines()]
            if (folder / node.name).exists() else [] for node in cluster.nodes}


def test_a_module_processes_where_the_command_was_handled(ledgers):
    cluster, folder = ledgers
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with cairn.Client(cluster.endpoints, timeout=60 * SLOW, try_timeout=20 * SLOW) as client:
        for number in range(60):
            outcome = client.dispatch(cairn.Command("ledger", f"L{number}", "Add", {"cents": number}, id=f"add-{number}",
                                                    origin=cairn.Origin(traceparent=trace)))
            owner = owner_of(client.topology(), outcome.partition)
            lines = audited(folder, cluster)
            where = {name: [l for l in found if l[0] == f"L{number}"] for name, found in lines.items()}
            assert where.pop(owner) == [[f"L{number}", "0", "Added", "1", '{"cents":%d}' % number, f"add-{number}", trace]]
            assert not any(where.values())


def test_a_modules_failure_and_lateness_are_reported(ledgers):
    cluster, folder = ledgers
    with cairn.Client(cluster.endpoints, timeout=60 * SLOW, try_timeout=20 * SLOW) as client:
        bad = client.dispatch(cairn.Command("ledger", "bad", "Bad"))
        assert bad.processing_failures == (cairn.ProcessingFailure("audit", False, "it is bad"),)
        slow = client.dispatch(cairn.Command("ledger", "slow", "Slow"))
        assert [(f.group, f.timed_out) for f in slow.processing_failures] == [("audit", True)]
        for node in cluster.nodes:
            (folder / f"{node.name}.go").touch()
        wait_until(lambda: any(l[0] == "slow" for found in audited(folder, cluster).values() for l in found),
                   20 * SLOW, "the slow one to end")
        assert client.dispatch(cairn.Command("ledger", "slow", "Slow")).processing_failures == ()


def test_old_revisions_become_new_ones_and_history_stays(ledgers):
    cluster, folder = ledgers
    with cairn.Client(cluster.endpoints, timeout=60 * SLOW, try_timeout=20 * SLOW) as client:
        client.append("ledger", "old", [cairn.NewEvent("Booked", {"euros": 3}), cairn.NewEvent("Added", {"euros": 4}),
                                        cairn.NewEvent("Added", {"cents": 5}, revision=1)], command_id="old-events")
        total = client.dispatch(cairn.Command("ledger", "old", "Total"))
        assert json.loads(total.reply.payload) == {"cents": 705}
        stored = [(e.type, e.revision, e.payload) for e in client.read("old")]
        assert stored == [("Booked", 0, '{"euros":3}'), ("Added", 0, '{"euros":4}'), ("Added", 1, '{"cents":5}')]
        seen = [l[2:5] for found in audited(folder, cluster).values() for l in found if l[0] == "old"]
        assert seen == [["Added", "1", '{"cents":300}'], ["Added", "1", '{"cents":400}'], ["Added", "1", '{"cents":5}']]
