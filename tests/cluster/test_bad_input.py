"""Each wrong thing has its status, its message, and leaves nothing behind."""

import socket
import subprocess

import cairn
import grpc
import pytest
from cairn.v1 import command_pb2, command_pb2_grpc
from cluster import BIN, SLOW, Cluster, free_ports

CODE = grpc.StatusCode


def raw_dispatch(endpoint, raw):
    with grpc.insecure_channel(endpoint, [("grpc.max_send_message_length", -1)]) as channel:
        method = channel.unary_unary("/cairn.v1.CommandService/Dispatch")
        return method(raw, timeout=5 * SLOW)


def refused(endpoint, **fields):
    command = dict(aggregate_type="echo", aggregate_id="bad", type="Put", json="x")
    command.update(fields)
    request = command_pb2.DispatchRequest(command=command_pb2.Command(**command))
    with pytest.raises(grpc.RpcError) as error:
        raw_dispatch(endpoint, request.SerializeToString())
    return error.value.code(), error.value.details()


@pytest.mark.parametrize("fields, code, text", [
    (dict(aggregate_id=""), CODE.INVALID_ARGUMENT, "aggregate_id is empty"),
    (dict(aggregate_id="x" * 256), CODE.INVALID_ARGUMENT, "aggregate_id has 256 bytes"),
    (dict(aggregate_id="a\0b"), CODE.INVALID_ARGUMENT, "aggregate_id"),
    (dict(aggregate_type=""), CODE.INVALID_ARGUMENT, "aggregate_type is empty"),
    (dict(type=""), CODE.INVALID_ARGUMENT, "type is empty"),
    (dict(command_id="c" * 129), CODE.INVALID_ARGUMENT, "command_id has 129 bytes"),
    (dict(json="x" * ((1 << 20) + 1)), CODE.INVALID_ARGUMENT, "1048577 bytes"),
    (dict(json="x" * (9 << 20)), CODE.RESOURCE_EXHAUSTED, "larger than max"),
    (dict(aggregate_type="nobody"), CODE.UNIMPLEMENTED, "no module or worker"),
    (dict(type="Unknown"), CODE.UNIMPLEMENTED, "has no command Unknown"),
    (dict(type="BreakHuge"), CODE.INTERNAL, "event of 5242880 bytes"),
    (dict(type="BreakMany"), CODE.INTERNAL, "more than 1024 events"),
    (dict(type="BreakType"), CODE.INTERNAL, "event type is empty"),
    (dict(expected_sequence=5), CODE.ABORTED, "has 0 events, the command expected 5"),
])
def test_a_wrong_command_is_refused_with_the_reason(one, fields, code, text):
    got, message = refused(one.endpoints[0], **fields)
    assert got == code and text in message, (got, message)
    with cairn.Client(one.endpoints) as client, pytest.raises(cairn.NotFound):
        list(client.read("bad"))


@pytest.mark.parametrize("raw, text", [
    (b"", "has no command"),
    (b"\xff\xff\xff", "not a well-formed"),
    (b"\x0a\x05\x1a\x03a\xffb", "not UTF-8"),
])
def test_malformed_messages_are_refused(one, raw, text):
    with pytest.raises(grpc.RpcError) as error:
        raw_dispatch(one.endpoints[0], raw)
    assert error.value.code() == CODE.INVALID_ARGUMENT and text in error.value.details()


def test_an_id_used_twice_for_different_things_is_refused(one):
    with cairn.Client(one.endpoints) as client:
        client.dispatch(cairn.Command("echo", "reuse", "Put", "1", id="reuse-1"))
        with pytest.raises(cairn.InvalidCommand) as error:
            client.dispatch(cairn.Command("echo", "reuse", "Put", "2", id="reuse-1"))
        assert error.value.reason == "COMMAND_ID_REUSED"
        assert len(list(client.read("reuse"))) == 1


def test_a_deadline_already_past_is_told(one):
    request = command_pb2.DispatchRequest(command=command_pb2.Command(
        aggregate_type="echo", aggregate_id="late", type="Put", json="x"))
    with grpc.insecure_channel(one.endpoints[0]) as channel:
        stub = command_pb2_grpc.CommandServiceStub(channel)
        with pytest.raises(grpc.RpcError) as error:
            stub.Dispatch(request, timeout=1e-9)
        assert error.value.code() == CODE.DEADLINE_EXCEEDED


def test_append_with_a_wrong_expectation_changes_nothing(one):
    with cairn.Client(one.endpoints) as client:
        client.append("ledger", "book", [cairn.NewEvent("A", "1"), cairn.NewEvent("B", "2")],
                      expected_sequence=0)
        with pytest.raises(cairn.Conflict):
            client.append("ledger", "book", [cairn.NewEvent("C", "3")], expected_sequence=1)
        assert [e.type for e in client.read("book")] == ["A", "B"]
        assert [e.type for e in client.read("book", backwards=True, limit=1)] == ["B"]
        with pytest.raises(cairn.InvalidCommand):
            client.append("ledger", "book", [])
        with pytest.raises(cairn.InvalidCommand) as error:
            client.append("other", "book", [cairn.NewEvent("D", "4")])
        assert error.value.reason == "AGGREGATE_TYPE_MISMATCH"


