"""Starts, kills and watches real cairnd processes on loopback."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PRESET = os.environ.get("CAIRN_PRESET", "release")
BIN = ROOT / "build" / PRESET / "bin"
# Sanitizers and slow machines take longer over everything.
SLOW = 4 if PRESET in ("asan", "tsan") else 1
FOUND_BY_SANITIZER = re.compile(r"WARNING: ThreadSanitizer|ERROR: \w+Sanitizer|runtime error:")
os.environ.setdefault("ASAN_OPTIONS", "detect_leaks=1:abort_on_error=0")
os.environ.setdefault("UBSAN_OPTIONS", "print_stacktrace=1:halt_on_error=1")
# Debian's gRPC, RocksDB, abseil and their friends aren't instrumented: TSan sees neither their atomics
# nor what these order, so what happens inside them can't be judged. What they order between our
# threads is told to TSan in lib/rpc/internal.h.
os.environ.setdefault("TSAN_OPTIONS",
                      "halt_on_error=0:exitcode=66:ignore_noninstrumented_modules=1")


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def wait_until(condition, timeout: float, what: str, interval: float = 0.02):
    """Wait for the condition to hold, and give what it gave."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not happen within {timeout:.0f} s")
        time.sleep(interval)


@dataclass
class Node:
    name: str
    port: int
    http_port: int
    folder: pathlib.Path
    arguments: list[str]
    host: str = "127.0.0.1"
    prefix: list[str] = field(default_factory=list)  # what is put before the command
    environment: dict[str, str] = field(default_factory=dict)
    program: str = "cairnd"  # or a path to another build's
    process: subprocess.Popen | None = None
    log_path: pathlib.Path = field(default_factory=pathlib.Path)

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self.port}"

    def start(self) -> None:
        assert self.process is None or self.process.poll() is not None
        self.log_path = self.folder.parent / f"{self.name}.log"
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, str(BIN / self.program), "--name", self.name, "--data-dir", str(self.folder),
                 "--listen", self.endpoint, "--http", f"{self.host}:{self.http_port}",
                 *self.arguments],
                stdout=log, stderr=log, env={**os.environ, **self.environment})

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.host}:{self.http_port}/readyz", timeout=1):
                return True
        except (urllib.error.URLError, OSError):
            if self.process is not None and self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self.process.returncode}:\n{self.log()}")
            return False

    def wait_ready(self, timeout: float = 15) -> None:
        wait_until(self.is_ready, timeout * SLOW, f"{self.name} ready")

    def metrics(self) -> dict[str, float]:
        with urllib.request.urlopen(f"http://{self.host}:{self.http_port}/metrics", timeout=5) as r:
            lines = r.read().decode().splitlines()
        return {k: float(v) for k, v in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self, timeout: float = 20) -> int:
        """SIGTERM; gives the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(timeout * SLOW)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.is_file() else ""


def wait_placed(client, name: str) -> None:
    """Until a member that was added may hold replicas: it is ready a moment before."""
    wait_until(lambda: any(m.name == name and m.placement == 1 for m in client.topology().members), 20 * SLOW,
               f"{name} may hold replicas", 0.1)


class Cluster:
    """Nodes n1..nN in a folder of their own."""

    def __init__(self, count: int = 3, modules: tuple[str, ...] = ("aircraft", "echo"),
                 arguments: tuple[str, ...] = (), folder: str | None = None, network=None):
        self.folder = pathlib.Path(folder or tempfile.mkdtemp(prefix="cairn-"))
        self._own_folder = folder is None
        ports = free_ports(2 * count)
        hosts = [network.address(i + 1) if network else "127.0.0.1" for i in range(count)]
        joined = ",".join(f"{host}:{port}" for host, port in zip(hosts, ports))
        shared = [*arguments, *(["--insecure"] if network else [])]
        if count > 1:
            shared += ["--join", joined, "--bootstrap-expect", str(count)]
        for module in modules:
            shared += ["--module", str(BIN / f"{module}.so")]
        self.nodes = [Node(f"n{i + 1}", ports[i], ports[count + i], self.folder / f"n{i + 1}",
                           shared, hosts[i], network.inside(i + 1) if network else [])
                      for i in range(count)]

    def add(self, name: str, *arguments: str, like: int = 0) -> Node:
        """Another node, which joins those that are there. Not started yet."""
        port, http_port = free_ports(2)
        shared = list(self.nodes[like].arguments)
        if "--bootstrap-expect" in shared:
            at = shared.index("--bootstrap-expect")
            del shared[at:at + 2]
        if "--join" in shared:
            at = shared.index("--join")
            del shared[at:at + 2]
        node = Node(name, port, http_port, self.folder / f"{name}-{port}",
                    [*shared, "--join", ",".join(self.endpoints), *arguments])
        self.nodes.append(node)
        return node

    @property
    def endpoints(self) -> list[str]:
        return [node.endpoint for node in self.nodes]

    def start(self, timeout: float = 40) -> Cluster:
        try:
            for node in self.nodes:
                node.start()
            for node in self.nodes:
                node.wait_ready(timeout)
        except BaseException:
            self.close()  # nobody else will
            raise
        return self

    def close(self) -> None:
        for node in self.nodes:
            if node.process is not None and node.process.poll() is None:
                node.process.send_signal(signal.SIGCONT)
                node.kill()
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Cluster:
        return self.start()

    def __exit__(self, *exc) -> None:
        found = [line for node in self.nodes for line in node.log().splitlines()
                 if FOUND_BY_SANITIZER.search(line)]
        if exc[0] is not None or found:
            for node in self.nodes:
                print(f"---- {node.name} ----\n{node.log()[-6000:]}")
        self.close()
        assert not found, found

    def busiest(self) -> Node:
        return max((n for n in self.nodes if n.process.poll() is None),
                   key=lambda n: n.metrics()["cairn_partitions_owned"])

    def wait_balanced(self, timeout: float = 30) -> None:
        """Every node owns about the same number of partitions."""
        def balanced():
            owned = [n.metrics()["cairn_partitions_owned"] for n in self.nodes]
            return max(owned) - min(owned) <= 2 and sum(owned) >= 1
        wait_until(balanced, timeout * SLOW, "balance", 0.1)
