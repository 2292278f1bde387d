"""What it costs when a node with nothing joins one that has a lot: its memory, the pace, and others' commands.

    build/venv/bin/python tools/bench/join.py [MEBIBYTES [LIMIT_MEBIBYTES_PER_SECOND]]
"""

import pathlib
import re
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tools" / "bench")]

import cairn  # noqa: E402
from cluster import BIN, Cluster, wait_until  # noqa: E402
from figures import rss_mib  # noqa: E402

PAYLOAD = 32 << 10


def bench(endpoint, seconds, payload, *more):
    """p99 in milliseconds, and commands a second."""
    done = subprocess.run([BIN / "cairn-bench", "--seconds", str(seconds), "--bytes", str(payload), *more, endpoint],
                          capture_output=True, text=True, check=True)
    found = re.search(r"([\d.]+) commands/s.* p99 ([\d.]+) ms", done.stdout)
    return float(found[2]), float(found[1])


def main():
    mebibytes = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    limit = int(sys.argv[2]) if len(sys.argv) > 2 else 32
    with Cluster(1, arguments=("--replication-factor", "2", "--balance-after", "500ms",
                               "--transfer-limit", f"{limit}MiB")) as cluster:
        first = cluster.nodes[0]

        def stored():
            return sum(first.metrics()[f"cairn_store_{kind}_bytes"] for kind in ("disk",)) / (1 << 20)
        while stored() < mebibytes:
            bench(first.endpoint, 5, PAYLOAD, "--in-flight", "64", "--aggregates", "20000")
            print(f"stored {stored():.0f} MiB", file=sys.stderr)
        time.sleep(3)
        load = ("--rate", "400", "--in-flight", "16")
        before, _ = bench(first.endpoint, 8, 256, *load)
        second = cluster.add("n2")
        began = time.monotonic()
        second.start()
        second.wait_ready()
        peak, took, slowest = [0.0], [0.0], []

        def watch():
            while True:
                peak[0] = max(peak[0], rss_mib(second.process.pid))
                if joined():
                    took[0] = time.monotonic() - began
                    return
                time.sleep(0.05)
        def joined():
            with cairn.Client([first.endpoint], timeout=20) as client:
                return all(len(p.replicas) == 2 and not p.standbys for p in client.topology().partitions)
        watcher = threading.Thread(target=watch)
        watcher.start()
        while watcher.is_alive():
            slowest.append(bench(first.endpoint, 5, 256, *load)[0])
        taken = second.metrics()["cairn_partition_range_bytes_total"] / (1 << 20)
        after, _ = bench(first.endpoint, 8, 256, *load)
        slowest.sort()
        print(f"{stored():.0f} MiB stored; {taken:.0f} MiB of ranges in {took[0]:.1f} s: {taken / took[0]:.1f} MiB/s of {limit} "
              f"allowed; peak RSS of the new node {peak[0]:.0f} MiB; p99 of 400 commands/s {before:.2f} ms before, "
              f"{slowest[len(slowest) // 2]:.2f} ms while it joined (worst of {len(slowest)} five-second windows "
              f"{slowest[-1]:.2f}), {after:.2f} on both nodes after it")


if __name__ == "__main__":
    main()
