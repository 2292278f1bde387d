"""Start, memory and idle CPU of one node and three.

    tools/bench/figures.py [--partitions N]
"""

import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tools" / "bench")]

from cluster import Cluster  # noqa: E402
from processes import cpu_seconds, memory_mib  # noqa: E402


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
            print(f"idle node: {memory_mib(cluster.nodes[0].process.pid):.0f} MiB resident")
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
              f"{max(map(memory_mib, pids)):.0f} MiB resident at most")


if __name__ == "__main__":
    main()
