"""Cairn: commands to event-sourced aggregates, decided by their one owner.

    client = cairn.Client(["localhost:7411", "localhost:7412"])
    outcome = client.dispatch(cairn.Command("aircraft", "N14228", "Depart", {"flight": "UA1545", ...}))

`Client` is synchronous, `AsyncClient` is for asyncio, `Worker` decides commands, and
`cairn.testing.given` tests a decider without a server.
"""

from .client import AsyncClient, Client
from .connection import Tls
from .errors import CairnError, Conflict, Denied, Exhausted, InvalidCommand, NotFound, Rejected, Unavailable
from .model import Command, Decider, Event, NewEvent, Origin, Outcome, ProcessingFailure, Reject, Reply, Snapshot, Upcasters, upcast
from .processor import Delivered, Processor, Subscribing, SubscribingProcessor
from .subscription import BEGINNING, END, AsyncSubscription, Filter, Subscription
from .worker import Worker

__all__ = [
    "AsyncClient", "AsyncSubscription", "BEGINNING", "CairnError", "Client", "Command", "Conflict", "Decider", "Denied",
    "Delivered", "END", "Event", "Exhausted", "Filter", "InvalidCommand", "NewEvent", "NotFound", "Origin",
    "Outcome", "ProcessingFailure", "Processor", "Reject", "Rejected", "Reply", "Snapshot", "Subscribing",
    "SubscribingProcessor", "Subscription", "Tls", "Unavailable", "Upcasters", "Worker",
    "upcast",
]
