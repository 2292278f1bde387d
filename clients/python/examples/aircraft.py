"""An aircraft as a Python worker: what happens to it must be possible.

Decides the same as clients/c/examples/aircraft/aircraft.c.

    python clients/python/examples/aircraft.py localhost:7411 localhost:7412 localhost:7413
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace

import cairn


@dataclass(frozen=True)
class State:
    in_the_air: bool = False
    flight: str = ""
    last_at: str = ""
    flights: int = 0


class Aircraft:
    aggregate_type = "aircraft"
    commands = ("Schedule", "Depart", "Arrive", "Cancel")
    snapshot_every = 500

    def initial(self, aggregate_id: str) -> State:
        return State()

    def decide(self, state: State, command: cairn.Command):
        flight, at = _parse(command.payload)
        if at < state.last_at:
            raise cairn.Reject("BACK_IN_TIME", f"the aircraft has been at {state.last_at} already")
        if command.type == "Schedule":
            yield cairn.NewEvent("FlightScheduled", command.payload)
        elif command.type == "Depart":
            if state.in_the_air:
                raise cairn.Reject("ALREADY_IN_THE_AIR",
                                   f"the aircraft is in the air with flight {state.flight}")
            yield cairn.NewEvent("FlightDeparted", command.payload)
        elif command.type == "Arrive":
            if not state.in_the_air or state.flight != flight:
                raise cairn.Reject("NOT_DEPARTED", f"flight {flight} has not departed")
            yield cairn.NewEvent("FlightArrived", command.payload)
            yield cairn.Reply("Flights", {"flights": state.flights + 1})
        else:
            if state.in_the_air and state.flight == flight:
                raise cairn.Reject("ALREADY_IN_THE_AIR", "a flight in the air can't be cancelled")
            yield cairn.NewEvent("FlightCancelled", command.payload)

    def to_snapshot(self, state: State):
        return asdict(state)

    def from_snapshot(self, aggregate_id: str, payload) -> State:
        return State(**json.loads(payload))

    def evolve(self, state: State, event) -> State:
        flight, at = _parse(event.payload)
        if event.type == "FlightDeparted":
            return replace(state, in_the_air=True, flight=flight, last_at=at)
        if event.type == "FlightArrived":
            return replace(state, in_the_air=False, flights=state.flights + 1, last_at=at)
        return replace(state, last_at=at)


def _parse(payload) -> tuple[str, str]:
    try:
        body = json.loads(payload)
        flight, at = body["flight"], body["at"]
        if 0 < len(flight) <= 31 and len(at) == 20:
            return flight, at
    except (TypeError, ValueError, KeyError):
        pass
    raise cairn.Reject("INVALID_COMMAND",
                       "the payload must be JSON with `flight` and `at` (YYYY-MM-DDThh:mm:ssZ)")


if __name__ == "__main__":
    cairn.Worker(sys.argv[1:] or ["localhost:7411"], Aircraft(), name="aircraft.py", tls=cairn.Tls.from_environment()).run()
