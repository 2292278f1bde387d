"""Workers over real streams: the same decisions as the module, death, and broken contracts."""

import asyncio
import json
import pathlib
import subprocess
import sys
import threading
import time

import cairn
import grpc
import pytest
from cairn.connection import open_channel
from cairn.v1 import command_pb2, command_pb2_grpc
from cluster import SLOW, Cluster, wait_until

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
EXAMPLE = ROOT / "clients" / "python" / "examples" / "aircraft.py"


def flights(tail):
    at = "2013-01-01T{:02}:00:00Z"
    for hour, type_ in enumerate(["Schedule", "Depart", "Depart", "Arrive", "Arrive", "Cancel"]):
        yield cairn.Command("aircraft", tail, type_,
                            '{"flight":"UA1","at":"%s"}' % at.format(hour + 1), id=f"{tail}-{hour}")


def play(client, tail):
    results = []
    for command in flights(tail):
        try:
            client.dispatch(command)
            results.append("ok")
        except cairn.Rejected as no:
            results.append((no.reason, no.message))
    return results, [(e.type, e.payload) for e in client.read(tail)]


def start_worker(*endpoints):
    return subprocess.Popen([sys.executable, str(EXAMPLE), *endpoints])


def wait_for_workers(cluster, count=1):
    for node in cluster.nodes:
        wait_until(lambda: node.metrics()["cairn_workers_connected"] >= count, 20 * SLOW, "a worker")


def test_module_and_worker_decide_the_same(three_without_modules):
    worker = start_worker(*three_without_modules.endpoints)
    try:
        wait_for_workers(three_without_modules)
        with cairn.Client(three_without_modules.endpoints) as client:
            by_worker = [play(client, f"N{i}") for i in range(10)]
    finally:
        worker.terminate()
        worker.wait()
    with Cluster(1) as modules, cairn.Client(modules.endpoints) as client:
        by_module = [play(client, f"N{i}") for i in range(10)]
    assert by_worker == by_module
    assert by_module[0][0][2] == ("ALREADY_IN_THE_AIR", "the aircraft is in the air with flight UA1")


def test_a_worker_at_another_node_than_the_owner_is_enough(three_without_modules):
    worker = start_worker(three_without_modules.nodes[0].endpoint)
    try:
        wait_until(lambda: three_without_modules.nodes[0].metrics()["cairn_workers_connected"] == 1,
                   20 * SLOW, "the worker")
        for node in three_without_modules.nodes:  # gossip tells every possible owner
            with cairn.Client([node.endpoint]) as client:
                wait_until(lambda: any("aircraft" in m.handlers for m in client.topology().members),
                           20 * SLOW, "the handler being known")
        with cairn.Client(three_without_modules.endpoints) as client:
            results = [play(client, f"N{i}")[0][0] for i in range(12)]
        assert results == ["ok"] * 12
    finally:
        worker.terminate()
        worker.wait()


