"""Who asks too much, too often, too slowly or in vain: others are served meanwhile, and afterwards."""

import contextlib
import os
import queue
import resource
import signal
import ssl
import subprocess
import sys
import threading
import time

import cairn
import grpc
import pytest
from cairn import errors
from cairn.connection import open_channel
from cairn.v1 import command_pb2, command_pb2_grpc, event_pb2, event_pb2_grpc
from cluster import BIN, SLOW, Cluster, wait_until
from http2 import ACK, CONTINUATION, ENHANCE_YOUR_CALM, GOAWAY, HEADERS, PING, PREFACE, SETTINGS, Connection, frame
from load import put
from pki import Pki
from test_workers import RawWorker


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def node(pki):
    """Makes one node with these arguments, with TLS or without."""
    made = []

    def make(*arguments, tls=False):
        cluster = Cluster(1, modules=("echo",), arguments=arguments)
        made.append(pki.secure(cluster) if tls else cluster)
        return cluster.start().nodes[0]
    yield make
    for cluster in made:
        cluster.close()


def is_served(node, tls=None):
    with cairn.Client([node.endpoint], timeout=20 * SLOW, tls=tls) as client:
        client.dispatch(put("served"))
        return True


class Caller:
    """One identity's calls, without the SDK's repeats."""

    def __init__(self, node, tls):
        self.channel = open_channel(node.endpoint, tls)
        self.commands = command_pb2_grpc.CommandServiceStub(self.channel)
        self.events = event_pb2_grpc.EventServiceStub(self.channel)

    def command(self, kind, aggregate, command="Do"):
        return command_pb2.Command(aggregate_type=kind, aggregate_id=aggregate, type=command, json='"x"')

    def start(self, kind, aggregate, command="Do", timeout=60):
        return self.commands.Dispatch.future(
            command_pb2.DispatchRequest(command=self.command(kind, aggregate, command)), timeout=timeout * SLOW)

    def put(self, aggregate="a"):
        """None when it was done, else the error."""
        return error_of(self.start("echo", aggregate, "Put"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()


class Subscription:
    """Open until it is closed, or refused."""

    def __init__(self, caller):
        asks = queue.SimpleQueue()
        asks.put(event_pb2.SubscribeRequest(start=event_pb2.StartSubscription()))
        self.call = caller.events.Subscribe(iter(asks.get, None))
        self.refused = None
        try:
            next(self.call)  # it stands
        except grpc.RpcError as error:
            self.refused = errors.from_rpc(error).reason


def error_of(call):
    try:
        call.result(timeout=60 * SLOW)
        return None
    except grpc.RpcError as error:
        return errors.from_rpc(error)


# ---- one identity ----

def test_one_identity_has_only_so_many_calls_in_flight(node, pki):
    node = node("--identity-in-flight", "4", tls=True)
    executions = []
    worker = RawWorker(node.endpoint, executions.append, pki.tls("client", "worker"))  # never answers
    assert worker.registered.wait(10 * SLOW)
    with Caller(node, pki.tls("client", "greedy")) as greedy, Caller(node, pki.tls("client", "other")) as other:
        held = [greedy.start("raw", f"held-{i}", timeout=5 / SLOW) for i in range(4)]
        wait_until(lambda: len(executions) == 4, 10 * SLOW, "all four are there")
        refused = greedy.put()
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "IN_FLIGHT_LIMITED")
        assert "cairn://cairn/client/greedy has 4 calls in flight already" in refused.message and refused.retry_after > 0
        assert other.put() is None
        # Commands in a stream count as well, and the stream stays open.
        answers = greedy.commands.DispatchStream(iter([command_pb2.DispatchStreamRequest(
            command=greedy.command("echo", "in-stream", "Put"))]), timeout=60 * SLOW)
        assert errors.from_status(next(answers).error).reason == "IN_FLIGHT_LIMITED"
        assert all(error_of(call) is not None for call in held)  # their deadline
        tries = []
        wait_until(lambda: tries.append(greedy.put()) or tries[-1] is None, 30 * SLOW, "there is room again")
        assert all(early.reason == "IN_FLIGHT_LIMITED" for early in tries[:-1])
        worker.close()
        assert node.metrics()["cairn_calls_limited_total"] == 2 + len(tries[:-1])


def test_one_identity_has_only_so_many_streams(node, pki):
    node = node("--identity-streams", "3", tls=True)

    with Caller(node, pki.tls("client", "greedy")) as greedy, Caller(node, pki.tls("client", "other")) as other:
        standing = [Subscription(greedy) for _ in range(3)]
        assert [s.refused for s in standing] == [None] * 3
        assert Subscription(greedy).refused == "STREAMS_LIMITED"
        assert greedy.put() is None  # calls are counted apart
        standing.append(Subscription(other))  # kept: one that nobody has is cancelled
        assert standing[-1].refused is None
        standing[0].call.cancel()

        def in_its_place():
            standing.append(Subscription(greedy))
            return standing[-1].refused is None
        wait_until(in_its_place, 10 * SLOW, "another in its place")
        assert Subscription(greedy).refused == "STREAMS_LIMITED"


def test_one_identity_asks_only_so_often(node, pki):
    """Two certificates of one identity have one allowance; another identity has its own."""
    node = node("--identity-rate", "20", tls=True)
    first = pki.strange("rate-1", "cairn://cairn/client/often")
    second = pki.strange("rate-2", "cairn://cairn/client/often")
    with Caller(node, first) as one, Caller(node, second) as two, Caller(node, pki.tls("client", "other")) as other:
        started = time.monotonic()
        results = [(one if i % 2 else two).put(f"r{i}") for i in range(200)]
        took = time.monotonic() - started
        done = sum(error is None for error in results)
        assert 20 <= done <= 20 + 20 * took + 1 and done < 200
        refused = next(error for error in results if error is not None)
        assert refused.reason == "RATE_LIMITED" and 0 < refused.retry_after <= 0.06
        assert other.put() is None
    with cairn.Client([node.endpoint], timeout=20 * SLOW, tls=first) as client:  # who waits as told gets through
        for i in range(30):
            client.dispatch(put(f"patient-{i}"))


def latencies(node, tls, count):
    """Of a steady client, in milliseconds, ascending."""
    took = []
    with Caller(node, tls) as caller:
        assert caller.put("warm") is None
        for i in range(count):
            started = time.monotonic()
            assert caller.put(f"steady-{i % 20}") is None
            took.append((time.monotonic() - started) * 1000)
    return sorted(took)


@contextlib.contextmanager
def flood(node, tls, in_flight):
    """The benchmark tool, with all it has."""
    process = subprocess.Popen([BIN / "cairn-bench", "--ca", tls.ca, "--cert", tls.certificate, "--key", tls.key,
                                "--seconds", "600", "--in-flight", str(in_flight), node.endpoint],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_flood_by_one_identity_leaves_others_served(node, pki):
    node = node("--identity-in-flight", "128", tls=True)
    steady, greedy = pki.tls("client", "steady"), pki.tls("client", "greedy")
    quiet = latencies(node, steady, 300)
    with flood(node, greedy, 4096):
        wait_until(lambda: node.metrics()["cairn_calls_limited_total"] > 20, 20, "the flood is there")
        flooded = latencies(node, steady, 300)
    print(f"p50 {quiet[150]:.2f} -> {flooded[150]:.2f} ms, p99 {quiet[297]:.2f} -> {flooded[297]:.2f} ms, limited "
          f"{node.metrics()['cairn_calls_limited_total']:.0f}")
    assert flooded[297] < 250
    log = node.log().count("IN_FLIGHT_LIMITED") + node.log().count("calls in flight already")
    assert log < 300  # a flood fills no log


# ---- connections ----

def test_too_many_connections_of_one_address_are_let_go(node):
    node = node("--connections-per-address", "30")
    with contextlib.ExitStack() as all_of_them:
        for _ in range(100):
            all_of_them.enter_context(Connection(node.endpoint, greet=False))
        wait_until(lambda: node.metrics()["cairn_connections_refused_total"] >= 70, 10 * SLOW, "the rest is let go")
        other = all_of_them.enter_context(Connection(node.endpoint, source="127.0.0.9"))
        assert next(other.frames())[0] == SETTINGS  # another address is served
    assert is_served(node)
    assert "connections were let go" in node.log()


def test_a_node_without_a_file_left_goes_on(node):
    """gRPC's own server would never accept again."""
    node = node()
    files = len(os.listdir(f"/proc/{node.process.pid}/fd"))
    resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE, (files + 20, files + 20))
    crowd = []
    for _ in range(200):
        with contextlib.suppress(OSError):
            crowd.append(Connection(node.endpoint, greet=False))
    wait_until(lambda: len(os.listdir(f"/proc/{node.process.pid}/fd")) >= files + 19, 10 * SLOW, "no file is left")
    for connection in crowd:
        connection.close()
    assert is_served(node)


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True])
def test_who_is_slow_over_its_handshake_is_let_go(node, tls):
    """Says nothing; says half of it; says it a byte at a time."""
    node = node(tls=tls)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if tls:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            context.wrap_bio(incoming, outgoing).do_handshake()
        hello = outgoing.read()
    else:
        hello = PREFACE + frame(SETTINGS)
    silent, half, drips = (Connection(node.endpoint, greet=False) for _ in range(3))
    started = time.monotonic()
    half.send(hello[:len(hello) // 2])

    def drip():
        with contextlib.suppress(OSError):
            for byte in hello[:-1]:
                drips.send(bytes([byte]))
                time.sleep(1)
    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    for connection in (silent, half, drips):
        connection.goodbye()
        connection.close()
    assert time.monotonic() - started < 25 * SLOW
    thread.join()


@pytest.mark.slow
def test_who_no_longer_answers_is_let_go(node):
    """Half-open: its machine takes the packets, and nobody is there. What it had open ends."""
    node = node()
    code = f"""
import cairn
for event in cairn.Client([{node.endpoint!r}]).subscribe(): pass
"""
    client = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: node.metrics()["cairn_subscriptions"] == 1, 20 * SLOW, "it subscribes")
        client.send_signal(signal.SIGSTOP)
        wait_until(lambda: node.metrics()["cairn_subscriptions"] == 0, 40 * SLOW, "it is let go")
    finally:
        client.send_signal(signal.SIGCONT)
        client.kill()
        client.wait()
    assert is_served(node)


def test_too_many_pings_end_the_connection(node):
    node = node()
    with Connection(node.endpoint) as hasty:
        with contextlib.suppress(OSError):
            for i in range(50):
                hasty.send(frame(PING, payload=i.to_bytes(8, "big")))
        assert hasty.goodbye() == ENHANCE_YOUR_CALM
    assert is_served(node)


def test_a_connection_without_calls_is_closed(node):
    node = node("--connection-idle", "1s")
    with Connection(node.endpoint) as idle:
        started = time.monotonic()
        for kind, _, _, payload in idle.frames():
            if kind == GOAWAY:
                break
            if kind == PING:
                idle.send(frame(PING, ACK, payload=payload))
        assert kind == GOAWAY and time.monotonic() - started < 20 * SLOW
    assert is_served(node)


@pytest.mark.slow  # a sanitizer has a memory of its own
def test_endless_headers_cost_bounded_memory(node):
    node = node("--connection-memory", "16MiB")
    assert is_served(node)
    before = resident_kib(node)
    block = b"\x00\x03abc\x7f\xff\x7f" + b"x" * 16000  # a literal field that goes on
    with Connection(node.endpoint, timeout=20) as endless:
        with pytest.raises(OSError):  # it is let go, long before a quarter of a GB
            endless.send(frame(HEADERS, 0, 1, block[:16000]))
            for _ in range(16000):
                endless.send(frame(CONTINUATION, 0, 1, block[:16000]))
    assert is_served(node)
    assert resident_kib(node) - before < 160 << 10


def resident_kib(node):
    lines = open(f"/proc/{node.process.pid}/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])
