"""Commands, events and deciders as plain values."""

from __future__ import annotations

import datetime
import json
import uuid
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Generic, Iterable, Mapping, Protocol, Sequence, Tuple, TypeVar, Union

from .v1 import command_pb2, event_pb2

# Bytes travel as they are; text is taken as JSON; anything else is written as JSON.
Payload = Union[bytes, str, Mapping[str, Any], list, int, float, bool, None]
S = TypeVar("S")


def write_payload(message, payload: Payload) -> None:
    if payload is None:
        return
    if isinstance(payload, (bytes, bytearray)):
        message.data = bytes(payload)
    elif isinstance(payload, str):
        message.json = payload
    else:
        message.json = json.dumps(payload, separators=(",", ":"))


def read_payload(message) -> Union[bytes, str, None]:
    which = message.WhichOneof("payload")
    return None if which is None else getattr(message, which)


@dataclass(frozen=True)
class Origin:
    """What a command is part of; its events have the same."""

    # The whole conversation. Empty: the command began one, under its own id.
    correlation_id: str = ""
    # The id of the event or command that led to the command.
    causation_id: str = ""
    # W3C Trace Context.
    traceparent: str = ""
    tracestate: str = ""


def write_origin(message, origin: Origin) -> None:
    if origin != Origin():
        message.origin.correlation_id = origin.correlation_id
        message.origin.causation_id = origin.causation_id
        message.origin.traceparent = origin.traceparent
        message.origin.tracestate = origin.tracestate


def read_origin(message) -> Origin:
    if not message.HasField("origin"):
        return Origin()
    return Origin(message.origin.correlation_id, message.origin.causation_id, message.origin.traceparent,
                  message.origin.tracestate)


@dataclass(frozen=True)
class Command:
    aggregate_type: str
    aggregate_id: str
    type: str
    payload: Payload = None
    # Made when absent; keep it to ask again.
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    metadata: Mapping[str, str] = field(default_factory=dict)
    expected_sequence: int | None = None
    origin: Origin = Origin()
    # Whom it is about: payloads of its events are unreadable once that subject is forgotten.
    subject: str = ""

    @staticmethod
    def caused_by(event: Event, aggregate_type: str, aggregate_id: str, type: str, payload: Payload = None,
                  **more) -> Command:
        """A command that answers an event: part of its conversation, and the same each time the event comes."""
        more.setdefault("id", f"{event.id}:{aggregate_type}:{type}")
        origin = Origin(event.origin.correlation_id or event.command_id, event.id,
                        event.origin.traceparent, event.origin.tracestate)
        return Command(aggregate_type, aggregate_id, type, payload, origin=origin, **more)

    def to_message(self) -> command_pb2.Command:
        message = command_pb2.Command(
            command_id=self.id, aggregate_type=self.aggregate_type,
            aggregate_id=self.aggregate_id, type=self.type, metadata=dict(self.metadata), subject=self.subject)
        write_payload(message, self.payload)
        write_origin(message, self.origin)
        if self.expected_sequence is not None:
            message.expected_sequence = self.expected_sequence
        return message

    @staticmethod
    def from_message(message: command_pb2.Command) -> Command:
        return Command(message.aggregate_type, message.aggregate_id, message.type,
                       read_payload(message), message.command_id, dict(message.metadata),
                       origin=read_origin(message), subject=message.subject)

    def json(self) -> Any:
        """The payload, parsed."""
        return json.loads(self.payload) if isinstance(self.payload, (str, bytes)) else self.payload


@dataclass(frozen=True)
class NewEvent:
    type: str
    payload: Payload = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    # Version of the payload's form.
    revision: int = 0
    # Made by the node when empty.
    id: str = ""
    # Whom it is about; empty: the command's.
    subject: str = ""

    def to_message(self) -> event_pb2.NewEvent:
        message = event_pb2.NewEvent(type=self.type, metadata=dict(self.metadata), revision=self.revision,
                                     id=self.id, subject=self.subject)
        write_payload(message, self.payload)
        return message


