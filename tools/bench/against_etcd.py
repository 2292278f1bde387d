"""Runs cairn-bench and etcdput in turns against three nodes each. See against_etcd."""

import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from cluster import BIN, Cluster, free_ports  # noqa: E402


def build_etcdput() -> pathlib.Path:
    target = ROOT / "build" / "tools" / "etcdput"
    source = ROOT / "build" / "tools" / "etcdput-source"
    if not target.exists():
        shutil.copytree(ROOT / "tools" / "bench" / "etcdput", source, dirs_exist_ok=True)
        subprocess.run(["go", "mod", "tidy"], cwd=source, check=True, capture_output=True)
        subprocess.run(["go", "build", "-o", str(target), "."], cwd=source, check=True)
    return target


def start_etcd(folder: pathlib.Path):
    ports = free_ports(6)
    names = ["e1", "e2", "e3"]
    members = ",".join(f"{n}=http://127.0.0.1:{p}" for n, p in zip(names, ports[3:]))
    nodes = []
    for name, client, peer in zip(names, ports, ports[3:]):
        nodes.append(subprocess.Popen(
            ["etcd", "--name", name, "--data-dir", str(folder / name),
             "--listen-client-urls", f"http://127.0.0.1:{client}",
             "--advertise-client-urls", f"http://127.0.0.1:{client}",
             "--listen-peer-urls", f"http://127.0.0.1:{peer}",
             "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
             "--initial-cluster", members, "--initial-cluster-state", "new"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "ETCD_UNSUPPORTED_ARCH": ""}))
    return nodes, [f"127.0.0.1:{p}" for p in ports[:3]]


def rate(line: str) -> float:
    return float(re.search(r": ([\d.]+) ", line).group(1))


def main() -> None:
    seconds = sys.argv[1]
    etcdput = build_etcdput()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="etcd-"))
    with Cluster(3, modules=("echo",)) as cluster:
        cluster.wait_balanced()
        etcds, endpoints = start_etcd(folder)
        try:
            time.sleep(3)  # etcd elects; it has no readiness to wait for at this point
            for in_flight in ("1", "64", "256"):
                ratios = []
                for _ in range(2):
                    ours = subprocess.run([str(BIN / "cairn-bench"), "--in-flight", in_flight,
                                           "--seconds", seconds, *cluster.endpoints],
                                          capture_output=True, text=True).stdout.strip()
                    theirs = subprocess.run([str(etcdput), in_flight, seconds, *endpoints],
                                            capture_output=True, text=True).stdout.strip()
                    print(f"cairn  {ours}\netcd   {theirs}", flush=True)
                    ratios.append(rate(ours) / rate(theirs))
                print(f"ratio  {statistics.mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})\n",
                      flush=True)
        finally:
            for etcd in etcds:
                etcd.terminate()
                etcd.wait()
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
