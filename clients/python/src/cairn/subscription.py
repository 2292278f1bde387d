"""Following the log: catching up and then live, over whatever node answers."""

from __future__ import annotations

import datetime
import queue
import random
import threading
import time
from dataclasses import dataclass
from typing import Iterator, Sequence

import grpc

from . import errors
from .model import Event
from .v1 import event_pb2, event_pb2_grpc

# Where a subscription begins: one of these, a token, or a datetime.
BEGINNING = object()
END = object()


@dataclass(frozen=True)
class Filter:
    """Events that fit every member that isn't empty."""

    aggregate_types: Sequence[str] = ()
    event_types: Sequence[str] = ()
    aggregate_id_prefixes: Sequence[str] = ()
    partitions: Sequence[int] = ()

    def to_message(self) -> event_pb2.EventFilter:
        return event_pb2.EventFilter(
            aggregate_types=self.aggregate_types, event_types=self.event_types,
            aggregate_id_prefixes=self.aggregate_id_prefixes, partitions=self.partitions)


def start_message(start) -> event_pb2.LogStart:
    if start is BEGINNING:
        return event_pb2.LogStart(beginning=event_pb2.LogBeginning())
    if start is END:
        return event_pb2.LogStart(end=event_pb2.LogEnd())
    if isinstance(start, datetime.datetime):
        message = event_pb2.LogStart()
        message.time.FromDatetime(start)
        return message
    return event_pb2.LogStart(token=start)


class Subscription:
    """Iterate over it. A stream that breaks is opened again at another endpoint, from the newest token;
    what was given already is left out, so that every event is given once and in its partition's order.

    `token` is where to go on later: it covers what was given, and maybe a little less.
    """

    def __init__(self, channels: Sequence[grpc.Channel], start, filter: Filter, credits: int = 2000,
                 heartbeat: float = 10.0, first: int = 0):
        self._channels = channels
        self._first = first
        self._start = start
        self._filter = filter
        self._credits = credits
        self._heartbeat = heartbeat
        self._call = None
        self._closed = threading.Event()
        # The next position of each partition, as far as events told.
        self._next: dict[int, int] = {}
        self.token: str | None = start if isinstance(start, str) else None
        self.tokens_seen = 0
        self.reconnects = -1

    def close(self) -> None:
        self._closed.set()
        if self._call is not None:
            self._call.cancel()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def __iter__(self) -> Iterator[Event]:
        pause = 0.02
        while not self._closed.is_set():
            self.reconnects += 1
            try:
                for event in self._one_stream():
                    pause = 0.02
                    yield event
                error = errors.Unavailable(grpc.StatusCode.UNAVAILABLE, "STREAM_ENDED", "the stream ended")
            except grpc.RpcError as broken:
                error = errors.from_rpc(broken)
            if self._closed.is_set():
                return
            if not errors.is_retryable(error):
                raise error
            self._closed.wait(max(error.retry_after, pause * random.uniform(0.5, 1.5)))
            pause = min(pause * 2, 1.0)

    def _requests(self, asks: queue.SimpleQueue):
        while (request := asks.get()) is not None:
            yield request

    def _one_stream(self) -> Iterator[Event]:
        asks: queue.SimpleQueue = queue.SimpleQueue()
        start = event_pb2.StartSubscription(filter=self._filter.to_message(), credits=self._credits)
        start.heartbeat.FromNanoseconds(int(self._heartbeat * 1e9))
        getattr(start, "from").CopyFrom(start_message(self.token or self._start))
        asks.put(event_pb2.SubscribeRequest(start=start))
        channel = self._channels[(self._first + self.reconnects) % len(self._channels)]
        self._call = event_pb2_grpc.EventServiceStub(channel).Subscribe(self._requests(asks))
        watchdog = Watchdog(self._call, self._heartbeat * 3)
        used = 0
        try:
            for response in self._call:
                watchdog.alive()
                for message in response.events:
                    used += 1
                    if message.position >= self._next.get(message.partition, 0):
                        yield Event.from_message(message)
                        self._next[message.partition] = message.position + 1
                if response.token:
                    self.token = response.token
                    self.tokens_seen += 1
                if used >= self._credits // 2:
                    asks.put(event_pb2.SubscribeRequest(credits=used))
                    used = 0
                watchdog.alive()
        finally:
            watchdog.stop()
            asks.put(None)
            self._call.cancel()


class Watchdog:
    """A node that hangs sends no heartbeat: the stream is cut, and another node asked."""

    def __init__(self, call, timeout: float):
        self._call = call
        self._timeout = timeout
        self._seen = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def alive(self) -> None:
        self._seen = time.monotonic()

    def rest(self) -> None:
        """Silence is our own: until alive() again."""
        self._seen = float("inf")

    def stop(self) -> None:
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(min(self._timeout, max(0.05, self._seen + self._timeout - time.monotonic()))):
            if time.monotonic() - self._seen >= self._timeout:
                self._call.cancel()
                return
