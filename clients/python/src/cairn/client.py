"""Dispatching and reading, synchronous and with asyncio, over several endpoints.

A command is sent again, with the same id and to the next endpoint, while its outcome is unknown;
the recorded outcome makes that safe.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
import uuid
from typing import AsyncIterator, Callable, Iterable, Iterator, Sequence

import grpc
import grpc.aio

from . import errors
from .connection import Tls, open_async_channel, open_channel
from .model import Command, Event, NewEvent, Origin, Outcome, Snapshot, Upcasters, write_origin
from .routing import AsyncWatcher, Router
from .processor import Delivered, Processor
from .subscription import BEGINNING, AsyncSubscription, Filter, Following, Subscription, Watchdog, start_message
from .v1 import cluster_pb2, cluster_pb2_grpc, command_pb2, command_pb2_grpc, event_pb2, event_pb2_grpc

ROUTE = True  # commands and reads of an aggregate go straight to its owner, unless a client says otherwise


class _Attempts:
    """How long to go on, how long one try may take, how long to wait in between."""

    def __init__(self, timeout: float, try_timeout: float):
        self._end = time.monotonic() + timeout
        self._try_timeout = try_timeout
        self._pause = 0.01

    def try_timeout(self) -> float:
        return max(0.001, min(self._try_timeout, self._end - time.monotonic()))

    def pause_after(self, error: errors.CairnError) -> float:
        """Seconds to wait before the next try; raises the error when it is final."""
        if not errors.is_retryable(error):
            raise error
        pause = max(error.retry_after, self._pause * random.uniform(0.5, 1.5))
        self._pause = min(self._pause * 2, 0.2)
        if time.monotonic() + pause >= self._end:
            raise error
        return pause


def _append_request(aggregate_type, aggregate_id, events, expected_sequence, command_id, origin):
    request = event_pb2.AppendRequest(
        command_id=command_id or uuid.uuid4().hex, aggregate_type=aggregate_type,
        aggregate_id=aggregate_id, events=[event.to_message() for event in events])
    if expected_sequence is not None:
        request.expected_sequence = expected_sequence
    write_origin(request, origin)
    return request


def _consistency(stale: bool):
    return event_pb2.CONSISTENCY_STALE if stale else event_pb2.CONSISTENCY_LINEARIZABLE


def _read_request(aggregate_id, from_sequence, backwards, stale, limit):
    request = event_pb2.ReadAggregateRequest(
        aggregate_id=aggregate_id, limit=limit,
        direction=event_pb2.DIRECTION_BACKWARDS if backwards else event_pb2.DIRECTION_FORWARDS,
        consistency=_consistency(stale))
    if from_sequence is not None:
        request.from_sequence = from_sequence
    return request


class Client:
    """Synchronous. Safe to use from several threads. With `route` (the default) what concerns one aggregate goes
    straight to its owner, and to any of the endpoints when that can't be reached."""

    def __init__(self, endpoints: Sequence[str] = ("localhost:7411",), timeout: float = 30.0,
                 try_timeout: float = 2.0, route: bool | None = None, tls: Tls | None = None):
        self._endpoints = list(endpoints)
        self._tls = tls
        self._channels = [open_channel(e, tls) for e in endpoints]
        self._next = itertools.count()
        self._timeout = timeout
        self._try_timeout = try_timeout
        self._router = Router(self._channels, tls) if (ROUTE if route is None else route) else None

    def close(self) -> None:
        if self._router is not None:
            self._router.close()
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def _channel(self) -> grpc.Channel:
        return self._channels[next(self._next) % len(self._channels)]

    def _route(self, aggregate_id: str | None) -> tuple[str | None, grpc.Channel]:
        """The owner of the aggregate where it is known, else the next endpoint."""
        routed = self._router.channel(aggregate_id) if self._router is not None and aggregate_id else None
        return routed or (None, self._channel())

    def _call(self, method, request, timeout, aggregate_id=None):
        attempts = _Attempts(timeout or self._timeout, self._try_timeout)
        while True:
            owner, channel = self._route(aggregate_id)
            try:
                return method(channel)(request, timeout=attempts.try_timeout())
            except grpc.RpcError as broken:
                error = errors.from_rpc(broken)
                if owner is not None and errors.is_retryable(error):
                    self._router.table.avoid(owner)
                time.sleep(attempts.pause_after(error))

    def dispatch(self, command: Command, timeout: float | None = None) -> Outcome:
        """Send a command and wait for its outcome. Raises Rejected, Conflict, InvalidCommand, ..."""
        request = command_pb2.DispatchRequest(command=command.to_message())
        return Outcome.from_message(self._call(
            lambda channel: command_pb2_grpc.CommandServiceStub(channel).Dispatch, request, timeout,
            command.aggregate_id))

    def append(self, aggregate_type: str, aggregate_id: str, events: Iterable[NewEvent],
               expected_sequence: int | None = None, command_id: str | None = None,
               timeout: float | None = None, origin: Origin = Origin()) -> Outcome:
        """Append events without a handler, exactly once for each command id."""
        request = _append_request(aggregate_type, aggregate_id, events, expected_sequence, command_id, origin)
        return Outcome.from_message(self._call(
            lambda channel: event_pb2_grpc.EventServiceStub(channel).Append, request, timeout, aggregate_id))

    def read(self, aggregate_id: str, from_sequence: int | None = None, backwards: bool = False,
             stale: bool = False, limit: int = 0, timeout: float | None = None) -> Iterator[Event]:
        """The aggregate's events; raises NotFound when it has none. A node that fails or hangs on the way
        is replaced by the next, which goes on behind what was given."""
        attempts = _Attempts(timeout or self._timeout, timeout or self._timeout)
        request = _read_request(aggregate_id, from_sequence, backwards, stale, limit)
        while True:
            owner, channel = self._route(aggregate_id)
            call = event_pb2_grpc.EventServiceStub(channel).ReadAggregate(request, timeout=attempts.try_timeout())
            watchdog = Watchdog(call, self._try_timeout)
            try:
                for page in call:
                    watchdog.rest()  # the caller takes its time
                    for message in page.events:
                        yield Event.from_message(message)
                        if backwards and message.sequence == 0 or request.limit == 1:
                            return
                        request.from_sequence = message.sequence + (-1 if backwards else 1)
                        request.limit -= request.limit > 0
                    watchdog.alive()
                return
            except grpc.RpcError as broken:
                error = errors.from_rpc(broken)
                if owner is not None and errors.is_retryable(error):
                    self._router.table.avoid(owner)
                time.sleep(attempts.pause_after(error))
            finally:
                watchdog.stop()
                call.cancel()

    def read_snapshot(self, aggregate_id: str, stale: bool = False, timeout: float | None = None) -> Snapshot:
        """What the aggregate's next loading starts from; raises NotFound when it has none."""
        request = event_pb2.ReadSnapshotRequest(aggregate_id=aggregate_id, consistency=_consistency(stale))
        return Snapshot.from_message(self._call(
            lambda channel: event_pb2_grpc.EventServiceStub(channel).ReadSnapshot, request, timeout).snapshot)

    def write_snapshot(self, snapshot: Snapshot, command_id: str | None = None, timeout: float | None = None) -> None:
        """In the form that the aggregate's handler reads; in place of the one that it has."""
        request = event_pb2.WriteSnapshotRequest(command_id=command_id or uuid.uuid4().hex,
                                                 snapshot=snapshot.to_message())
        self._call(lambda channel: event_pb2_grpc.EventServiceStub(channel).WriteSnapshot, request, timeout)

    def delete_snapshot(self, aggregate_type: str, aggregate_id: str, command_id: str | None = None,
                        timeout: float | None = None) -> None:
        request = event_pb2.DeleteSnapshotRequest(command_id=command_id or uuid.uuid4().hex,
                                                  aggregate_type=aggregate_type, aggregate_id=aggregate_id)
        self._call(lambda channel: event_pb2_grpc.EventServiceStub(channel).DeleteSnapshot, request, timeout)

    def subscribe(self, start=BEGINNING, filter: Filter = Filter(), credits: int = 2000,
                  heartbeat: float = 10.0, upcasters: Upcasters = {}) -> Subscription:
        """Follow the log from BEGINNING, END, a token or a datetime. Iterate over what this gives; it
        survives failures of nodes, and ends when it is closed."""
        return Subscription(self._channels, Following(start, filter, credits, heartbeat, upcasters), next(self._next))

    def processor(self, group: str, handler: Callable[[Delivered], None], **options) -> Processor:
        """A member of a processor group, for `run()`; see Processor."""
        return Processor(self._endpoints, group, handler, tls=self._tls, **options)

    def read_all(self, start=BEGINNING, filter: Filter = Filter(), limit: int = 0,
                 stale: bool = False, backwards: bool = False) -> Iterator[Event]:
        """What is committed now, in order within each partition; backwards, the newest first, beginning at the
        end or before a token or time. Begins again at another node while nothing was given; raises Unavailable
        when a node fails later."""
        request = event_pb2.ReadAllRequest(
            filter=filter.to_message(), limit=limit, consistency=_consistency(stale),
            direction=event_pb2.DIRECTION_BACKWARDS if backwards else event_pb2.DIRECTION_FORWARDS)
        if not (backwards and start is BEGINNING):
            getattr(request, "from").CopyFrom(start_message(start))
        for page in self._pages("ReadAll", request):
            for message in page.events:
                yield Event.from_message(message)

    def list_aggregates(self, prefix: str = "", aggregate_types: Sequence[str] = (), after: str = "",
                        limit: int = 0, stale: bool = False) -> Iterator[event_pb2.Aggregate]:
        """Aggregates in the order of their ids. To go on later: `after` the last id."""
        request = event_pb2.ListAggregatesRequest(
            filter=event_pb2.EventFilter(aggregate_id_prefixes=[prefix] if prefix else [],
                                         aggregate_types=aggregate_types),
            after=after, limit=limit, consistency=_consistency(stale))
        for page in self._pages("ListAggregates", request):
            yield from page.aggregates

    def count_events(self, filter: Filter = Filter(), stale: bool = False,
                     timeout: float | None = None) -> dict[tuple[str, str], int]:
        """How many events there are, by aggregate type and event type."""
        request = event_pb2.CountEventsRequest(filter=filter.to_message(), consistency=_consistency(stale))
        attempts = _Attempts(timeout or self._timeout, timeout or self._timeout)
        while True:
            try:
                counts = event_pb2_grpc.EventServiceStub(self._channel()).CountEvents(
                    request, timeout=attempts.try_timeout()).counts
                return {(c.aggregate_type, c.event_type): c.count for c in counts}
            except grpc.RpcError as error:
                time.sleep(attempts.pause_after(errors.from_rpc(error)))

    def _pages(self, method, request):
        """Begins again at another node while nothing was given."""
        attempts = _Attempts(self._timeout, self._timeout)
        started = False
        while True:
            try:
                for page in getattr(event_pb2_grpc.EventServiceStub(self._channel()), method)(request):
                    started = True
                    yield page
                return
            except grpc.RpcError as error:
                pause = attempts.pause_after(errors.from_rpc(error))
                if started:
                    raise errors.from_rpc(error) from None
                time.sleep(pause)

    def group(self, name: str, timeout: float | None = None) -> event_pb2.GetGroupResponse:
        """Where a processor group stands: members, partitions, parked events."""
        return self._call(lambda channel: event_pb2_grpc.EventServiceStub(channel).GetGroup,
                          event_pb2.GetGroupRequest(group=name), timeout)

    def reset_group(self, name: str, start=BEGINNING, timeout: float | None = None) -> None:
        """Let a processor group begin elsewhere, for instance from the beginning: a replay."""
        request = event_pb2.ResetGroupRequest(group=name)
        getattr(request, "from").CopyFrom(start_message(start))
        self._call(lambda channel: event_pb2_grpc.EventServiceStub(channel).ResetGroup, request, timeout)

    def retry_parked(self, name: str, events: Iterable[tuple[int, int]] = (), timeout: float | None = None) -> int:
        """Let the group's members try its parked events once more: those at (partition, position), or all."""
        request = event_pb2.RetryParkedRequest(group=name, events=[
            event_pb2.ParkedPosition(partition=partition, position=position) for partition, position in events])
        return self._call(lambda channel: event_pb2_grpc.EventServiceStub(channel).RetryParked, request, timeout).events

    def _operate(self, method: str, request, timeout: float | None) -> int:
        return self._call(lambda channel: getattr(cluster_pb2_grpc.ClusterServiceStub(channel), method), request,
                          timeout).placement_version

    def drain_node(self, node: str, force: bool = False, timeout: float | None = None) -> int:
        """Hand over what the member (its name or id) owns, then move its replicas away; the topology shows how far
        it is. Gives the version of the placement that says so."""
        request = cluster_pb2.DrainNodeRequest(node=node, force=force)
        return self._operate("DrainNode", request, timeout)

    def undrain_node(self, node: str, timeout: float | None = None) -> int:
        """Take a drain back."""
        request = cluster_pb2.DrainNodeRequest(node=node, cancel=True)
        return self._operate("DrainNode", request, timeout)

    def remove_node(self, node: str, timeout: float | None = None) -> int:
        """A member that is dead for good, or drained, is none any more. It can't be taken back."""
        request = cluster_pb2.RemoveNodeRequest(node=node)
        return self._operate("RemoveNode", request, timeout)

    def transfer_ownership(self, partition: int, node: str, timeout: float | None = None) -> int:
        """Make a member that holds the partition its preferred owner."""
        request = cluster_pb2.TransferOwnershipRequest(partition=partition, node=node)
        return self._operate("TransferOwnership", request, timeout)

    def forget_subject(self, subject: str, timeout: float | None = None) -> int:
        """Destroy the subject's keys on all nodes: payloads about it are gone for good, events stay in their places.
        Gives the number of partitions, which is all of them. Can be given again."""
        request = cluster_pb2.ForgetSubjectRequest(command_id=uuid.uuid4().hex, subject=subject)
        return self._call(lambda channel: cluster_pb2_grpc.ClusterServiceStub(channel).ForgetSubject, request,
                          timeout).partitions

    def update_settings(self, timeout: float | None = None, **settings: int) -> int:
        """Change `replication_factor`, `moves_at_once`, `transfer_bytes` or `grace_ms` of the running cluster."""
        request = cluster_pb2.UpdateSettingsRequest(**settings)
        return self._operate("UpdateSettings", request, timeout)

    def topology(self, timeout: float | None = None) -> cluster_pb2.Topology:
        return self._call(lambda channel: cluster_pb2_grpc.ClusterServiceStub(channel).GetTopology,
                          cluster_pb2.GetTopologyRequest(), timeout).topology