@dataclass(frozen=True)
class Event:
    aggregate_type: str
    aggregate_id: str
    sequence: int
    type: str
    payload: Union[bytes, str, None]
    partition: int = 0
    position: int = 0
    time: datetime.datetime | None = None
    command_id: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    id: str = ""
    revision: int = 0
    origin: Origin = Origin()
    principal: str = ""  # who sent the command, as certificate or token showed
    subject: str = ""  # whom it is about
    forgotten: bool = False  # that subject is forgotten: there is no payload any more

    @staticmethod
    def from_message(message: event_pb2.Event) -> Event:
        return Event(message.aggregate_type, message.aggregate_id, message.sequence, message.type,
                     read_payload(message), message.partition, message.position,
                     message.time.ToDatetime(tzinfo=datetime.timezone.utc), message.command_id,
                     dict(message.metadata), message.id, message.revision, read_origin(message), message.principal,
                     message.subject, message.forgotten)

    def json(self) -> Any:
        """The payload, parsed."""
        return None if self.payload is None else json.loads(self.payload)

    def upcast(self, revision: int, payload: Payload, type: str | None = None) -> Event:
        """The same event in a later form."""
        written = event_pb2.NewEvent()
        write_payload(written, payload)
        return replace(self, revision=revision, payload=read_payload(written), type=type or self.type)


# By event type and revision: what makes a later revision of it, with Event.upcast().
Upcasters = Mapping[Tuple[str, int], Callable[[Event], Event]]


def upcast(event: Event, upcasters: Upcasters) -> Event:
    """Until no upcaster fits. What is stored stays as it is."""
    while not event.forgotten and (upcaster := upcasters.get((event.type, event.revision))) is not None:
        later = upcaster(event)
        if later.revision <= event.revision:
            raise ValueError(f"the upcaster of {event.type} revision {event.revision} gave revision {later.revision}")
        event = later
    return event


@dataclass(frozen=True)
class Snapshot:
    """The saved state of an aggregate, in its handler's form."""

    aggregate_type: str
    aggregate_id: str
    # How many events it includes.
    sequence: int
    payload: Payload

    @staticmethod
    def from_message(message: event_pb2.Snapshot) -> Snapshot:
        return Snapshot(message.aggregate_type, message.aggregate_id, message.sequence, read_payload(message))

    def to_message(self) -> event_pb2.Snapshot:
        message = event_pb2.Snapshot(aggregate_type=self.aggregate_type, aggregate_id=self.aggregate_id,
                                     sequence=self.sequence)
        write_payload(message, self.payload)
        return message


@dataclass(frozen=True)
class Reply:
    type: str
    payload: Payload = None


@dataclass(frozen=True)
class ProcessingFailure:
    """A subscribing processor failed at an event of the command, or was late. The events are committed."""

    group: str
    timed_out: bool
    reason: str


@dataclass(frozen=True)
class Outcome:
    command_id: str
    first_sequence: int
    event_count: int
    partition: int
    token: str
    reply: Reply | None = None
    # Address of the owner when another node was asked; a hint, so it doesn't make outcomes differ.
    owner: str = field(default="", compare=False)
    # Of subscribing processors that report; a repeat of the command doesn't hear of it.
    processing_failures: Sequence[ProcessingFailure] = field(default=(), compare=False)

    @staticmethod
    def from_message(message) -> Outcome:
        reply = None
        if isinstance(message, command_pb2.DispatchResponse) and message.HasField("reply"):
            reply = Reply(message.reply.type, read_payload(message.reply))
        return Outcome(message.command_id, message.first_sequence, message.event_count,
                       message.partition, message.token, reply, message.owner,
                       tuple(ProcessingFailure(f.group, f.timed_out, f.reason)
                             for f in message.processing_failures))


class Reject(Exception):
    """Raised by a decider: a business rule says no."""

    def __init__(self, reason: str, message: str = ""):
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message


class Decider(Protocol, Generic[S]):
    """An aggregate type. All of it is pure: no clock, no randomness, no I/O.

    `decide` gives events, and a Reply anywhere among them if the caller should get one; it raises
    Reject to refuse.

    A decider may save its state: with `snapshot_every` events between two snapshots,
    `to_snapshot(state)` giving a payload and `from_snapshot(aggregate_id, payload)` reading it; or when
    building the state anew took `snapshot_after` seconds.

    A decider may declare `upcasters`: evolve then never sees the old revisions.
    """

    aggregate_type: str
    commands: Iterable[str]

    def initial(self, aggregate_id: str) -> S: ...

    def decide(self, state: S, command: Command) -> Iterable[Union[NewEvent, Reply]]: ...

    def evolve(self, state: S, event: Union[Event, NewEvent]) -> S: ...
