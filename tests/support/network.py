"""A network of the test's own: every station in its network namespace, with a switch in user space between them.

Each station has a TUN device; the switch passes its packets on, late, with loss, one way only, or not at
all. It needs root and /dev/net/tun, and no kernel module beyond.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import json
import os
import random
import selectors
import struct
import subprocess
import sys
import threading
import time

MTU = 9000
CLIENT = 254  # the station of the test itself, in the namespace that it runs in


def usable() -> str:
    """Empty, or why not."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not os.path.exists("/dev/net/tun"):
        return "there is no /dev/net/tun"
    name = f"cairn-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode != 0:
        return f"no network namespaces: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""


class Network:
    """Stations 1..count and the test. `rules` change with a call of set()."""

    def __init__(self, count: int):
        self.subnet = f"10.{64 + os.getpid() % 128}.{os.getpid() // 128 % 256}"
        self.names = {i: f"cairn-{os.getpid()}-{i}" for i in range(1, count + 1)}
        self.rules = {"cut": [], "delay_ms": 0, "jitter_ms": 0, "loss": 0.0}
        for name in self.names.values():
            subprocess.run(["ip", "netns", "add", name], check=True)
        try:
            self._switch = subprocess.Popen(
                [sys.executable, __file__, self.subnet, json.dumps(self.names)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert self._switch.stdout.readline() == "ready\n", "the switch did not start"
        except BaseException:
            self.close()
            raise

    def address(self, station: int) -> str:
        return f"{self.subnet}.{station}"

    def inside(self, station: int) -> list[str]:
        """What to put before a command that is to run there."""
        return ["ip", "netns", "exec", self.names[station]]

    def set(self, **rules) -> None:
        self.rules.update(rules)
        self._switch.stdin.write(json.dumps(self.rules) + "\n")
        self._switch.stdin.flush()
        assert self._switch.stdout.readline() == "ok\n", "the switch is gone"

    def cut_off(self, *stations: int) -> None:
        """These from all other nodes, both ways. The test still reaches everybody."""
        others = [s for s in self.names if s not in stations]
        self.set(cut=[[a, b] for s in stations for o in others for a, b in ((s, o), (o, s))])

    def heal(self) -> None:
        self.set(cut=[], delay_ms=0, jitter_ms=0, loss=0.0)

    def close(self) -> None:
        switch = getattr(self, "_switch", None)
        if switch is not None:
            switch.stdin.close()
            switch.wait(10)
        for name in self.names.values():
            subprocess.run(["ip", "netns", "del", name], check=False)


# ---- the switch, a process of its own ----

def _tun(namespace: str | None, name: str) -> int:
    """A TUN device in the namespace."""
    made = {}

    def make():
        if namespace is not None:
            with open(f"/run/netns/{namespace}") as ns:
                if ctypes.CDLL(None, use_errno=True).setns(ns.fileno(), 0x40000000) != 0:
                    return
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x0001 | 0x1000))
        made["fd"] = fd

    thread = threading.Thread(target=make)  # a namespace is a thread's
    thread.start()
    thread.join()
    return made["fd"]


def _set_up(subnet: str, names: dict[int, str]) -> dict[int, int]:
    tuns = {}
    for station, namespace in [*names.items(), (CLIENT, None)]:
        device = f"cairn{os.getpid() % 100000}" if namespace is None else "cairn0"
        tuns[station] = _tun(namespace, device)
        ip = ["ip"] if namespace is None else ["ip", "-n", namespace]
        subprocess.run([*ip, "addr", "add", f"{subnet}.{station}/24", "dev", device], check=True)
        subprocess.run([*ip, "link", "set", device, "mtu", str(MTU), "up"], check=True)
        if namespace is not None:
            subprocess.run([*ip, "link", "set", "lo", "up"], check=True)
            subprocess.run([*ip, "link", "set", device, "multicast", "on"], check=True)
            subprocess.run([*ip, "route", "add", "224.0.0.0/4", "dev", device], check=True)
    return tuns


def _deliver(tuns: dict[int, int], to: int, packet: bytes) -> None:
    try:
        os.write(tuns[to], packet)
    except OSError:
        pass  # full, or down: lost, as on any wire


def _serve(subnet: str, names: dict[int, str]) -> None:
    tuns = _set_up(subnet, names)
    selector = selectors.DefaultSelector()
    for station, fd in tuns.items():
        selector.register(fd, selectors.EVENT_READ, station)
    selector.register(sys.stdin, selectors.EVENT_READ, None)
    rules = {"cut": [], "delay_ms": 0, "jitter_ms": 0, "loss": 0.0}
    cut: set[tuple[int, int]] = set()
    late: list[tuple[float, int, int, bytes]] = []
    count = 0
    print("ready", flush=True)
    while True:
        wait = max(0.0, late[0][0] - time.monotonic()) if late else None
        for key, _ in selector.select(wait):
            if key.data is None:
                line = sys.stdin.readline()
                if not line:
                    return
                rules = json.loads(line)
                cut = {tuple(pair) for pair in rules["cut"]}
                print("ok", flush=True)
                continue
            for _ in range(64):
                try:
                    packet = os.read(key.fd, MTU + 64)
                except BlockingIOError:
                    break
                if packet[0] >> 4 != 4:
                    continue
                to = packet[19]
                if 224 <= packet[16] < 240:  # multicast: to all others, as on a cable
                    for other in tuns:
                        if other not in (key.data, CLIENT) and (key.data, other) not in cut:
                            _deliver(tuns, other, packet)
                    continue
                if to not in tuns or (key.data, to) in cut or random.random() < rules["loss"]:
                    continue
                if rules["delay_ms"] == 0 or CLIENT in (to, key.data):
                    _deliver(tuns, to, packet)
                    continue
                count += 1
                due = time.monotonic() + (rules["delay_ms"] + random.random() * rules["jitter_ms"]) / 1000
                heapq.heappush(late, (due, count, to, packet))
        now = time.monotonic()
        while late and late[0][0] <= now:
            _, _, to, packet = heapq.heappop(late)
            _deliver(tuns, to, packet)


if __name__ == "__main__":
    _serve(sys.argv[1], {int(k): v for k, v in json.loads(sys.argv[2]).items()})
