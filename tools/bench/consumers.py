#!/usr/bin/env python3
"""What consumers cost and get, one run each on this machine: events out of the store in process, over Subscribe, the
delay from commit to subscriber under load, and what a thousand idle subscriptions take.

    tools/bench/consumers.py [EVENTS]
"""

import pathlib
import re
import struct
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tools" / "bench")]

import cairn  # noqa: E402
import grpc  # noqa: E402
from cairn.v1 import event_pb2, event_pb2_grpc  # noqa: E402
from cluster import BIN, Cluster, wait_until  # noqa: E402
from processes import cpu_seconds, memory_mib  # noqa: E402

LOAD = 5000  # commands each second, for the delay


def in_process(events):
    out = subprocess.run([BIN / "cairn-bench-read", str(events)], capture_output=True, text=True, check=True).stdout
    print("in process, one partition:")
    print("".join(f"  {line}\n" for line in out.splitlines()), end="", flush=True)


def over_grpc(events):
    with Cluster(1, modules=("echo",)) as cluster:
        endpoint = cluster.nodes[0].endpoint
        with cairn.Client([endpoint]) as client:
            while sum(client.count_events(stale=True).values() or [0]) < events:
                subprocess.run([BIN / "cairn-bench", "--in-flight", "256", "--seconds", "3", "--bytes", "256", endpoint],
                               capture_output=True, check=True)
        for _ in range(3):
            out = subprocess.run([BIN / "cairn-bench", "subscribe", endpoint], capture_output=True, text=True, check=True)
            print(f"Subscribe, all partitions of one node: {out.stdout.strip()}", flush=True)


def delays(nodes=3, seconds=10):
    """From the owner's commit to the subscriber, by the subscriber's clock, which is the same machine's."""
    with Cluster(nodes, modules=("echo",)) as cluster:
        out = subprocess.Popen([BIN / "cairn-bench", "subscribe", "--live", str(seconds), cluster.nodes[-1].endpoint],
                               stdout=subprocess.PIPE, text=True)
        time.sleep(0.5)
        load = subprocess.run([BIN / "cairn-bench", "--in-flight", "64", "--rate", str(LOAD), "--seconds", str(seconds),
                               "--bytes", "256", *cluster.endpoints], capture_output=True, text=True, check=True)
        print(f"{nodes} node(s), load: {load.stdout.strip().splitlines()[-1]}")
        print(f"delay from commit to subscriber: {out.communicate()[0].strip()}", flush=True)


def idle(count=1000, seconds=20):
    with Cluster(1, modules=("echo",)) as cluster:
        node = cluster.nodes[0]
        with cairn.Client(cluster.endpoints) as client:
            for number in range(200):
                client.dispatch(cairn.Command("echo", f"i-{number % 50}", "Put", {}))
        time.sleep(1)
        before = memory_mib(node.process.pid)
        channels = [grpc.insecure_channel(node.endpoint, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(10)]
        stop = threading.Event()
        calls = []
        for number in range(count):
            def requests():
                yield event_pb2.SubscribeRequest(start=event_pb2.StartSubscription(
                    **{"from": event_pb2.LogStart(end=event_pb2.LogEnd())}))
                stop.wait()
            calls.append(event_pb2_grpc.EventServiceStub(channels[number % 10]).Subscribe(requests()))
        wait_until(lambda: node.metrics()["cairn_subscriptions"] == count, 60, f"{count} subscriptions")
        time.sleep(3)
        begun = time.monotonic()
        first = cpu_seconds(node.process.pid)
        time.sleep(seconds)
        share = (cpu_seconds(node.process.pid) - first) / (time.monotonic() - begun) * 100
        print(f"{count} idle subscriptions: {memory_mib(node.process.pid) - before:.0f} MiB more ({before:.0f} MiB before), "
              f"{share:.1f} % of a core", flush=True)
        stop.set()
        for call in calls:
            call.cancel()


def long_aggregate(events=1_000_000, tail=1000):
    """The first command to an aggregate of so many events, on a node that has just started."""
    with Cluster(1, modules=("bank",), arguments=("--snapshot-every", "0", "--snapshot-after", "0s")) as cluster:
        node = cluster.nodes[0]

        def first_command(what):
            node.stop()
            node.start()
            node.wait_ready()
            with cairn.Client(cluster.endpoints, timeout=120, try_timeout=120) as client:
                client.dispatch(cairn.Command("account", "warm", "Deposit", '{"amount":1}'))
                begun = time.monotonic()
                reply = client.dispatch(cairn.Command("account", "long", "Deposit", '{"amount":1}')).reply
                print(f"first command to an aggregate of {events:,} events, {what}: "
                      f"{(time.monotonic() - begun) * 1e3:.0f} ms", flush=True)
                return int(re.search(rb"-?\d+", reply.payload if isinstance(reply.payload, bytes)
                                     else reply.payload.encode()).group())

        with cairn.Client(cluster.endpoints, timeout=60, try_timeout=30) as client:
            for number in range(0, events - tail, 1000):
                client.append("account", "long", [cairn.NewEvent("Deposited", '{"amount":1}')] * 1000)
            client.write_snapshot(cairn.Snapshot("account", "long", events - tail, struct.pack("<q", events - tail)))
            client.append("account", "long", [cairn.NewEvent("Deposited", '{"amount":1}')] * tail)
        assert first_command(f"from a snapshot and {tail:,} behind it") == events + 1
        with cairn.Client(cluster.endpoints) as client:
            client.delete_snapshot("account", "long")
        assert first_command("without a snapshot") == events + 2


def main():
    events = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    in_process(events)
    over_grpc(events)
    delays(1)
    delays(3)
    idle()
    long_aggregate()


if __name__ == "__main__":
    main()
