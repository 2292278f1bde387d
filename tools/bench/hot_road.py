#!/usr/bin/env python3
"""What one command costs a node: syncs, writes, CPU, context switches, allocations (all of them, gRPC's as well).

    tools/bench/hot_road.py [SECONDS]
"""

import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tools" / "bench")]

from cluster import Cluster  # noqa: E402
from loads import cairn_bench  # noqa: E402
from processes import cpu_seconds  # noqa: E402

COUNTED = ("cairn_store_syncs_total", "cairn_store_batches_total", "cairn_link_frames_sent_total")


def bench(cluster, workload, in_flight, seconds):
    return cairn_bench(workload, "--in-flight", in_flight, "--seconds", seconds, *cluster.endpoints)


def looked_at(node):
    task = pathlib.Path(f"/proc/{node.process.pid}")
    switches = sum(int(n) for thread in (task / "task").iterdir()
                   for n in re.findall(r"ctxt_switches:\s+(\d+)", (thread / "status").read_text()))
    metrics = node.metrics()
    return {"cpu_us": cpu_seconds(node.process.pid) * 1e6, "switches": switches,
            "commands": sum(v for k, v in metrics.items() if k.startswith("cairn_commands_total")),
            **{name: metrics[name] for name in COUNTED}}


def costs(nodes, workload, in_flight, seconds):
    with Cluster(nodes, modules=("echo",)) as cluster:
        cluster.wait_balanced()
        bench(cluster, workload, in_flight, 1)
        before = [looked_at(node) for node in cluster.nodes]
        said = bench(cluster, workload, in_flight, seconds)
        after = [looked_at(node) for node in cluster.nodes]
        sums = {k: sum(b[k] - a[k] for a, b in zip(before, after)) for k in before[0]}
        count = sums["commands"]
        print(f"{nodes} node(s), {workload}, {in_flight} in flight, {said['per_second']:,.0f}/s; of all nodes, for one command: "
              f"{sums['cairn_store_syncs_total'] / count:.3f} syncs, {sums['cairn_store_batches_total'] / count:.3f} batches, "
              f"{sums['cairn_link_frames_sent_total'] / count:.3f} frames, {sums['cpu_us'] / count:.1f} us of CPU, "
              f"{sums['switches'] / count:.2f} context switches", flush=True)


def allocations(workload, in_flight, seconds):
    """By the allocator's own count, at the end of a node that had few commands and one that had many."""
    counts = []
    for length in 1, seconds:
        with Cluster(1, modules=("echo",)) as cluster:
            node = cluster.nodes[0]
            node.stop()
            node.environment["MALLOC_CONF"] = "stats_print:true,stats_print_opts:J"
            node.start()
            node.wait_ready()
            bench(cluster, workload, in_flight, length)
            commands = looked_at(node)["commands"]
            node.stop()
            stats = json.loads(re.search(r'^\{"jemalloc".*$', node.log(), re.M).group())["jemalloc"]["stats.arenas"]["merged"]
            counts.append((commands, stats["small"]["nrequests"] + stats["large"]["nrequests"]))
    (few, few_made), (many, many_made) = counts
    print(f"one node, {workload}, {in_flight} in flight: {(many_made - few_made) / (many - few):.1f} allocations a command "
          f"({many - few:,.0f} commands)", flush=True)


def main():
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    for nodes in 1, 3:
        for in_flight in 1, 64, 256:
            costs(nodes, "dispatch", in_flight, seconds)
    for workload in "dispatch", "dispatch-unary":
        allocations(workload, 64, seconds)


if __name__ == "__main__":
    main()
