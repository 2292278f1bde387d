"""PostgreSQL as the distribution ships it, with an append-only table of events: one statement and one transaction for
each command, so that it needs one round trip. The load is pgbench's, which comes with it: over a Unix socket, prepared.
"""

import contextlib
import glob
import os
import pathlib
import pwd
import shutil
import subprocess
import tempfile

from cluster import free_ports

AGGREGATES = 1000
SCHEMA = f"""
CREATE TABLE aggregates (id int PRIMARY KEY, sequence bigint NOT NULL);
CREATE TABLE events (position bigserial PRIMARY KEY, aggregate int NOT NULL, sequence bigint NOT NULL, type text NOT NULL,
                     payload bytea NOT NULL, at timestamptz NOT NULL DEFAULT now(), UNIQUE (aggregate, sequence));
INSERT INTO aggregates SELECT i, 0 FROM generate_series(0, {AGGREGATES - 1}) i;
"""
COMMAND = f"""\\set a random(0, {AGGREGATES - 1})
WITH next AS (UPDATE aggregates SET sequence = sequence + 1 WHERE id = :a RETURNING sequence) \
INSERT INTO events (aggregate, sequence, type, payload) SELECT :a, sequence, 'Put', convert_to(repeat('x', 256), 'UTF8') FROM next;
"""


def _programs() -> pathlib.Path:
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    if not found:
        raise SystemExit("this needs PostgreSQL: apt-get install postgresql")
    return pathlib.Path(found[-1])


def _as_postgres():
    """It doesn't run as root."""
    user = pwd.getpwnam("postgres")

    def change():
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
    return change if os.getuid() == 0 else None


def _percentiles(folder: pathlib.Path, skip_us: int) -> tuple[int, list[float]]:
    """Of pgbench's log: transactions behind the first second."""
    rows = [line.split() for path in folder.glob("log.*") for line in path.read_text().splitlines()]
    begun = min(int(r[4]) * 1000000 + int(r[5]) - int(r[2]) for r in rows)
    times = sorted(int(r[2]) for r in rows if int(r[4]) * 1000000 + int(r[5]) - begun >= skip_us)
    at = [times[len(times) // 2], times[min(len(times) - 1, len(times) * 99 // 100)], times[-1]]
    return len(times), [us / 1e3 for us in at]


class Server:
    """One that runs as the distribution ships it, but for where it listens and how many may be connected."""

    def __init__(self, folder: pathlib.Path, port: int):
        self.folder, self.port = folder, port
        self.programs, self.become = _programs(), _as_postgres()

    def own(self, path: pathlib.Path) -> None:
        if self.become:
            shutil.chown(path, "postgres", "postgres")

    def call(self, program: str, *arguments: object, text: str | None = None) -> None:
        done = subprocess.run([self.programs / program, *map(str, arguments)], cwd=self.folder, capture_output=True, text=True,
                              input=text, preexec_fn=self.become)
        if done.returncode != 0:
            raise SystemExit(f"{program}: {done.stderr.strip()}")

    def sql(self, text: str) -> None:
        self.call("psql", "-h", self.folder, "-p", self.port, "-U", "postgres", "-q", "-v", "ON_ERROR_STOP=1", text=text)


@contextlib.contextmanager
def server():
    folder = pathlib.Path(tempfile.mkdtemp(prefix="postgres-"))
    one = Server(folder, free_ports(1)[0])
    one.own(folder)
    try:
        one.call("initdb", "-D", folder / "data", "-A", "trust", "-U", "postgres")
        one.call("pg_ctl", "-D", folder / "data", "-w", "-l", folder / "server.log", "-o",
                 f"-p {one.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c max_connections=1100", "start")
        yield one
    finally:
        subprocess.run([one.programs / "pg_ctl", "-D", folder / "data", "-m", "immediate", "stop"], cwd=folder,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=one.become)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def start():
    """Gives a function: (in flight, seconds) -> commands/s, p50, p99 and longest in ms."""
    with server() as one:
        one.sql(SCHEMA)
        script = one.folder / "command.sql"
        script.write_text(COMMAND)
        logs = one.folder / "logs"

        def run(in_flight, seconds):
            logs.mkdir()
            one.own(logs)
            one.call("pgbench", "-h", one.folder, "-p", one.port, "-n", "-U", "postgres", "-M", "prepared", "-f", script, "-c",
                     in_flight, "-j", min(2, in_flight), "-T", seconds + 1, "-l", "--log-prefix", logs / "log", "postgres")
            count, (p50, p99, longest) = _percentiles(logs, 1000000)
            shutil.rmtree(logs)
            return count / seconds, p50, p99, longest

        yield run
