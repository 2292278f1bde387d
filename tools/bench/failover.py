#!/usr/bin/env python3
"""The longest stall that a client sees when the busiest of three members is killed, hangs, or is drained: an open loop
for Cairn, so that all that a stall holds up counts; for peers a closed one, timed from the first try.

    tools/bench/failover.py [--rounds N] [--json FILE] [SIDE...]      sides: cairn3, pekko3, axon3
"""

import argparse
import json
import pathlib
import signal
import statistics
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tools" / "bench"), str(ROOT / "tools" / "bench" / "peers")]

import axon  # noqa: E402
import pekko  # noqa: E402
from cluster import BIN, Cluster  # noqa: E402

RATE = 400  # a second: far from what it could take
HANG_SECONDS = 30
PEERS = {"pekko3": pekko.start, "axon3": axon.start}


class Cairn:
    faults = ("kill -9", "SIGSTOP", "drain")
    seconds = 6

    def __enter__(self):
        self.cluster = Cluster(3, modules=("echo",)).start()
        return self

    def __exit__(self, *exc):
        self.cluster.close()

    def stall(self, fault: str) -> float:
        """Seconds. Afterwards all is as before."""
        self.cluster.wait_balanced(60)
        victim = self.cluster.busiest()
        load = subprocess.Popen([BIN / "cairn-bench", "dispatch", "--rate", str(RATE), "--retry-after", "300", "--seconds",
                                 str(self.seconds), "--json", *self.cluster.endpoints], stdout=subprocess.PIPE, text=True)
        time.sleep(2)  # the first second doesn't count
        if fault == "kill -9":
            victim.kill()
        elif fault == "drain":
            victim.process.terminate()
        else:
            victim.signal(signal.SIGSTOP)
        said = json.loads(load.communicate()[0])
        if said["failed"] > 0:
            raise SystemExit(f"{said['failed']} commands failed")
        if fault == "SIGSTOP":
            victim.signal(signal.SIGCONT)
        else:
            victim.process.wait(30)
            victim.start()
            victim.wait_ready()
        return said["longest_us"] / 1e6


class Peer:
    """One fault each: a member that was killed isn't started again."""

    faults = ("kill -9", "SIGSTOP")
    seconds = 75

    def __init__(self, start):
        self.start = start

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def stall(self, fault: str) -> float:
        with self.start(3) as run:
            said = []
            load = threading.Thread(target=lambda: said.extend(run(16, self.seconds)))
            load.start()
            time.sleep(3)
            victim = run.others[0]
            victim.send_signal(signal.SIGKILL if fault == "kill -9" else signal.SIGSTOP)
            if fault == "SIGSTOP":
                time.sleep(HANG_SECONDS)
                victim.send_signal(signal.SIGCONT)
            load.join()
        return said[3] / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="of Cairn's faults (5); a peer has each once")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
    parser.add_argument("sides", nargs="*", metavar="SIDE", help="cairn3, pekko3, axon3; none: cairn3")
    asked = parser.parse_args()
    found = {}
    for name in asked.sides or ["cairn3"]:
        if name != "cairn3" and name not in PEERS:
            parser.error(f"no side is called {name}; there are cairn3, {', '.join(PEERS)}")
    for name in asked.sides or ["cairn3"]:
        with Cairn() if name == "cairn3" else Peer(PEERS[name]) as side:
            for fault in side.faults:
                stalls = [side.stall(fault) for _ in range(asked.rounds if name == "cairn3" else 1)]
                found[f"{name}, {fault}"] = stalls
                print(f"{name}, {fault}: longest stall {statistics.median(stalls):.3f} s, at most {max(stalls):.3f} s "
                      f"({len(stalls)} times)", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
