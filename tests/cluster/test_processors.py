"""Processor groups: every event to one member, in order, again after failures, whatever happens to nodes and members."""

import collections
import signal
import threading
import time

import cairn
import grpc
import pytest
import xxhash
from cairn.v1 import event_pb2, event_pb2_grpc
from cluster import SLOW, Cluster, wait_placed, wait_until


def put(client, number):
    client.dispatch(cairn.Command("echo", f"p-{number % 60}", "Put", {"n": number}, id=f"put {number}"))


class Journal:
    """What all members of a group have done, in the order in which they did it."""

    def __init__(self):
        self.done = []
        self.lock = threading.Lock()

    def add(self, member, event):
        with self.lock:
            self.done.append((member, event))

    def ids(self):
        with self.lock:
            return {event.command_id for _, event in self.done}

    def check(self, total):
        """None left out; what comes again begins where it was interrupted, and goes on in order. That holds for each
        member: two have the same partition for a moment while a coordinator that hung doesn't know of the next."""
        following = {member: collections.defaultdict(int) for member, _ in self.done}
        for member, event in self.done:
            assert event.position <= following[member][event.partition], f"a gap in partition {event.partition}"
            for other in following.values():  # it goes on behind this when the partition comes to it
                other[event.partition] = max(other[event.partition], event.position + 1)
            following[member][event.partition] = event.position + 1
        assert len(self.ids()) == total


class Member:
    def __init__(self, cluster, group, journal, name="", handler=None, **settings):
        self.name = name
        self.processor = cairn.Processor(
            cluster.endpoints, group, handler or (lambda event: journal.add(self, event)), member=name, **settings)
        self.error = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        try:
            self.processor.run()
        except cairn.CairnError as error:
            self.error = error

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.processor.stop()
        self.thread.join()


def wait_for(journal, total):
    wait_until(lambda: len(journal.ids()) >= total, 60 * SLOW, f"{total} events")


