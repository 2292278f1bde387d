"""Tests of a decider without a server.

    given(Aircraft()).when(Command(...)).then(NewEvent(...))
    given(Aircraft(), NewEvent(...)).when(Command(...)).then_rejected("NOT_DEPARTED")
"""

from __future__ import annotations

import json
from typing import Any

from .model import Command, Decider, NewEvent, Reject, Reply

__all__ = ["given"]


def given(decider: Decider, *events: NewEvent, aggregate_id: str = "aggregate-1") -> _Given:
    return _Given(decider, events, aggregate_id)


class _Given:
    def __init__(self, decider: Decider, events, aggregate_id: str):
        self._decider = decider
        self._state = decider.initial(aggregate_id)
        for event in events:
            self._state = decider.evolve(self._state, event)

    def when(self, command: Command) -> _When:
        try:
            decided = list(self._decider.decide(self._state, command))
        except Reject as no:
            return _When([], None, no)
        events = [item for item in decided if isinstance(item, NewEvent)]
        replies = [item for item in decided if isinstance(item, Reply)]
        return _When(events, replies[0] if replies else None, None)


class _When:
    def __init__(self, events: list[NewEvent], reply: Reply | None, rejection: Reject | None):
        self.events = events
        self.reply = reply
        self.rejection = rejection

    def then(self, *expected: NewEvent) -> _When:
        assert self.rejection is None, f"rejected: {self.rejection}"
        got = [(e.type, _value(e.payload)) for e in self.events]
        want = [(e.type, _value(e.payload)) for e in expected]
        assert got == want, f"decided {got}, expected {want}"
        return self

    def then_reply(self, payload: Any) -> _When:
        assert self.reply is not None, "there is no reply"
        assert _value(self.reply.payload) == payload, f"replied {self.reply.payload!r}"
        return self

    def then_rejected(self, reason: str) -> _When:
        assert self.rejection is not None, f"not rejected but decided {self.events}"
        assert self.rejection.reason == reason, f"rejected with {self.rejection.reason}"
        return self


def _value(payload: Any) -> Any:
    return json.loads(payload) if isinstance(payload, str) else payload