class _Stream:
    """One DispatchStream to one endpoint, opened again when it breaks."""

    def __init__(self, channel: grpc.aio.Channel):
        self._stub = command_pb2_grpc.CommandServiceStub(channel)
        self._call: grpc.aio.StreamStreamCall | None = None
        self._reader: asyncio.Task | None = None
        self._waiting: dict[str, asyncio.Future] = {}
        self._queue: asyncio.Queue = asyncio.Queue()

    async def _requests(self, queue: asyncio.Queue):
        while True:
            request = await queue.get()
            if request is None:
                return
            yield request

    def _open(self) -> None:
        self._queue = asyncio.Queue()
        self._call = self._stub.DispatchStream(self._requests(self._queue))
        self._reader = asyncio.create_task(self._read(self._call))

    async def _read(self, call) -> None:
        error = errors.Unavailable(grpc.StatusCode.UNAVAILABLE, "STREAM_ENDED", "the stream ended")
        try:
            async for response in call:
                future = self._waiting.pop(response.command_id, None)
                if future is None or future.done():
                    continue
                if response.WhichOneof("result") == "response":
                    future.set_result(Outcome.from_message(response.response))
                else:
                    future.set_exception(errors.from_status(response.error))
        except grpc.RpcError as broken:
            error = errors.Unavailable(grpc.StatusCode.UNAVAILABLE, "STREAM_BROKEN",
                                       str(broken.details()))
        except asyncio.CancelledError:
            pass
        self._call = None
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(error)

    async def dispatch(self, command: command_pb2.Command, timeout: float) -> Outcome:
        if self._call is None:
            self._open()
        request = command_pb2.DispatchStreamRequest(command=command)
        request.timeout.FromNanoseconds(int(timeout * 1e9))
        future = asyncio.get_running_loop().create_future()
        self._waiting[command.command_id] = future
        self._queue.put_nowait(request)
        try:
            return await asyncio.wait_for(future, timeout)
        except asyncio.TimeoutError:
            self._waiting.pop(command.command_id, None)
            raise errors.Unavailable(grpc.StatusCode.DEADLINE_EXCEEDED, "TRY_TIMEOUT",
                                     f"no answer within {timeout:.1f} s") from None

    async def close(self) -> None:
        reader, call = self._reader, self._call
        self._queue.put_nowait(None)
        if call is not None:
            call.cancel()
        if reader is not None:
            await asyncio.gather(reader, return_exceptions=True)