@pytest.fixture(scope="module")
def three():
    with Cluster(3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(three):
    """After 200 events."""
    with cairn.Client(three.endpoints, timeout=60 * SLOW, try_timeout=1 * SLOW) as client:
        for number in range(200):
            put(client, number)
        yield client


def total(client):
    """Commands that made events."""
    return len({event.command_id for event in client.read_all()})


def test_members_share_the_partitions_and_see_everything_once(three, client):
    journal = Journal()
    with Member(three, "share", journal, "a") as a, Member(three, "share", journal, "b") as b:
        wait_until(lambda: {len(a.processor.partitions), len(b.processor.partitions)} == {32}, 20 * SLOW, "halves")
        with Member(three, "share", journal, "c") as c:
            wait_until(lambda: sorted(len(m.processor.partitions) for m in (a, b, c)) == [21, 21, 22],
                       20 * SLOW, "thirds")
            for number in range(1000, 1100):
                put(client, number)
            wait_for(journal, total(client))
        wait_until(lambda: {len(a.processor.partitions), len(b.processor.partitions)} == {32}, 20 * SLOW, "halves")
        journal.check(total(client))


def test_a_group_goes_on_where_it_was(three, client):
    first, second = Journal(), Journal()
    with Member(three, "goes-on", first):
        wait_for(first, total(client))
    wait_until(lambda: all(p.lag == 0 for p in client.group("goes-on").partitions), 20 * SLOW, "kept cursors")
    put(client, 1200)
    with Member(three, "goes-on", second):
        wait_until(lambda: "put 1200" in second.ids(), 60 * SLOW, "the next event")
        # A coordinator that changed in the last moment gives some again, but never all.
        assert len(second.ids()) < len(first.ids()) / 2


def test_where_a_group_stands_moves_with_its_home():
    """Another node gets a replica of everything, also of the partition that keeps the group's cursors; as a range,
    because the log would be too long."""
    with Cluster(3, arguments=("--balance-after", "500ms", "--partitions", "4")) as cluster:
        with cairn.Client(cluster.endpoints, timeout=60 * SLOW, try_timeout=1 * SLOW) as client:
            for number in range(400):
                client.dispatch(cairn.Command("echo", f"bulk-{number % 40}", "Put", "x" * 10000))
            first, second = Journal(), Journal()
            with Member(cluster, "mover", first):
                wait_for(first, total(client))
            wait_until(lambda: all(p.lag == 0 for p in client.group("mover").partitions), 20 * SLOW, "kept cursors")
            cluster.add("n4").start()
            cluster.nodes[3].wait_ready()
            wait_placed(client, "n4")
            client.drain_node("n1")
            wait_until(lambda: next(m for m in client.topology().members if m.name == "n1").replicas == 0, 60 * SLOW,
                       "n1 is empty", 0.1)
            cluster.nodes[0].stop()
            cluster.nodes[1].kill()  # n3 and n4 decide
            put(client, 1200)
            with Member(cluster, "mover", second):
                wait_until(lambda: "put 1200" in second.ids(), 60 * SLOW, "the next event")
            assert second.ids() == {"put 1200"}
            log = cluster.nodes[3].log()
            assert "range-installed" in log and "range-failed" not in log


def test_a_failing_event_comes_again_and_is_parked_at_last(three, client):
    """And what lies behind it waits for that only, not until the member is taken for stuck."""
    journal, attempts = Journal(), []

    def handler(event):
        if event.command_id == "put 7":
            attempts.append(event.attempt)
            raise ValueError("seven hurts")
        journal.add(None, event)

    with Member(three, "poison", journal, handler=handler, ack_timeout=1000):
        wait_for(journal, total(client) - 1)
        wait_until(lambda: client.group("poison").parked, 30 * SLOW, "a parked event")
    parked = client.group("poison").parked
    assert [(p.reason, p.attempts) for p in parked] == [("ValueError: seven hurts", 5)]
    # Counted by the coordinator: a new one begins anew.
    assert attempts[:1] == [0] and set(attempts) == {0, 1, 2, 3, 4}, attempts
    assert len(journal.ids()) == total(client) - 1


@pytest.mark.slow
def test_parked_events_are_tried_once_more(three, client):
    journal, cured = Journal(), threading.Event()

    def handler(event):
        if event.command_id in ("put 17", "put 18") and not cured.is_set():
            raise ValueError("not yet")
        journal.add(None, event)

    with Member(three, "cured", journal, handler=handler, ack_timeout=1000):
        wait_until(lambda: len(client.group("cured").parked) == 2, 30 * SLOW, "two parked events")
        wait_for(journal, total(client) - 2)
        before = client.group("cured").parked
        assert client.retry_parked("cured") == 2  # fails again
        wait_until(lambda: [p.attempts for p in client.group("cured").parked] == [6, 6], 20 * SLOW, "another attempt")
        cured.set()
        first = before[0]
        assert client.retry_parked("cured", [(first.partition, first.position)]) == 1
        wait_until(lambda: len(client.group("cured").parked) == 1, 20 * SLOW, "one parked event")
        assert client.retry_parked("cured") == 1
        wait_until(lambda: not client.group("cured").parked, 20 * SLOW, "no parked event")
        assert len(journal.ids()) == total(client)
        assert [e.parked for _, e in journal.done if e.command_id in ("put 17", "put 18")] == [True, True]
        with pytest.raises(cairn.NotFound) as error:
            client.retry_parked("cured", [(first.partition, first.position)])
        assert error.value.reason == "NOT_PARKED"
    wait_until(lambda: not client.group("cured").members, 20 * SLOW, "no members")
    with pytest.raises(cairn.CairnError) as error:
        client.retry_parked("cured")
    assert error.value.reason == "NO_MEMBERS" and error.value.code == grpc.StatusCode.FAILED_PRECONDITION


def test_lag_and_progress_can_be_seen(three, client):
    journal, go = Journal(), threading.Event()

    def handler(event):
        go.wait(60 * SLOW)
        journal.add(None, event)

    def lines():
        return {name: value for node in three.nodes for name, value in node.metrics().items()
                if name.startswith("cairn_group_") and 'group="seen"' in name}

    with Member(three, "seen", journal, handler=handler):
        wait_until(lambda: sum(v for k, v in lines().items() if k.startswith("cairn_group_lag_events")) >= 200,
                   20 * SLOW, "the lag")
        assert max(v for k, v in lines().items() if k.startswith("cairn_group_lag_seconds")) > 0
        behind = [p for p in client.group("seen").partitions if p.lag > 0]
        assert behind and all(p.HasField("lag_time") and p.lag_time.ToNanoseconds() > 0 for p in behind)
        assert not any(p.HasField("since_progress") for p in behind)
        go.set()
        wait_until(lambda: all(p.lag == 0 for p in client.group("seen").partitions), 30 * SLOW, "no lag")
        assert any(p.HasField("since_progress") for p in client.group("seen").partitions)
        assert not any(p.HasField("lag_time") for p in client.group("seen").partitions)
        wait_until(lambda: sum(v for k, v in lines().items() if k.startswith("cairn_group_lag_events")) == 0,
                   20 * SLOW, "no lag in the metrics")


@pytest.mark.slow
def test_a_reset_that_was_told_outlives_its_coordinator():
    with Cluster(3) as cluster, cairn.Client(cluster.endpoints, timeout=60 * SLOW, try_timeout=2 * SLOW) as client:
        for number in range(60):
            put(client, number)
        for round_ in range(3):
            name, journal = f"reset-{round_}", Journal()
            with Member(cluster, name, journal):
                wait_for(journal, total(client))  # so the coordinator's replicas have all that there is
            client.reset_group(name, cairn.END)  # nobody reads on: only the log knows
            put(client, 1000 + round_)  # behind the end
            for node in cluster.nodes:  # all at once: what isn't on disk is gone
                node.kill()
            for node in cluster.nodes:
                node.start()
            for node in cluster.nodes:
                node.wait_ready(30)
            after = Journal()
            with Member(cluster, name, after) as member:
                wait_until(lambda: len(member.processor.partitions) == 64, 30 * SLOW, "all partitions")
                wait_until(lambda: client.group(name).members, 20 * SLOW, "the member")
                wait_for(after, 1)
                wait_until(lambda: all(p.lag == 0 for p in client.group(name).partitions), 30 * SLOW, "the end")
            assert after.ids() == {f"put {1000 + round_}"}


def test_a_reset_replays_and_marks(three, client):
    journal = Journal()
    with Member(three, "replay", journal) as member:
        everything = total(client)
        wait_for(journal, everything)
        wait_until(lambda: all(p.lag == 0 for p in client.group("replay").partitions), 20 * SLOW, "acknowledged")
        assert not any(event.replayed for _, event in journal.done)
        again = Journal()
        member.processor._handler = lambda event: again.add(member, event)
        client.reset_group("replay")
        wait_for(again, everything)
        assert all(event.replayed for _, event in again.done)
        put(client, 1300)
        wait_for(again, everything + 1)
        assert [event.replayed for _, event in again.done if event.command_id == "put 1300"] == [False]


def test_a_member_that_never_acknowledges_loses_its_place(three, client):
    journal = Journal()
    stuck = threading.Event()
    with Member(three, "stuck", journal, "stuck", handler=lambda event: stuck.wait(60), ack_timeout=1.0 * SLOW) as slow:
        wait_until(lambda: len(slow.processor.partitions) == 64, 20 * SLOW, "all partitions")
        with Member(three, "stuck", journal, "quick"):
            wait_for(journal, total(client))
        stuck.set()


def test_a_filter_holds_for_the_group(three, client):
    client.append("shelf", "shelf-9", [cairn.NewEvent("Stocked", {"n": 1}), cairn.NewEvent("Sold", {"n": 1})],
                  command_id="shelf of the group")
    journal = Journal()
    only = cairn.Filter(event_types=["Sold"])
    with Member(three, "filtered", journal, "a", filter=only):
        wait_for(journal, 1)
        with Member(three, "filtered", journal, "b") as other:
            wait_until(lambda: other.error, 20 * SLOW, "a refusal")
        assert other.error.reason == "FILTER_DIFFERS"
        wait_until(lambda: all(p.lag == 0 for p in client.group("filtered").partitions), 20 * SLOW,
                   "a cursor that moves although nothing fits")
    assert [event.type for _, event in journal.done] == ["Sold"]


def say(endpoint, *requests):
    """The error that ends the stream."""
    with grpc.insecure_channel(endpoint) as channel:
        done = threading.Event()

        def messages():
            yield from requests
            done.wait(20)

        try:
            for _ in event_pb2_grpc.EventServiceStub(channel).Process(messages()):
                pass
        except grpc.RpcError as error:
            return cairn.errors.from_rpc(error)
        finally:
            done.set()
    return None


def join(**fields):
    values = {"group": "bad", "member": "m", **fields}
    return event_pb2.ProcessRequest(join=event_pb2.JoinGroup(**values))


ACKNOWLEDGE = event_pb2.ProcessRequest(acknowledge=event_pb2.Acknowledgement(partition=3, position=999_999))


@pytest.mark.parametrize("requests, reason", [
    ([ACKNOWLEDGE], "NOT_JOINED"),
    ([event_pb2.ProcessRequest()], "REQUEST_EMPTY"),
    ([join(group="")], "NAME_INVALID"),
    ([join(member="m" * 64)], "NAME_INVALID"),
    ([join(window=2**21)], "WINDOW_INVALID"),
    ([join(ack_timeout={"seconds": -3})], "ACK_TIMEOUT_INVALID"),
    ([join(filter={"partitions": [1]})], "FILTER_INVALID"),
    ([join(), join()], "ALREADY_JOINED"),
    ([join(), ACKNOWLEDGE], "NOT_DELIVERED"),
    ([join(), event_pb2.ProcessRequest(acknowledge=event_pb2.Acknowledgement(partition=64))], "NOT_DELIVERED"),
])
def test_bad_requests_are_named(three, client, requests, reason):
    for endpoint in three.endpoints:
        error = say(endpoint, *requests)
        assert error is not None and error.reason == reason, error
        assert error.code == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("fault", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow),
                                   pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_groups_outlive_nodes_and_members(fault):
    journal = Journal()
    with Cluster(3) as cluster, cairn.Client(cluster.endpoints, timeout=60 * SLOW, try_timeout=0.5 * SLOW) as client:
        with Member(cluster, "g", journal, "a"), Member(cluster, "g", journal, "b") as b:
            number, many = 0, 15 if fault == signal.SIGSTOP else 100
            for victim in cluster.nodes:
                for number in range(number, number + many):
                    put(client, number)
                victim.signal(fault)
                for number in range(number, number + many):
                    put(client, number)
                if victim is cluster.nodes[1]:
                    b.processor.stop()
                if fault == signal.SIGSTOP:
                    victim.signal(signal.SIGCONT)
                else:
                    victim.process.wait(30)
                    victim.start()
                    victim.wait_ready(30)
            wait_for(journal, total(client))
        journal.check(total(client))


def test_members_leave_a_coordinator_that_hangs():
    """The node that puts their streams through knows who coordinates now; the one that hangs says nothing."""
    with Cluster(3) as cluster, cairn.Client(cluster.endpoints, timeout=60 * SLOW) as client:
        topology = client.topology()
        owner = topology.partitions[xxhash.xxh3_64_intdigest(b"left") % 64].owner
        name = next(member.name for member in topology.members if member.node_id == owner)
        victim = next(node for node in cluster.nodes if node.name == name)
        other = next(node for node in cluster.nodes if node.name != name)
        with grpc.insecure_channel(other.endpoint) as channel:
            said = threading.Event()

            def requests():
                yield event_pb2.ProcessRequest(join=event_pb2.JoinGroup(group="left", member="m"))
                said.wait(60 * SLOW)

            call = event_pb2_grpc.EventServiceStub(channel).Process(requests())
            assert len(next(call).assignment.partitions) == 64
            victim.signal(signal.SIGSTOP)
            with pytest.raises(grpc.RpcError) as caught:
                list(call)
            said.set()
            assert cairn.errors.from_rpc(caught.value).reason == "COORDINATOR_CHANGED"


@pytest.mark.slow
def test_five_nodes_where_no_node_has_all():
    journal = Journal()
    with Cluster(5, arguments=("--partitions", "20")) as cluster:
        with cairn.Client(cluster.endpoints, timeout=60 * SLOW, try_timeout=0.5 * SLOW) as client:
            for number in range(150):
                put(client, number)
            with Member(cluster, "five", journal, "a"), Member(cluster, "five", journal, "b"):
                wait_for(journal, 150)
                cluster.nodes[2].kill()
                for number in range(150, 250):
                    put(client, number)
                wait_for(journal, 250)
        journal.check(250)


def test_a_renamed_group_is_another_group(three, client):
    old, new = Journal(), Journal()
    with Member(three, "old-name", old):
        wait_for(old, total(client))
        wait_until(lambda: all(p.lag == 0 for p in client.group("old-name").partitions), 20 * SLOW, "acknowledged")
    with Member(three, "new-name", new):
        wait_for(new, total(client))  # from its own beginning
        wait_until(lambda: all(p.lag == 0 for p in client.group("new-name").partitions), 20 * SLOW, "acknowledged")
    assert {p.lag for p in client.group("old-name").partitions} == {0}  # it stays where it was


def test_two_members_with_one_id(three, client):
    journal = Journal()
    with Member(three, "twins", journal, "same") as first:
        wait_until(lambda: len(first.processor.partitions) == 64, 20 * SLOW, "all partitions")
        with Member(three, "twins", journal, "same") as second:
            wait_until(lambda: first.error is not None or second.error is not None, 20 * SLOW, "one is sent away")
            assert (first.error or second.error).reason == "MEMBER_REPLACED"
            wait_for(journal, total(client))
