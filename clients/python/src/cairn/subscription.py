"""Following the log: catching up and then live, over whatever node answers."""

from __future__ import annotations

import asyncio
import datetime
import queue
import random
import threading
import time
from dataclasses import dataclass
from typing import AsyncIterator, Iterator, Sequence

import grpc
import grpc.aio

from . import errors
from .model import Event, Upcasters, upcast
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


class Following:
    """What a subscription wants, and how far it has come."""

    def __init__(self, start, filter: Filter, credits: int, heartbeat: float, upcasters: Upcasters):
        self.start = start
        self.filter = filter
        self.credits = credits
        self.heartbeat = heartbeat
        self.upcasters = upcasters
        # The next position of each partition, as far as events told.
        self._next: dict[int, int] = {}
        self.token: str | None = start if isinstance(start, str) else None
        self.tokens_seen = 0

    def request(self) -> event_pb2.SubscribeRequest:
        start = event_pb2.StartSubscription(filter=self.filter.to_message(), credits=self.credits)
        start.heartbeat.FromNanoseconds(int(self.heartbeat * 1e9))
        getattr(start, "from").CopyFrom(start_message(self.token or self.start))
        return event_pb2.SubscribeRequest(start=start)

    def is_new(self, message: event_pb2.Event) -> bool:
        return message.position >= self._next.get(message.partition, 0)

    def event(self, message: event_pb2.Event) -> Event:
        return upcast(Event.from_message(message), self.upcasters)

    def gave(self, message: event_pb2.Event) -> None:
        self._next[message.partition] = message.position + 1

    def took(self, token: str) -> None:
        if token:
            self.token = token
            self.tokens_seen += 1


class _Pauses:
    """Between one stream and the next."""

    def __init__(self) -> None:
        self._pause = 0.02

    def works(self) -> None:
        self._pause = 0.02

    def after(self, broken: grpc.RpcError | None) -> float:
        """Seconds; raises what is final."""
        if broken is None:
            error: errors.CairnError = errors.Unavailable(grpc.StatusCode.UNAVAILABLE, "STREAM_ENDED",
                                                          "the stream ended")
        else:
            error = errors.from_rpc(broken)
        if not errors.is_retryable(error):
            raise error
        pause = max(error.retry_after, self._pause * random.uniform(0.5, 1.5))
        self._pause = min(self._pause * 2, 1.0)
        return pause


class Subscription:
    """Iterate over it. A stream that breaks is opened again at another endpoint, from the newest token;
    what was given already is left out, so that every event is given once and in its partition's order.

    `token` is where to go on later: it covers what was given, and maybe a little less.
    """

    def __init__(self, channels: Sequence[grpc.Channel], following: Following, first: int = 0):
        self._channels = channels
        self._first = first
        self._following = following
        self._call = None
        self._closed = threading.Event()
        self.reconnects = -1

    @property
    def token(self) -> str | None:
        return self._following.token

    @property
    def tokens_seen(self) -> int:
        return self._following.tokens_seen

    def close(self) -> None:
        self._closed.set()
        if self._call is not None:
            self._call.cancel()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def __iter__(self) -> Iterator[Event]:
        pauses = _Pauses()
        while not self._closed.is_set():
            self.reconnects += 1
            broken = None
            try:
                for event in self._one_stream():
                    pauses.works()
                    yield event
            except grpc.RpcError as error:
                broken = error
            if self._closed.is_set():
                return
            self._closed.wait(pauses.after(broken))

    def _one_stream(self) -> Iterator[Event]:
        following = self._following
        asks: queue.SimpleQueue = queue.SimpleQueue()
        asks.put(following.request())
        channel = self._channels[(self._first + self.reconnects) % len(self._channels)]
        self._call = event_pb2_grpc.EventServiceStub(channel).Subscribe(iter(asks.get, None))
        watchdog = Watchdog(self._call, following.heartbeat * 3)
        used = 0
        try:
            for response in self._call:
                watchdog.alive()
                for message in response.events:
                    used += 1
                    if following.is_new(message):
                        yield following.event(message)
                        following.gave(message)
                following.took(response.token)
                if used >= following.credits // 2:
                    asks.put(event_pb2.SubscribeRequest(credits=used))
                    used = 0
                watchdog.alive()
        finally:
            watchdog.stop()
            asks.put(None)
            self._call.cancel()


class AsyncSubscription:
    """The same for asyncio: `async for event in subscription`, inside `async with` or until aclose()."""

    def __init__(self, channels: Sequence, following: Following, first: int = 0):
        self._channels = channels
        self._first = first
        self._following = following
        self._call = None
        self._closed = False
        self.reconnects = -1

    @property
    def token(self) -> str | None:
        return self._following.token

    async def aclose(self) -> None:
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    async def __aenter__(self) -> AsyncSubscription:
        return self

    async def __aexit__(self, *exc) -> None:
        await self.aclose()

    async def __aiter__(self) -> AsyncIterator[Event]:
        pauses = _Pauses()
        while not self._closed:
            self.reconnects += 1
            broken = None
            try:
                async for event in self._one_stream():
                    pauses.works()
                    yield event
            except grpc.RpcError as error:
                broken = error
            except asyncio.CancelledError:
                if not self._closed:  # the task is cancelled, not our call
                    raise
            if self._closed:
                return
            await asyncio.sleep(pauses.after(broken))

    async def _one_stream(self) -> AsyncIterator[Event]:
        following = self._following
        channel = self._channels[(self._first + self.reconnects) % len(self._channels)]
        call = self._call = event_pb2_grpc.EventServiceStub(channel).Subscribe()
        used = 0
        try:
            await call.write(following.request())
            while True:
                try:  # a node that hangs sends no heartbeat
                    response = await asyncio.wait_for(call.read(), following.heartbeat * 3)
                except asyncio.TimeoutError:
                    return
                if response is grpc.aio.EOF:
                    if await call.code() is not grpc.StatusCode.OK:
                        raise grpc.aio.AioRpcError(await call.code(), await call.initial_metadata(),
                                                   await call.trailing_metadata(), await call.details())
                    return
                for message in response.events:
                    used += 1
                    if following.is_new(message):
                        yield following.event(message)
                        following.gave(message)
                following.took(response.token)
                if used >= following.credits // 2:
                    if not call.done():  # else the next read says why
                        await call.write(event_pb2.SubscribeRequest(credits=used))
                    used = 0
        finally:
            call.cancel()


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
