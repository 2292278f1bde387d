"""The example decider, tested without a server."""

import pathlib
import sys

import cairn
from cairn.testing import given

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples"))
from aircraft import Aircraft  # noqa: E402

AT_TEN = {"flight": "UA1", "at": "2013-01-01T10:00:00Z"}
AT_NINE = {"flight": "UA1", "at": "2013-01-01T09:00:00Z"}


def command(type_, payload):
    import json

    return cairn.Command("aircraft", "N1", type_, json.dumps(payload))


def event(type_, payload):
    import json

    return cairn.NewEvent(type_, json.dumps(payload))


def test_a_scheduled_aircraft_departs():
    given(Aircraft(), event("FlightScheduled", AT_NINE)).when(command("Depart", AT_TEN)).then(
        event("FlightDeparted", AT_TEN))


def test_an_aircraft_in_the_air_can_not_depart():
    given(Aircraft(), event("FlightDeparted", AT_NINE)).when(command("Depart", AT_TEN)).then_rejected(
        "ALREADY_IN_THE_AIR")


def test_an_aircraft_on_the_ground_can_not_arrive():
    given(Aircraft()).when(command("Arrive", AT_TEN)).then_rejected("NOT_DEPARTED")


def test_nothing_goes_back_in_time():
    given(Aircraft(), event("FlightScheduled", AT_TEN)).when(command("Depart", AT_NINE)).then_rejected(
        "BACK_IN_TIME")


def test_an_arrival_replies_with_the_number_of_flights():
    given(Aircraft(), event("FlightDeparted", AT_NINE)).when(command("Arrive", AT_TEN)).then(
        event("FlightArrived", AT_TEN)).then_reply({"flights": 1})