def test_a_killed_workers_commands_run_at_another(three_without_modules):
    workers = [start_worker(*three_without_modules.endpoints) for _ in range(2)]
    try:
        wait_for_workers(three_without_modules, 2)
        done, errors = [], []

        def load(number):
            with cairn.Client(three_without_modules.endpoints, try_timeout=5) as client:
                for turn in range(60):
                    at = f"2013-01-{turn // 24 + 1:02}T{turn % 24:02}:00:00Z"
                    try:
                        client.dispatch(cairn.Command(
                            "aircraft", f"N{number}", "Schedule",
                            '{"flight":"UA1","at":"%s"}' % at))
                        done.append(1)
                    except cairn.CairnError as error:
                        errors.append(str(error))

        threads = [threading.Thread(target=load, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(done) > 60, 30 * SLOW, "some commands")
        workers[0].kill()
        for thread in threads:
            thread.join()
        assert errors == [] and len(done) == 360
        with cairn.Client(three_without_modules.endpoints) as client:
            assert [len(list(client.read(f"N{n}"))) for n in range(6)] == [60] * 6
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


class RawWorker:
    """A worker that answers whatever a test wants."""

    def __init__(self, endpoint, answer, tls=None):
        self._channel = open_channel(endpoint, tls)
        self._out = []
        self._more = threading.Condition()
        self._answer = answer
        self._send(command_pb2.HandleCommandsRequest(register=command_pb2.RegisterWorker(
            name="raw", aggregate_type="raw", command_types=["Do"])))
        self._call = command_pb2_grpc.CommandServiceStub(self._channel).HandleCommands(self._requests())
        self.registered = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _send(self, message):
        with self._more:
            self._out.append(message)
            self._more.notify()

    def _requests(self):
        while True:
            with self._more:
                while not self._out:
                    self._more.wait()
                message = self._out.pop(0)
            if message is None:
                return
            yield message

    def _run(self):
        try:
            for message in self._call:
                if message.HasField("registered"):
                    self.registered.set()
                if message.HasField("execute"):
                    result = self._answer(message.execute)
                    if result is not None:
                        result.execution_id = message.execute.execution_id
                        self._send(command_pb2.HandleCommandsRequest(result=result))
        except grpc.RpcError:
            pass

    def close(self):
        self._call.cancel()
        self._channel.close()


def test_a_workers_snapshot_is_where_the_next_worker_starts(one):
    seen = []

    def answer(execute):
        seen.append(execute)
        result = command_pb2.ExecutionResult(events=[{"type": "Done", "json": "1"}])
        if execute.sequence == 4:
            result.snapshot.sequence = 5
            result.snapshot.json = '{"saved":5}'
        return result

    with cairn.Client(one.endpoints) as client:
        for part in (7, 1):
            worker = RawWorker(one.endpoints[0], answer)
            assert worker.registered.wait(10 * SLOW)
            for _ in range(part):
                client.dispatch(cairn.Command("raw", "saved", "Do"))
            worker.close()
            wait_until(lambda: one.nodes[0].metrics()["cairn_workers_connected"] == 0, 20 * SLOW,
                       "the worker being gone")
        assert [len(e.events) for e in seen[:7]] == [0] * 7  # it had seen them all
        assert seen[7].snapshot.json == '{"saved":5}' and seen[7].snapshot.sequence == 5
        assert [e.sequence for e in seen[7].events] == [5, 6] and seen[7].events_from == 5
        assert [e.sequence for e in client.read("saved")] == list(range(8))


@pytest.mark.parametrize("readable", [True, False])
def test_the_sdks_worker_goes_on_from_its_snapshot_or_without(one, readable):
    class Tally:
        aggregate_type = f"tally {readable}"
        commands = ("Add",)
        snapshot_every = 10
        evolved = 0

        def initial(self, aggregate_id):
            return 0

        def decide(self, state, command):
            yield cairn.NewEvent("Added", {"n": state})
            yield cairn.Reply("Count", {"n": state + 1})

        def evolve(self, state, event):
            self.evolved += 1
            assert event.json()["n"] == state if isinstance(event, cairn.Event) else True
            return state + 1

        def to_snapshot(self, state):
            return {"n": state}

        def from_snapshot(self, aggregate_id, payload):
            if not readable:
                raise ValueError("written by another version")
            return json.loads(payload)["n"]

    def run(count):
        tally = Tally()
        worker = cairn.Worker(one.endpoints, tally)
        ready = threading.Event()
        loop = asyncio.new_event_loop()

        def serve():
            loop.call_soon(ready.set)
            loop.run_until_complete(worker.serve())

        thread = threading.Thread(target=serve)
        thread.start()
        ready.wait()
        try:
            wait_until(lambda: one.nodes[0].metrics()["cairn_workers_connected"] == 1, 20 * SLOW,
                       "the worker")
            with cairn.Client(one.endpoints) as client:
                for _ in range(count):
                    last = client.dispatch(cairn.Command(Tally.aggregate_type,
                                                         f"tally {readable}", "Add"))
        finally:
            loop.call_soon_threadsafe(worker.stop)
            thread.join()
        wait_until(lambda: one.nodes[0].metrics()["cairn_workers_connected"] == 0, 20 * SLOW,
                   "the worker being gone")
        return tally.evolved, last

    assert run(24)[0] == 24
    evolved, last = run(1)
    assert json.loads(last.reply.payload) == {"n": 25}
    assert evolved == (5 if readable else 25)


@pytest.mark.parametrize("name, result, reason", [
    ("failure", command_pb2.ExecutionResult(failure="boom"), "HANDLER_FAILED"),
    ("event without a type", command_pb2.ExecutionResult(events=[{}]), "HANDLER_BROKE_CONTRACT"),
    ("too many events", command_pb2.ExecutionResult(events=[{"type": "E"}] * 2000),
     "HANDLER_BROKE_CONTRACT"),
    ("huge event", command_pb2.ExecutionResult(events=[{"type": "E", "data": b"x" * (3 << 20)}]),
     "HANDLER_BROKE_CONTRACT"),
    ("snapshot of the future", command_pb2.ExecutionResult(snapshot={"sequence": 9, "json": "1"}),
     "HANDLER_BROKE_CONTRACT"),
])
def test_a_worker_that_breaks_the_contract_fails_one_command(one, name, result, reason):
    worker = RawWorker(one.endpoints[0], lambda execute: result)
    try:
        assert worker.registered.wait(10 * SLOW)
        with cairn.Client(one.endpoints) as client:
            with pytest.raises(cairn.CairnError) as error:
                client.dispatch(cairn.Command("raw", f"broken {name}", "Do"))
            assert error.value.reason == reason
            with pytest.raises(cairn.NotFound):
                list(client.read(f"broken {name}"))
    finally:
        worker.close()


def test_a_silent_worker_costs_the_deadline_of_one_command(one):
    worker = RawWorker(one.endpoints[0], lambda execute: None)
    try:
        assert worker.registered.wait(10 * SLOW)
        with cairn.Client(one.endpoints, try_timeout=0.5) as client:
            started = time.monotonic()
            with pytest.raises(cairn.Unavailable):
                client.dispatch(cairn.Command("raw", "silent", "Do"), timeout=1.0)
            assert time.monotonic() - started < 5
            client.dispatch(cairn.Command("echo", "silent-neighbour", "Put", "x"))
    finally:
        worker.close()


# ---- snapshots by the API ----

@pytest.mark.slow
def test_snapshots_are_read_written_and_deleted_at_any_node():
    with Cluster(5, modules=("aircraft",), arguments=("--partitions", "20", "--snapshot-every", "4")) as cluster, \
            cairn.Client(cluster.endpoints, timeout=60 * SLOW, try_timeout=5 * SLOW) as client:
        play(client, "N1")
        owners = [cairn.Client([node.endpoint], timeout=30 * SLOW) for node in cluster.nodes]
        made = [one.read_snapshot("N1") for one in owners]
        assert all(snapshot == made[0] for snapshot in made)
        assert (made[0].aggregate_type, made[0].sequence) == ("aircraft", 4)
        with pytest.raises(cairn.NotFound) as error:
            client.read_snapshot("N2")
        assert error.value.reason == "SNAPSHOT_NOT_FOUND"
        for one in owners:
            one.delete_snapshot("aircraft", "N1")
            with pytest.raises(cairn.NotFound):
                owners[0].read_snapshot("N1")
            one.write_snapshot(made[0])
            assert owners[0].read_snapshot("N1") == made[0]
        with pytest.raises(cairn.CairnError) as error:
            client.write_snapshot(cairn.Snapshot("aircraft", "N1", 99, b"x"))
        assert error.value.reason == "SNAPSHOT_INVALID"
        with pytest.raises(cairn.CairnError) as error:
            client.write_snapshot(cairn.Snapshot("aircraft", "N1", 0, b"x"))
        assert error.value.reason == "SNAPSHOT_INVALID"
        with pytest.raises(cairn.NotFound):
            client.write_snapshot(cairn.Snapshot("aircraft", "nobody", 1, b"x"))
        with pytest.raises(cairn.CairnError) as error:
            client.write_snapshot(cairn.Snapshot("tree", "N1", 1, b"x"))
        assert error.value.reason == "AGGREGATE_TYPE_MISMATCH"
        assert client.read_snapshot("N1") == made[0]
        cluster.nodes[0].kill()  # replicated
        survivors = [one for node, one in zip(cluster.nodes, owners) if node is not cluster.nodes[0]]
        assert all(one.read_snapshot("N1") == made[0] for one in survivors)
        for one in owners:
            one.close()
