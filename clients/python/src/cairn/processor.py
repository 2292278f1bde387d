"""A member of a processor group: events of its partitions, in order, acknowledged when they are done."""

from __future__ import annotations

import dataclasses
import queue
import random
import threading
import uuid
from typing import Callable, Sequence

import grpc

from . import errors
from .connection import Tls, open_channel
from .model import Event, Upcasters, upcast
from .subscription import BEGINNING, Filter, Watchdog, start_message
from .v1 import event_pb2, event_pb2_grpc


@dataclasses.dataclass(frozen=True)
class Delivered(Event):
    # It was acknowledged before the group was reset.
    replayed: bool = False
    # How often it came before and failed.
    attempt: int = 0
    # It was parked and is tried again: out of its partition's order.
    parked: bool = False


@dataclasses.dataclass(frozen=True)
class Subscribing:
    """How commands are held up for a subscribing processor."""

    # The reply to the command waits for the handler.
    wait: bool = True
    # So many seconds at most.
    timeout: float = 5.0
    # The caller hears of failures and lateness: Outcome.processing_failures.
    report_failure: bool = False

    def to_message(self) -> event_pb2.Subscribing:
        message = event_pb2.Subscribing(no_wait=not self.wait, report_failure=self.report_failure)
        message.timeout.FromNanoseconds(int(self.timeout * 1e9))
        return message


