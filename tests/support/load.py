"""Commands that keep coming from retrying clients while a test does something to the cluster."""

from __future__ import annotations

import json
import threading
import time

import cairn
from cluster import SLOW, wait_until


def put(aggregate, payload="x", **more):
    return cairn.Command("echo", aggregate, "Put", payload, **more)


class Load:
    """Keeps commands coming from a retrying client, and remembers what was acknowledged."""

    def __init__(self, endpoints, threads=4):
        self.acknowledged = {}
        self.errors = []
        self.longest = 0.0
        self.stalls = []  # when it began, how long it took: of the slow ones
        self.endpoints = endpoints
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(threads)]

    def _run(self, number):
        client = cairn.Client(self.endpoints, timeout=30 * SLOW, try_timeout=0.5 * SLOW)
        turn = 0
        while not self._stop.is_set():
            aggregate = f"load-{number}-{turn % 10}"
            turn += 1
            started = time.monotonic()
            try:
                client.dispatch(put(aggregate, {"turn": turn}))
                self.acknowledged[aggregate] = self.acknowledged.get(aggregate, 0) + 1
            except cairn.CairnError as error:
                self.errors.append(str(error))
            took = time.monotonic() - started
            self.longest = max(self.longest, took)
            if took > 0.05:
                self.stalls.append((started, took))
        client.close()

    @property
    def total(self):
        return sum(self.acknowledged.values())

    def wait_for(self, count):
        target = self.total + count
        wait_until(lambda: self.total >= target or self.errors, 60 * SLOW, f"{count} more commands")

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc):
        self.stop()

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def check(self, client):
        """Everything acknowledged is stored, once, in order."""
        for aggregate, count in self.acknowledged.items():
            events = list(client.read(aggregate))
            assert [e.sequence for e in events] == list(range(len(events)))
            turns = [json.loads(e.payload)["turn"] for e in events]
            assert turns == sorted(set(turns)), "an event is doubled or out of order"
            assert len(events) == count
