"""Start, memory and idle CPU of one node and three.

    tools/bench/figures.py [--partitions N]
"""

import os
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from cluster import Cluster  # noqa: E402

TICK = os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    for line in open(f"/proc/{pid}/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def cpu_seconds(pid: int) -> float:
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def main() -> None:
    settings = tuple(sys.argv[1:])
    starts = []
    for _ in range(5):
        cluster = Cluster(1, arguments=settings)
        begun = time.monotonic()
        cluster.start()
        starts.append(time.monotonic() - begun)
        if len(starts) == 5:
            time.sleep(2)
            print(f"idle node: {rss_mib(cluster.nodes[0].process.pid):.0f} MiB resident")
        cluster.close()
    print(f"start of one node to ready, empty disk: median {statistics.median(starts) * 1e3:.0f} ms")
    with Cluster(3, arguments=settings) as cluster:
        cluster.wait_balanced(60)
        time.sleep(2)
        pids = [node.process.pid for node in cluster.nodes]
        before = sum(map(cpu_seconds, pids))
        time.sleep(20)
        used = sum(map(cpu_seconds, pids)) - before
        print(f"idle three-node cluster: {used / 20 * 100:.1f}% of one core in all, "
              f"{max(map(rss_mib, pids)):.0f} MiB resident at most")


if __name__ == "__main__":
    main()
