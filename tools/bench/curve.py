#!/usr/bin/env python3
"""Latency against load, open loop: commands are due at a rate, and are timed from when they were due.

    tools/bench/curve.py [SECONDS]      writes build/bench-latency.svg and prints the table
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tools" / "bench")]

import chart  # noqa: E402
from cluster import Cluster  # noqa: E402
from loads import cairn_bench  # noqa: E402

SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def main():
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    series = {}
    for nodes in 1, 3:
        with Cluster(nodes, modules=("echo",)) as cluster:
            cluster.wait_balanced()
            most = cairn_bench("dispatch", "--in-flight", 256, "--seconds", seconds, *cluster.endpoints)["per_second"]
            print(f"{nodes} node(s): {most:,.0f}/s at 256 in flight", flush=True)
            p50, p99 = [], []
            for share in SHARES:
                said = cairn_bench("dispatch", "--rate", int(most * share), "--seconds", seconds, *cluster.endpoints)
                p50.append((said["per_second"], said["p50_us"] / 1e3))
                p99.append((said["per_second"], said["p99_us"] / 1e3))
                print(f"  {share:4.0%}: {said['per_second']:9,.0f}/s, p50 {p50[-1][1]:7.2f} ms, p99 {p99[-1][1]:7.2f} ms, "
                      f"longest {said['longest_us'] / 1e3:8.2f} ms", flush=True)
            series |= {f"{nodes} node(s), p99": p99, f"{nodes} node(s), p50": p50}
    path = ROOT / "build" / "bench-latency.svg"
    chart.draw(path, "Latency against load (open loop)", "commands/s", "ms", series, log_y=True)
    print(f"picture: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
