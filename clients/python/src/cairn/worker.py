"""A worker: decides commands of one aggregate type for every node it is connected to.

It keeps the aggregates that it has seen in memory. A node sends only the events that the worker
lacks; when the two disagree, the worker asks for the whole history. A broken stream is opened
again, which registers anew.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import time
from typing import Any, Sequence

import grpc
import grpc.aio

from .connection import Tls, open_async_channel
from .model import (Command, Decider, Event, NewEvent, Reject, Reply, read_payload,
                    upcast, write_payload)
from .v1 import command_pb2, command_pb2_grpc, event_pb2, event_pb2_grpc

log = logging.getLogger("cairn.worker")

CACHE_AGGREGATES = 100_000


class _Copy:
    """An aggregate as one node has shown it."""

    __slots__ = ("state", "sequence", "snapshot_sequence", "slow")

    def __init__(self, state: Any, sequence: int = 0):
        self.state = state
        self.sequence = sequence
        self.snapshot_sequence = sequence
        self.slow = False  # building it took so long that a snapshot is due


class Worker:
    """Run with `run()`, or `await serve()` inside a loop and `stop()` to end."""

    def __init__(self, endpoints: Sequence[str], decider: Decider, name: str = "python",
                 permits: int = 256, tls: Tls | None = None):
        self._tls = tls
        self._endpoints = list(endpoints)
        self._decider = decider
        self._name = name
        self._permits = permits
        self._stopping = asyncio.Event()
        self.decided = 0

    def run(self) -> None:
        asyncio.run(self.serve())

    def stop(self) -> None:
        self._stopping.set()

    async def serve(self) -> None:
        tasks = [asyncio.create_task(self._serve_endpoint(e)) for e in self._endpoints]
        await self._stopping.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve_endpoint(self, endpoint: str) -> None:
        async with open_async_channel(endpoint, self._tls) as channel:
            while True:
                try:
                    await _Session(self, channel).serve()
                    log.info("%s ended the stream", endpoint)
                except grpc.RpcError as error:
                    log.info("%s: %s %s", endpoint, error.code(), error.details())
                await asyncio.sleep(0.2)


class _Session:
    """One stream. Copies of aggregates live and die with it: another owner may know better."""

    def __init__(self, worker: Worker, channel: grpc.aio.Channel):
        self._worker = worker
        self._decider = worker._decider
        self._events = event_pb2_grpc.EventServiceStub(channel)
        self._stub = command_pb2_grpc.CommandServiceStub(channel)
        self._out: asyncio.Queue = asyncio.Queue()
        self._copies: collections.OrderedDict[str, _Copy] = collections.OrderedDict()

    async def _requests(self):
        while True:
            yield await self._out.get()

    async def serve(self) -> None:
        register = command_pb2.RegisterWorker(
            name=self._worker._name, aggregate_type=self._decider.aggregate_type,
            command_types=list(self._decider.commands), permits=self._worker._permits)
        self._out.put_nowait(command_pb2.HandleCommandsRequest(register=register))
        call = self._stub.HandleCommands(self._requests())
        heartbeat = asyncio.create_task(self._heartbeat(1.0))
        try:
            async for message in call:
                kind = message.WhichOneof("message")
                if kind == "execute":
                    result = await self._execute(message.execute)
                    self._out.put_nowait(command_pb2.HandleCommandsRequest(result=result))
                elif kind == "registered":
                    interval = message.registered.heartbeat_interval
                    heartbeat.cancel()
                    heartbeat = asyncio.create_task(
                        self._heartbeat((interval.seconds + interval.nanos / 1e9) / 2))
        finally:
            heartbeat.cancel()
            call.cancel()

    async def _heartbeat(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            self._out.put_nowait(command_pb2.HandleCommandsRequest(
                heartbeat=command_pb2.WorkerHeartbeat()))

    async def _execute(self, execute: command_pb2.Execute) -> command_pb2.ExecutionResult:
        result = command_pb2.ExecutionResult(execution_id=execute.execution_id)
        try:
            copy = await self._bring_up(execute)
            if copy is None:
                result.needs_history = True
            else:
                self._decide(copy, Command.from_message(execute.command), result)
        except Exception as error:  # a fault of the decider fails this one command
            log.exception("decider failed")
            self._copies.pop(execute.command.aggregate_id, None)
            result = command_pb2.ExecutionResult(execution_id=execute.execution_id,
                                                 failure=f"{type(error).__name__}: {error}"[:300])
        self._worker.decided += 1
        return result

    async def _bring_up(self, execute: command_pb2.Execute) -> _Copy | None:
        aggregate_id = execute.command.aggregate_id
        begun = time.monotonic()
        copy = self._copies.get(aggregate_id)
        if execute.HasField("snapshot"):
            copy = self._from_snapshot(aggregate_id, execute.snapshot)
        elif execute.events_from == 0:
            copy = _Copy(self._decider.initial(aggregate_id))
        if copy is None:
            self._copies.pop(aggregate_id, None)
            return None
        if copy.sequence == execute.events_from:
            for message in execute.events:
                self._take(copy, message)
        elif not execute.HasField("snapshot"):
            self._copies.pop(aggregate_id, None)
            return None
        if copy.sequence < execute.sequence:  # more than fits into one message
            request = event_pb2.ReadAggregateRequest(aggregate_id=aggregate_id,
                                                     from_sequence=copy.sequence)
            async for page in self._events.ReadAggregate(request, timeout=30):
                for message in page.events:
                    if message.sequence < execute.sequence:
                        self._take(copy, message)
        if copy.sequence != execute.sequence:
            return None
        if time.monotonic() - begun >= getattr(self._decider, "snapshot_after", float("inf")):
            copy.slow = copy.sequence > copy.snapshot_sequence
        self._copies[aggregate_id] = copy
        self._copies.move_to_end(aggregate_id)
        if len(self._copies) > CACHE_AGGREGATES:
            self._copies.popitem(last=False)
        return copy

    def _from_snapshot(self, aggregate_id: str, snapshot: event_pb2.Snapshot) -> _Copy:
        """From the beginning when the decider can't read it: that costs time, not truth."""
        read = getattr(self._decider, "from_snapshot", None)
        if read is not None:
            try:
                return _Copy(read(aggregate_id, read_payload(snapshot)), snapshot.sequence)
            except Exception:
                log.warning("snapshot of %s can't be read", aggregate_id, exc_info=True)
        return _Copy(self._decider.initial(aggregate_id))

    def _snapshot(self, copy: _Copy, result: command_pb2.ExecutionResult) -> None:
        every = getattr(self._decider, "snapshot_every", 0)
        if (every > 0 and copy.sequence - copy.snapshot_sequence >= every) or copy.slow:
            copy.slow = False
            write_payload(result.snapshot, self._decider.to_snapshot(copy.state))
            result.snapshot.sequence = copy.snapshot_sequence = copy.sequence

    def _take(self, copy: _Copy, message: event_pb2.Event) -> None:
        if message.sequence != copy.sequence:
            raise ValueError(f"event {message.sequence} came, {copy.sequence} was expected")
        event = upcast(Event.from_message(message), getattr(self._decider, "upcasters", {}))
        copy.state = self._decider.evolve(copy.state, event)
        copy.sequence += 1

    def _decide(self, copy: _Copy, command: Command, result: command_pb2.ExecutionResult) -> None:
        try:
            decided = list(self._decider.decide(copy.state, command))
        except Reject as no:
            result.rejection.reason = no.reason
            result.rejection.message = no.message
            return
        for item in decided:
            if isinstance(item, Reply):
                result.reply.type = item.type
                write_payload(result.reply, item.payload)
            elif isinstance(item, NewEvent):
                result.events.append(item.to_message())
                copy.state = self._decider.evolve(copy.state, item)
                copy.sequence += 1
            else:
                raise TypeError(f"decide() gave {type(item).__name__}, not NewEvent or Reply")
        self._snapshot(copy, result)
