"""Start, memory, idle CPU, and stalls after kill -9 and SIGSTOP: the figures of one node and three.

    build/venv/bin/python tools/bench/figures.py [ROUNDS]
"""

import os
import pathlib
import signal
import statistics
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

import cairn  # noqa: E402
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


class Clients:
    """Retrying clients that remember how long their slowest command took."""

    def __init__(self, endpoints, count=8):
        self.longest = 0.0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(endpoints, n)) for n in range(count)]

    def _run(self, endpoints, number):
        with cairn.Client(endpoints, try_timeout=0.5) as client:
            turn = 0
            while not self._stop.is_set():
                turn += 1
                started = time.monotonic()
                client.dispatch(cairn.Command("echo", f"f-{number}-{turn % 200}", "Put", "x"))
                self.longest = max(self.longest, time.monotonic() - started)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc):
        self._stop.set()
        for thread in self._threads:
            thread.join()


def kill(victim):
    victim.kill()


def hang(victim):
    victim.signal(signal.SIGSTOP)


def drain(victim):
    victim.process.terminate()


def stall(cluster: Cluster, fault) -> float:
    cluster.wait_balanced(60)
    victim = cluster.busiest()
    with Clients(cluster.endpoints) as clients:
        time.sleep(0.5)  # a steady state to compare with
        clients.longest = 0.0
        fault(victim)
        time.sleep(3.0)  # the length of the observation
        longest = clients.longest
        if fault is hang:
            victim.signal(signal.SIGCONT)
    if fault is not hang:
        victim.process.wait(30)
        victim.start()
        victim.wait_ready()
    return longest


def percentile(values, share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))]


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    starts = []
    for _ in range(5):
        with Cluster(1) as cluster:
            cluster.close()
        cluster = Cluster(1)
        begun = time.monotonic()
        cluster.start()
        starts.append(time.monotonic() - begun)
        if len(starts) == 5:
            time.sleep(2)
            print(f"idle node: {rss_mib(cluster.nodes[0].process.pid):.0f} MiB resident, 64 partitions")
        cluster.close()
    print(f"start of one node to ready, empty disk: median {statistics.median(starts) * 1e3:.0f} ms")
    with Cluster(3) as cluster:
        cluster.wait_balanced(60)
        time.sleep(2)
        pids = [node.process.pid for node in cluster.nodes]
        before = sum(map(cpu_seconds, pids))
        time.sleep(20)
        used = sum(map(cpu_seconds, pids)) - before
        print(f"idle three-node cluster: {used / 20 * 100:.1f}% of one core in all, "
              f"{max(map(rss_mib, pids)):.0f} MiB resident at most")
        for fault, name in ((kill, "kill -9"), (hang, "SIGSTOP"), (drain, "drain by SIGTERM")):
            stalls = sorted(stall(cluster, fault) for _ in range(rounds))
            print(f"{name} of the busiest owner, {rounds} times: longest stall p50 "
                  f"{statistics.median(stalls):.3f} s, p99 {percentile(stalls, 0.99):.3f} s", flush=True)


if __name__ == "__main__":
    main()