class Processor:
    """`handler(event)` is called for one event after the other; when it returns, the event is done. When it
    raises, the event comes again after a pause, and is parked after some attempts.

    An event may come again after a failure of this process, of a node, or when members come and go: at
    least once, never out of its partition's order.
    """

    def __init__(self, endpoints: Sequence[str], group: str, handler: Callable[[Delivered], None],
                 start=BEGINNING, filter: Filter = Filter(), member: str = "", window: int = 0,
                 ack_timeout: float = 30.0, upcasters: Upcasters = {}, subscribing: Subscribing | None = None,
                 tls: Tls | None = None):
        self._tls = tls
        self._subscribing = subscribing
        self._upcasters = upcasters
        self._endpoints = list(endpoints)
        self._group = group
        self._handler = handler
        self._start = start
        self._filter = filter
        self._member = member or uuid.uuid4().hex
        self._window = window
        self._ack_timeout = ack_timeout
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._says: queue.SimpleQueue | None = None
        self._busy = False
        self.partitions: frozenset[int] = frozenset()
        self.joins = 0
        # It is a member now.
        self.joined = threading.Event()

    def stop(self) -> None:
        """From any thread: run() returns after the event at hand, when its acknowledgement is on its way."""
        self._stop.set()
        with self._lock:
            if not self._busy and self._says is not None:
                self._says.put(None)

    def run(self) -> None:
        """Until stop(). Joins again at the next endpoint whenever its stream breaks."""
        pause = 0.05
        first = random.randrange(len(self._endpoints))
        while not self._stop.is_set():
            endpoint = self._endpoints[(first + self.joins) % len(self._endpoints)]
            self.joins += 1
            try:
                with open_channel(endpoint, self._tls) as channel:
                    if self._one_stream(channel):
                        pause = 0.05
                error = errors.Unavailable(grpc.StatusCode.UNAVAILABLE, "STREAM_ENDED", "the stream ended")
            except grpc.RpcError as broken:
                error = errors.from_rpc(broken)
            self.partitions = frozenset()
            self.joined.clear()
            if self._stop.is_set():
                return
            if not errors.is_retryable(error) and error.reason not in ("ACK_TIMEOUT", "TOO_SLOW"):
                raise error
            self._stop.wait(max(error.retry_after, pause * random.uniform(0.5, 1.5)))
            pause = min(pause * 2, 1.0)

    def _join(self) -> event_pb2.ProcessRequest:
        join = event_pb2.JoinGroup(group=self._group, member=self._member, window=self._window,
                                   filter=self._filter.to_message())
        join.ack_timeout.FromNanoseconds(int(self._ack_timeout * 1e9))
        if self._subscribing is None:
            getattr(join, "from").CopyFrom(start_message(self._start))
        else:
            join.subscribing.CopyFrom(self._subscribing.to_message())
        return event_pb2.ProcessRequest(join=join)

    def _one_stream(self, channel) -> bool:
        says: queue.SimpleQueue = queue.SimpleQueue()
        says.put(self._join())
        call = event_pb2_grpc.EventServiceStub(channel).Process(iter(says.get, None))
        with self._lock:
            self._says = says
        failing: set[int] = set()  # partitions of which nothing is processed before they begin anew
        watchdog = Watchdog(call, 10.0)
        any_delivery = False
        try:
            if self._stop.is_set():
                return False
            for response in call:
                watchdog.alive()
                if response.WhichOneof("response") == "assignment":
                    self.partitions = frozenset(response.assignment.partitions)
                    self.joined.set()
                    continue
                any_delivery = True
                with self._lock:
                    self._busy = True
                watchdog.rest()  # the handler takes as long as it takes
                self._deliver(response.delivery, says, failing)
                watchdog.alive()
                with self._lock:
                    self._busy = False
                if self._stop.is_set():
                    break
        finally:
            watchdog.stop()
            with self._lock:
                self._says, self._busy = None, False
            self._say_good_bye(call, says)
        return any_delivery

    @staticmethod
    def _say_good_bye(call, says) -> None:
        """What was acknowledged goes out before the stream ends."""
        says.put(None)
        patience = threading.Timer(2.0, call.cancel)
        patience.start()
        try:
            for _ in call:
                pass
        except grpc.RpcError:
            pass
        patience.cancel()
        call.cancel()

    def _deliver(self, delivery, says, failing) -> None:
        attempt = delivery.attempt
        if delivery.begins:
            failing.discard(delivery.partition)
        for message in delivery.events:
            if self._stop.is_set():
                return
            if message.partition in failing and not delivery.parked:
                continue  # it comes again
            try:
                event = upcast(Event.from_message(message), self._upcasters)
                self._handler(Delivered(**{f.name: getattr(event, f.name) for f in dataclasses.fields(event)},
                                        replayed=message.position < delivery.replay_until, attempt=attempt,
                                        parked=delivery.parked))
            except Exception as error:
                again = self._subscribing is None and not delivery.parked
                if again:  # it comes again, and what is behind it
                    failing.add(message.partition)
                says.put(event_pb2.ProcessRequest(fail=event_pb2.Failure(
                    partition=message.partition, position=message.position,
                    reason=f"{type(error).__name__}: {error}")))
                if again:
                    return
                continue
            attempt = 0
            says.put(event_pb2.ProcessRequest(acknowledge=event_pb2.Acknowledgement(
                partition=message.partition, position=message.position, up_to=not delivery.parked)))


class SubscribingProcessor:
    """A member of a group of subscribing processors at every endpoint.

    `handler(event)` gets the events of the commands that a node has handled, on the stream of that node, right
    after they are committed; the caller of the command hears when the handler has returned (see Subscribing).
    It is called by one thread for each endpoint. An event at which it raises isn't given again, and what is
    committed while it isn't connected to the owner is never given: a Processor misses nothing.
    """

    def __init__(self, endpoints: Sequence[str], group: str, handler: Callable[[Delivered], None],
                 subscribing: Subscribing = Subscribing(), **options):
        self.members = [Processor([endpoint], group, handler, subscribing=subscribing, **options)
                        for endpoint in endpoints]

    def stop(self) -> None:
        """From any thread: run() returns after the events at hand."""
        for member in self.members:
            member.stop()

    def wait_joined(self, timeout: float | None = None) -> bool:
        """True once it is a member at every endpoint."""
        return all([member.joined.wait(timeout) for member in self.members])

    def run(self) -> None:
        """Until stop(); raises what a member can't get over."""
        broken: list[BaseException] = []

        def one(member: Processor) -> None:
            try:
                member.run()
            except BaseException as error:
                broken.append(error)
                self.stop()

        threads = [threading.Thread(target=one, args=(member,), daemon=True) for member in self.members]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if broken:
            raise broken[0]
