"""The README's session, typed by a test against a fresh node without proto files."""

import json
import pathlib
import subprocess

GRPCURL = pathlib.Path(__file__).resolve().parent.parent.parent / "build" / "tools" / "grpcurl"


def grpcurl(endpoint, *arguments):
    done = subprocess.run([str(GRPCURL), "-plaintext", *arguments[:-1], endpoint, arguments[-1]]
                          if arguments[-1] else [str(GRPCURL), "-plaintext", endpoint, *arguments[:-1]],
                          capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout + done.stderr


def call(endpoint, method, body):
    code, output = grpcurl(endpoint, "-d", json.dumps(body), method)
    return code, output


def test_the_session_of_the_readme(one):
    endpoint = one.endpoints[0]
    code, output = grpcurl(endpoint, "list")
    assert code == 0 and "cairn.v1.CommandService" in output and "grpc.health.v1.Health" in output
    done = subprocess.run([str(GRPCURL), "-plaintext", endpoint, "describe",
                           "cairn.v1.CommandService.Dispatch"], capture_output=True, text=True)
    assert done.returncode == 0 and "DispatchRequest" in done.stdout
    command = {"aggregate_type": "aircraft", "aggregate_id": "N14228", "type": "Depart",
               "json": '{"flight":"UA1545","at":"2013-01-01T10:17:00Z"}'}
    code, output = call(endpoint, "cairn.v1.CommandService/Dispatch", {"command": command})
    assert code == 0 and json.loads(output)["eventCount"] == 1
    code, output = call(endpoint, "cairn.v1.CommandService/Dispatch", {"command": command})
    assert code != 0 and "ALREADY_IN_THE_AIR" in output and '"domain": "cairn"' in output
    code, output = call(endpoint, "cairn.v1.EventService/ReadAggregate", {"aggregate_id": "N14228"})
    assert code == 0 and json.loads(output)["events"][0]["type"] == "FlightDeparted"
    code, output = grpcurl(endpoint, "cairn.v1.ClusterService/GetTopology")
    assert code == 0 and json.loads(output)["topology"]["partitionCount"] == 64
    code, output = call(endpoint, "grpc.health.v1.Health/Check",
                        {"service": "cairn.v1.CommandService"})
    assert code == 0 and "SERVING" in output
    code, output = call(endpoint, "grpc.health.v1.Health/Check", {"service": "nobody"})
    assert code != 0 and "NotFound" in output
