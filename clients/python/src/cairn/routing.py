"""Where an aggregate's owner is, so that a command needs no hop through another node.

The cluster pushes who owns what (WatchTopology). The table is a hint: whoever is asked passes a command on, and
an owner that can't be reached from here is left alone for a while, for any node that can.
"""

from __future__ import annotations

import asyncio
import threading
import time

import grpc
import grpc.aio
import xxhash

from .connection import Tls, open_channel
from .v1 import cluster_pb2, cluster_pb2_grpc

AVOID = 5.0  # seconds, after an owner couldn't be reached
PAUSE = 0.5  # before another node is asked for the topology


class Table:
    """Owners' addresses by partition, from the newest topology. For several threads."""

    def __init__(self):
        self._owners: list[str | None] = []
        self._avoid: dict[str, float] = {}

    @property
    def known(self) -> bool:
        return bool(self._owners)

    def take(self, topology: cluster_pb2.Topology) -> None:
        if topology.hash != "XXH3_64bits":
            return  # of a later release: any node will do
        addresses = {m.node_id: m.address for m in topology.members if m.status == cluster_pb2.MEMBER_STATUS_ALIVE}
        self._owners = [addresses.get(p.owner) for p in topology.partitions]

    def owner_of(self, aggregate_id: str) -> str | None:
        owners = self._owners
        if not owners:
            return None
        owner = owners[xxhash.xxh3_64_intdigest(aggregate_id.encode()) % len(owners)]
        return owner if owner is not None and time.monotonic() >= self._avoid.get(owner, 0) else None

    def avoid(self, address: str) -> None:
        self._avoid[address] = time.monotonic() + AVOID


class Router:
    """The table, kept by a thread, and a channel to each owner. Nothing is asked before the first command."""

    def __init__(self, channels: list[grpc.Channel], tls: Tls | None = None):
        self.table = Table()
        self._tls = tls
        self._seeds = channels
        self._channels: dict[str, grpc.Channel] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._call = None
        self._closed = threading.Event()

    def channel(self, aggregate_id: str) -> tuple[str, grpc.Channel] | None:
        """The owner's address and a channel to it; None: ask any node."""
        if self._thread is None:
            self._start()
        owner = self.table.owner_of(aggregate_id)
        if owner is None:
            return None
        with self._lock:
            if owner not in self._channels:
                self._channels[owner] = open_channel(owner, self._tls)
            return owner, self._channels[owner]

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._watch, name="cairn-topology", daemon=True)
                self._thread.start()

    def _watch(self) -> None:
        turn = 0
        while not self._closed.is_set():
            stub = cluster_pb2_grpc.ClusterServiceStub(self._seeds[turn % len(self._seeds)])
            turn += 1
            try:
                self._call = stub.WatchTopology(cluster_pb2.WatchTopologyRequest())
                if self._closed.is_set():
                    self._call.cancel()
                for response in self._call:
                    self.table.take(response.topology)
            except (grpc.RpcError, ValueError):
                pass  # the next one knows as much
            self._closed.wait(PAUSE)

    def close(self) -> None:
        self._closed.set()
        if self._call is not None:
            self._call.cancel()
        if self._thread is not None:
            self._thread.join(5)
        for channel in self._channels.values():
            channel.close()


class AsyncWatcher:
    """The table, kept by a task."""

    def __init__(self, channels: list[grpc.aio.Channel]):
        self.table = Table()
        self._seeds = channels
        self._task: asyncio.Task | None = None

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        turn = 0
        while True:
            stub = cluster_pb2_grpc.ClusterServiceStub(self._seeds[turn % len(self._seeds)])
            turn += 1
            try:
                async for response in stub.WatchTopology(cluster_pb2.WatchTopologyRequest()):
                    self.table.take(response.topology)
            except grpc.RpcError:
                pass
            await asyncio.sleep(PAUSE)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
