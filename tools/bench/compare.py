"""Sides in turn on one machine, so that what the machine does to one it does to the other. See README.md."""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tools" / "bench"), str(ROOT / "tools" / "bench" / "peers")]

import axon  # noqa: E402
import etcd  # noqa: E402
import go_worker  # noqa: E402
import pekko  # noqa: E402
import postgres  # noqa: E402
from cluster import BIN, Cluster, free_ports, wait_until  # noqa: E402
from loads import cairn_bench  # noqa: E402


@dataclass
class Result:
    per_second: float
    p50_ms: float
    p99_ms: float
    longest_ms: float


# One run: so many in flight for so many seconds.
Run = Callable[[int, int], Result]


def load(*arguments: object) -> Result:
    said = cairn_bench(*arguments)
    return Result(said["per_second"], said["p50_us"] / 1e3, said["p99_us"] / 1e3, said["longest_us"] / 1e3)


@contextlib.contextmanager
def child(program: pathlib.Path, *arguments: str) -> Iterator[None]:
    process = subprocess.Popen([program, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"{program.name} {' '.join(arguments)} didn't get ready")
        yield
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def python_worker(cluster: Cluster) -> Iterator[None]:
    process = subprocess.Popen([ROOT / "build" / "venv" / "bin" / "python", ROOT / "tools" / "bench" / "worker.py", "by-worker",
                                *cluster.endpoints])
    try:
        wait_until(lambda: all(node.metrics()["cairn_workers_connected"] == 1 for node in cluster.nodes), 30, "a worker")
        yield
    finally:
        process.kill()
        process.wait()


WORKERS = {
    "c": lambda cluster: child(BIN / "cairn-bench", "worker", "by-worker", *cluster.endpoints),
    "go": lambda cluster: child(go_worker.build(), "by-worker", *cluster.endpoints),
    "python": python_worker,
}


@contextlib.contextmanager
def cairn(nodes: int, *kind: str, worker: str = "", settings: tuple[str, ...] = ()) -> Iterator[Run]:
    with Cluster(nodes, modules=("echo",), arguments=settings) as cluster, contextlib.ExitStack() as stack:
        cluster.wait_balanced()
        if worker:
            stack.enter_context(WORKERS[worker](cluster))
            kind = (*kind, "--type", "by-worker")
        yield lambda in_flight, seconds: load(*kind, "--in-flight", in_flight, "--seconds", seconds, *cluster.endpoints)


@contextlib.contextmanager
def echo(kind: str) -> Iterator[Run]:
    endpoint = f"127.0.0.1:{free_ports(1)[0]}"
    with child(BIN / "cairn-bench", "echo", endpoint):
        yield lambda in_flight, seconds: load(kind, "--in-flight", in_flight, "--seconds", seconds, endpoint)


@contextlib.contextmanager
def peer(start) -> Iterator[Run]:
    with start() as run:
        yield lambda in_flight, seconds: Result(*run(in_flight, seconds))


SIDES: dict[str, tuple[str, Callable[[], contextlib.AbstractContextManager[Run]]]] = {
    "cairn1": ("one node, DispatchStream", lambda: cairn(1, "dispatch")),
    "cairn1-unary": ("one node, a call for each command", lambda: cairn(1, "dispatch-unary")),
    "cairn3": ("three nodes, DispatchStream", lambda: cairn(3, "dispatch")),
    "cairn3-unary": ("three nodes, a call for each command", lambda: cairn(3, "dispatch-unary")),
    "cairn3-owner": ("three nodes, always the right one", lambda: cairn(3, "dispatch", "--to", "owner")),
    "cairn3-other": ("three nodes, always a wrong one", lambda: cairn(3, "dispatch", "--to", "other")),
    "cairn3-worker": ("three nodes, a worker in C decides", lambda: cairn(3, "dispatch", worker="c")),
    "cairn1-worker": ("one node, a worker in C decides", lambda: cairn(1, "dispatch", worker="c")),
    "cairn1-go": ("one node, a worker in Go decides", lambda: cairn(1, "dispatch", worker="go")),
    "cairn1-python": ("one node, a worker in Python decides", lambda: cairn(1, "dispatch", worker="python")),
    "cairn3-append": ("three nodes, events appended", lambda: cairn(3, "append")),
    "cairn3-1024": ("three nodes with 1,024 partitions", lambda: cairn(3, "dispatch", settings=("--partitions", "1024"))),
    "echo-stream": ("a bare gRPC server, one stream", lambda: echo("echo-stream")),
    "echo-unary": ("a bare gRPC server, calls", lambda: echo("echo-unary")),
    "etcd3": ("etcd, three nodes, put", lambda: peer(etcd.start)),
    "pekko1": ("Pekko sharding and persistence on PostgreSQL, one member", lambda: peer(lambda: pekko.start(1))),
    "pekko3": ("the same with three", lambda: peer(lambda: pekko.start(3))),
    "pekko1-tuned": ("one member, tuned", lambda: peer(lambda: pekko.start(1, tuned=True))),
    "pekko3-tuned": ("three members, tuned", lambda: peer(lambda: pekko.start(3, tuned=True))),
    "axon1": ("Axon Framework and JDBC on PostgreSQL, one member", lambda: peer(lambda: axon.start(1))),
    "axon3": ("the same with three, over Hazelcast", lambda: peer(lambda: axon.start(3))),
    "axon1-tuned": ("one member, tuned", lambda: peer(lambda: axon.start(1, tuned=True))),
    "axon3-tuned": ("three members, tuned", lambda: peer(lambda: axon.start(3, tuned=True))),
    "postgres": ("PostgreSQL, one transaction for each command", lambda: peer(postgres.start)),
}


def show(name: str, in_flight: int, result: Result) -> None:
    print(f"{name:14} {in_flight:5} in flight: {result.per_second:9,.0f}/s, p50 {result.p50_ms:7.2f} ms, "
          f"p99 {result.p99_ms:8.2f} ms, longest {result.longest_ms:8.2f} ms", flush=True)


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def compare(names: list[str], in_flights: list[int], seconds: int, rounds: int) -> list[dict]:
    """All sides are up all the time, and one works."""
    rows = []
    with contextlib.ExitStack() as stack:
        runs = {name: stack.enter_context(SIDES[name][1]()) for name in names}
        for in_flight in in_flights:
            results: dict[str, list[Result]] = {name: [] for name in names}
            for _ in range(rounds):
                for name in names:
                    results[name].append(runs[name](in_flight, seconds))
                    show(name, in_flight, results[name][-1])
            for other in names[1:]:
                pairs = list(zip(results[names[0]], results[other]))
                row = {"in_flight": in_flight, "of": names[0], "to": other,
                       "rate": [a.per_second / b.per_second for a, b in pairs],
                       "p50": [a.p50_ms / b.p50_ms for a, b in pairs], "p99": [a.p99_ms / b.p99_ms for a, b in pairs]}
                rows.append(row)
                print(f"  {names[0]} to {other}, {in_flight} in flight: rate {spread(row['rate'])}, "
                      f"p50 {spread(row['p50'])}, p99 {spread(row['p99'])}\n", flush=True)
    return rows


def main() -> None:
    sides = "\n".join(f"  {name:14} {what}" for name, (what, _) in SIDES.items())
    parser = argparse.ArgumentParser(description=__doc__, epilog=f"sides:\n{sides}",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in-flight", default="1,64,256", help="how many commands at once, comma-separated")
    parser.add_argument("--seconds", type=int, default=5, help="of each run, behind one that doesn't count")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path, help="the ratios, for scripts")
    parser.add_argument("sides", nargs="+", choices=list(SIDES), metavar="SIDE")
    asked = parser.parse_args()
    rows = compare(asked.sides, [int(n) for n in asked.in_flight.split(",")], asked.seconds, asked.rounds)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
