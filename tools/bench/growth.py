#!/usr/bin/env python3
"""What stored events cost: throughput with few and with many, time to start, memory. One node, one run.

    tools/bench/growth.py [EVENTS [MEMORY]]      writes build/bench-growth.svg, throughput against events stored
"""

import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tools" / "bench")]

import chart  # noqa: E402
from cluster import Cluster  # noqa: E402
from loads import cairn_bench  # noqa: E402
from processes import cpu_seconds, memory_mib  # noqa: E402


def rates(cluster, what):
    found = {}
    for in_flight in 64, 256:
        found[in_flight] = statistics.median(
            cairn_bench("dispatch", "--in-flight", in_flight, "--seconds", 4, *cluster.endpoints)["per_second"] for _ in range(3))
    print(f"{what}: " + ", ".join(f"{rate:,.0f}/s at {n} in flight" for n, rate in found.items()), flush=True)
    return found


def settle(node):
    """Until the store has merged what the load, much faster than commands come, has left to it."""
    begun = time.monotonic()
    while True:
        before = cpu_seconds(node.process.pid)
        time.sleep(2)
        if cpu_seconds(node.process.pid) - before < 0.2 or time.monotonic() - begun > 300:
            break
    print(f"settled after {time.monotonic() - begun:.0f} s", flush=True)


STEPS = 10


def fill(cluster, events):
    """Into as many aggregates as before, a hundred by a call. Gives commands/s against events stored, in so many steps."""
    appended = 0
    curve = [(0.0, cairn_bench("dispatch", "--in-flight", 256, "--seconds", 3, *cluster.endpoints)["per_second"])]
    while appended < events:
        said = cairn_bench("append", "--events", 100, "--in-flight", 16, "--seconds", 10, *cluster.endpoints)
        appended += said["done"] * 100
        print(f"\r{appended:,} events appended, {said['per_second'] * 100:,.0f}/s   ", end="", flush=True)
        if appended >= events * len(curve) / STEPS:
            print()
            settle(cluster.nodes[0])
            said = cairn_bench("dispatch", "--in-flight", 256, "--seconds", 3, *cluster.endpoints)
            curve.append((appended / 1e6, said["per_second"]))
    print()
    return curve


def start(node, how):
    if how == "kill -9":
        node.kill()
    else:
        node.stop(60)
    begun = time.monotonic()
    node.start()
    node.wait_ready()
    print(f"start after {how}: {(time.monotonic() - begun) * 1e3:.0f} ms", flush=True)


def main():
    events = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000
    settings = ("--memory", sys.argv[2]) if len(sys.argv) > 2 else ()
    with Cluster(1, modules=("echo",), arguments=settings) as cluster:
        node = cluster.nodes[0]
        few = rates(cluster, "few events")
        curve = fill(cluster, events)
        rates(cluster, f"{events:,} events more, at once")
        settle(node)
        many = rates(cluster, f"{events:,} events more, settled")
        for in_flight, rate in many.items():
            print(f"  ratio at {in_flight} in flight: {rate / few[in_flight]:.2f}")
        print(f"resident at most: {memory_mib(node.process.pid, 'VmHWM'):.0f} MiB", flush=True)
        for how in "SIGTERM", "kill -9":
            start(node, how)
        disk = sum(path.stat().st_size for path in pathlib.Path(node.folder).rglob("*") if path.is_file())
        path = ROOT / "build" / "bench-growth.svg"
        chart.draw(path, "Commands against events stored (256 in flight)", "million events", "commands/s", {"one node": curve})
        print(f"picture: {path.relative_to(ROOT)}")
        print(f"on disk: {disk / (1 << 20):,.0f} MiB; resident after the start: {memory_mib(node.process.pid, 'VmHWM'):.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
