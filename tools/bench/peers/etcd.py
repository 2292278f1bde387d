"""etcd as the distribution ships it: three nodes, each put is durable on a majority."""

import contextlib
import pathlib
import re
import shutil
import subprocess
import tempfile
import urllib.request

from cluster import free_ports, wait_until

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent


def _build() -> pathlib.Path:
    target = ROOT / "build" / "tools" / "etcdput"
    if not target.exists() or target.stat().st_mtime < (HERE / "etcdput" / "main.go").stat().st_mtime:
        source = ROOT / "build" / "tools" / "etcdput-source"
        shutil.copytree(HERE / "etcdput", source, dirs_exist_ok=True)
        subprocess.run(["go", "mod", "tidy"], cwd=source, check=True, capture_output=True)
        subprocess.run(["go", "build", "-o", str(target), "."], cwd=source, check=True)
    return target


def _is_healthy(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{endpoint}/health", timeout=2) as answer:
            return b'"true"' in answer.read()
    except OSError:
        return False


@contextlib.contextmanager
def start():
    """Gives a function: (in flight, seconds) -> commands/s, p50, p99 and longest in ms."""
    put = _build()
    ports = free_ports(6)
    names = ["e1", "e2", "e3"]
    members = ",".join(f"{n}=http://127.0.0.1:{p}" for n, p in zip(names, ports[3:]))
    endpoints = [f"127.0.0.1:{p}" for p in ports[:3]]

    def run(in_flight, seconds):
        said = subprocess.run([put, str(in_flight), str(seconds), *endpoints], capture_output=True, text=True, check=True).stdout
        return [float(n) for n in re.search(r": ([\d.]+) .*p50 ([\d.]+) ms, p99 ([\d.]+) ms, longest ([\d.]+) ms", said).groups()]

    with tempfile.TemporaryDirectory(prefix="etcd-") as folder, contextlib.ExitStack() as stack:
        for name, client, other in zip(names, ports, ports[3:]):
            node = subprocess.Popen(
                ["etcd", "--name", name, "--data-dir", f"{folder}/{name}",
                 "--listen-client-urls", f"http://127.0.0.1:{client}", "--advertise-client-urls", f"http://127.0.0.1:{client}",
                 "--listen-peer-urls", f"http://127.0.0.1:{other}", "--initial-advertise-peer-urls", f"http://127.0.0.1:{other}",
                 "--initial-cluster", members, "--initial-cluster-state", "new"],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(node.wait)
            stack.callback(node.terminate)
        wait_until(lambda: all(map(_is_healthy, endpoints)), 60, "etcd has a leader", 0.1)
        yield run