def test_garbage_on_the_ports_disturbs_nobody(one):
    for port in (one.nodes[0].port, one.nodes[0].http_port):
        for garbage in (b"GET / HTTP/1.0\r\n\r\n", b"\0" * 4096, bytes(range(256)) * 64):
            with socket.create_connection(("127.0.0.1", port)) as s:
                s.sendall(garbage)
    channel = grpc.insecure_channel(one.endpoints[0])
    for method in ("Link", "Gossip"):
        stream = channel.stream_stream(f"/cairn.peer.v1.PeerService/{method}")
        with pytest.raises(grpc.RpcError) as error:
            list(stream(iter([b"\xff\xfe garbage"]), timeout=5 * SLOW))
        assert error.value.code() in (CODE.INVALID_ARGUMENT, CODE.FAILED_PRECONDITION)
    with pytest.raises(grpc.RpcError) as error:
        channel.unary_unary("/cairn.v1.CommandService/Nonsense")(b"", timeout=5 * SLOW)
    assert error.value.code() == CODE.UNIMPLEMENTED
    with cairn.Client(one.endpoints) as client:
        client.dispatch(cairn.Command("echo", "after-garbage", "Put", "x"))


def run(*arguments):
    done = subprocess.run([str(BIN / "cairnd"), *arguments], capture_output=True, text=True,
                          timeout=20 * SLOW)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("arguments, code, text", [
    (["--data-dirr", "/x"], 2, "did you mean --data-dir?"),
    (["--partitions", "0"], 2, "must lie between 1 and"),
    (["--partitions", "many"], 2, "must be a whole number"),
    (["--election-timeout", "300"], 2, "a duration such as"),
    (["--listen", "0.0.0.0:7411"], 2, "--insecure"),
    (["stray"], 2, "unexpected argument `stray`"),
    (["--config", "/no/such/file"], 2, "/no/such/file"),
    (["--module", "/no/such.so", "--data-dir", "/tmp/never"], 2, "cannot load module /no/such.so"),
    (["--data-dir", "/proc/nope"], 3, "cannot make the data directory"),
    (["--version"], 0, "cairnd 0.1.0"),
    (["--help"], 0, "--bootstrap-expect"),
])
def test_wrong_usage_has_its_message_and_exit_code(arguments, code, text):
    got, output = run(*arguments)
    assert got == code and text in output, (got, output)


def test_unknown_keys_of_the_file_name_the_nearest(tmp_path):
    file = tmp_path / "cairn.yaml"
    file.write_text("heartbeat_intervall: 75ms\n")
    code, output = run("--config", str(file), "--check-config")
    assert code == 2 and "did you mean `heartbeat-interval`" in output, output


def test_settings_come_from_file_environment_and_flag(tmp_path, monkeypatch):
    file = tmp_path / "cairn.yaml"
    file.write_text("name: from-file\npartitions: 8\njoin: [a:1, b:2]\n")
    monkeypatch.setenv("CAIRN_PARTITIONS", "16")
    code, output = run("--config", str(file), "--check-config", "--name", "from-flag")
    assert code == 0
    assert "name: from-flag  # flag" in output
    assert "partitions: 16  # environment" in output
    assert "join: [a:1, b:2]  # file" in output
    assert "payload_max: 1048576  # default" in output


def test_a_taken_port_and_a_held_directory_are_named(one, tmp_path):
    node = one.nodes[0]
    ports = free_ports(2)
    code, output = run("--data-dir", str(tmp_path), "--listen", node.endpoint, "--http",
                       f"127.0.0.1:{ports[0]}")
    assert code == 1 and node.endpoint in output and "--listen" in output, output
    code, output = run("--data-dir", str(node.folder), "--name", node.name, "--listen",
                       f"127.0.0.1:{ports[1]}")
    assert code == 3 and f"held by process {node.process.pid}" in output, output


def test_the_data_of_another_node_is_refused():
    with Cluster(1) as cluster:
        node = cluster.nodes[0]
        node.stop()
        code, output = run("--data-dir", str(node.folder), "--name", "somebody-else")
        assert code == 3 and "belongs to node n1" in output, output


def test_a_damaged_store_is_refused_and_named():
    with Cluster(1) as cluster:
        node = cluster.nodes[0]
        with cairn.Client(cluster.endpoints) as client:
            for number in range(200):
                client.dispatch(cairn.Command("echo", f"damage-{number}", "Put", "x" * 500))
        node.kill()
        logs = sorted((node.folder / "store").glob("*.log"))
        content = bytearray(logs[-1].read_bytes())
        content[len(content) // 2] ^= 0x10
        logs[-1].write_bytes(content)
        code, output = run("--data-dir", str(node.folder), "--name", node.name, "--listen",
                           f"127.0.0.1:{free_ports(1)[0]}", "--http", "")
        assert code == 3 and "orruption" in output, (code, output)