class AsyncClient:
    """For asyncio: commands are pipelined over one stream to each node. With `route` (the default) each goes
    straight to its aggregate's owner, and to any of the endpoints when that can't be reached."""

    def __init__(self, endpoints: Sequence[str] = ("localhost:7411",), timeout: float = 30.0,
                 try_timeout: float = 2.0, route: bool | None = None, tls: Tls | None = None):
        self._tls = tls
        self._channels = [open_async_channel(e, tls) for e in endpoints]
        self._streams = [_Stream(channel) for channel in self._channels]
        self._next = itertools.count()
        self._timeout = timeout
        self._try_timeout = try_timeout
        self._watcher = AsyncWatcher(self._channels) if (ROUTE if route is None else route) else None
        self._owners: dict[str, tuple[grpc.aio.Channel, _Stream]] = {}

    async def close(self) -> None:
        if self._watcher is not None:
            await self._watcher.close()
        for stream in [*self._streams, *(stream for _, stream in self._owners.values())]:
            await stream.close()
        for channel in [*self._channels, *(channel for channel, _ in self._owners.values())]:
            await channel.close()

    def _route(self, aggregate_id: str) -> tuple[str | None, _Stream]:
        """The stream to the owner of the aggregate where it is known, else to the next endpoint."""
        owner = None
        if self._watcher is not None:
            self._watcher.start()
            owner = self._watcher.table.owner_of(aggregate_id)
        if owner is None:
            return None, self._streams[next(self._next) % len(self._streams)]
        if owner not in self._owners:
            channel = open_async_channel(owner, self._tls)
            self._owners[owner] = channel, _Stream(channel)
        return owner, self._owners[owner][1]

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc) -> None:
        await self.close()

    async def dispatch(self, command: Command, timeout: float | None = None) -> Outcome:
        """Send a command and wait for its outcome. Raises Rejected, Conflict, InvalidCommand, ..."""
        attempts = _Attempts(timeout or self._timeout, self._try_timeout)
        message = command.to_message()
        while True:
            owner, stream = self._route(command.aggregate_id)
            try:
                return await stream.dispatch(message, attempts.try_timeout())
            except errors.CairnError as error:
                if owner is not None and errors.is_retryable(error):
                    self._watcher.table.avoid(owner)
                await asyncio.sleep(attempts.pause_after(error))

    async def read(self, aggregate_id: str, from_sequence: int | None = None,
                   backwards: bool = False, stale: bool = False, limit: int = 0,
                   timeout: float | None = None, endpoint: int | None = None) -> AsyncIterator[Event]:
        """The aggregate's events; raises NotFound when it has none. `endpoint` picks one by index."""
        attempts = _Attempts(timeout or self._timeout, timeout or self._timeout)
        request = _read_request(aggregate_id, from_sequence, backwards, stale, limit)
        while True:
            index = next(self._next) if endpoint is None else endpoint
            stub = event_pb2_grpc.EventServiceStub(self._channels[index % len(self._channels)])
            started = False
            try:
                async for page in stub.ReadAggregate(request, timeout=attempts.try_timeout()):
                    for message in page.events:
                        started = True
                        yield Event.from_message(message)
                return
            except grpc.RpcError as error:
                pause = attempts.pause_after(errors.from_rpc(error))
                if started:
                    raise errors.from_rpc(error) from None
                await asyncio.sleep(pause)

    def subscribe(self, start=BEGINNING, filter: Filter = Filter(), credits: int = 2000,
                  heartbeat: float = 10.0, upcasters: Upcasters = {}) -> AsyncSubscription:
        """Follow the log; `async for event in client.subscribe(...)`. See Client.subscribe."""
        return AsyncSubscription(self._channels, Following(start, filter, credits, heartbeat, upcasters),
                                 next(self._next))

    async def topology(self, endpoint: int = 0) -> cluster_pb2.Topology:
        stub = cluster_pb2_grpc.ClusterServiceStub(self._channels[endpoint])
        return (await stub.GetTopology(cluster_pb2.GetTopologyRequest(), timeout=5)).topology
