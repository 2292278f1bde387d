"""cairnctl against real clusters, as an operator and as a script."""

import json
import os
import subprocess
import time

import cairn
import pytest
from cluster import BIN, SLOW, Cluster, free_ports, wait_until

pytestmark = pytest.mark.slow  # what it does at the nodes others do as well


def ctl(cluster, *arguments, code=0, endpoints=None, **more):
    done = subprocess.run([BIN / "cairnctl", *arguments], capture_output=True, text=True, timeout=90 * SLOW,
                          env={**os.environ, "CAIRN_ENDPOINT": endpoints or ",".join(cluster.endpoints)}, **more)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done


def of(cluster, *arguments, **more):
    return json.loads(ctl(cluster, *arguments, "-o", "json", **more).stdout)


def test_status_members_and_partitions_for_people_and_scripts(shared_three):
    text = ctl(shared_three, "cluster", "status").stdout
    assert "members      3 of 3 alive" in text and "without an owner     0" in text
    status = of(shared_three, "cluster", "status")
    assert status["alive"] == 3 and status["partitions"] == 64 and status["unowned"] == 0
    members = of(shared_three, "cluster", "members")
    assert {m["name"] for m in members} == {"n1", "n2", "n3"}
    assert sum(m["owned"] for m in members) == 64
    table = ctl(shared_three, "cluster", "members").stdout.splitlines()
    assert table[0].split()[0] == "NAME" and len(table) == 4
    partitions = of(shared_three, "cluster", "partitions")
    assert len(partitions) == 65 and partitions[64]["system"] and len(partitions[7]["replicas"]) == 3


def test_a_command_its_aggregate_and_the_log(shared_three):
    sent = of(shared_three, "command", "send", "echo", "ctl-1", "Put", '{"n": 1}', "--id", "ctl-id-1", "-m", "who=me")
    assert sent["command_id"] == "ctl-id-1" and sent["event_count"] == 1
    assert of(shared_three, "command", "send", "echo", "ctl-1", "Put", '{"n": 1}', "--id", "ctl-id-1", "-m", "who=me") == sent
    assert "1 event from sequence 1" in ctl(shared_three, "command", "send", "echo", "ctl-1", "Put", '"two"').stdout
    shown = of(shared_three, "aggregate", "show", "ctl-1")
    assert shown["events"] == 2 and shown["last"]["sequence"] == 1
    assert "events       2" in ctl(shared_three, "aggregate", "show", "ctl-1").stdout
    history = [json.loads(line) for line in
               ctl(shared_three, "aggregate", "history", "ctl-1", "-o", "json").stdout.splitlines()]
    assert [e["sequence"] for e in history] == [0, 1] and history[0]["metadata"] == {"who": "me"}
    assert ctl(shared_three, "aggregate", "history", "ctl-1", "--backwards", "--limit", "1").stdout.splitlines()[1].split()[0] == "1"
    log = [json.loads(line) for line in ctl(shared_three, "event", "read", "ctl-", "-o", "json").stdout.splitlines()]
    assert len(log) == 2
    assert "PAYLOAD" in ctl(shared_three, "event", "read", "ctl-1", "--type", log[0]["type"]).stdout


def test_an_expectation_that_fails_is_a_refusal_with_its_reason(shared_three):
    ctl(shared_three, "command", "send", "echo", "ctl-2", "Put", "1")
    done = ctl(shared_three, "command", "send", "echo", "ctl-2", "Put", "2", "--expect", "7", code=1)
    assert "SEQUENCE_CONFLICT" in done.stderr
    assert ctl(shared_three, "aggregate", "show", "nobody", code=1).stderr


def test_a_node_that_is_dead_is_passed_over(shared_three):
    dead = f"127.0.0.1:{free_ports(1)[0]}"
    started = time.monotonic()
    status = of(shared_three, "cluster", "status", endpoints=f"{dead},{shared_three.nodes[1].endpoint}")
    assert status["alive"] == 3 and time.monotonic() - started < 5 * SLOW
    done = ctl(shared_three, "cluster", "status", "-t", "1", endpoints=dead, code=3)
    assert dead in done.stderr


def test_drain_with_progress_remove_and_settings():
    with Cluster(4, arguments=("--balance-after", "500ms", "--member-grace", "2s")) as cluster:
        wait_until(lambda: all(m["replicas"] == 48 for m in of(cluster, "cluster", "members")), 30 * SLOW, "even")
        done = ctl(cluster, "cluster", "drain", "n4")
        assert "holds nothing any more" in done.stdout
        assert "n4 owns" in done.stderr  # how far it is
        ctl(cluster, "cluster", "remove", "n4")
        member = next(m for m in of(cluster, "cluster", "members") if m["name"] == "n4")
        assert member["placement"] == "removed" and member["replicas"] == 0
        assert cluster.nodes[3].stop() == 0
        ctl(cluster, "cluster", "settings", "moves_at_once=3", "transfer_bytes=1000000")
        settings = of(cluster, "cluster", "settings")
        assert settings["moves_at_once"] == 3 and settings["transfer_bytes"] == 1000000
        refused = ctl(cluster, "cluster", "drain", "n3", code=1, endpoints=",".join(cluster.endpoints[:3]))
        assert "REDUNDANCY" in refused.stderr and "force" in refused.stderr
        ctl(cluster, "cluster", "drain", "n3", "--force", "--no-wait", endpoints=",".join(cluster.endpoints[:3]))
        ctl(cluster, "cluster", "drain", "n3", "--cancel", endpoints=",".join(cluster.endpoints[:3]))
        owner = of(cluster, "cluster", "partitions")[5]["owner"]
        other = next(n for n in ("n1", "n2") if n != owner)
        ctl(cluster, "cluster", "transfer", "5", other)
        wait_until(lambda: of(cluster, "cluster", "partitions")[5]["owner"] == other, 20 * SLOW, "the transfer")


def test_watch_shows_again(shared_three):
    process = subprocess.Popen([BIN / "cairnctl", "-e", shared_three.nodes[0].endpoint, "cluster", "status", "--watch",
                                "-o", "json"], stdout=subprocess.PIPE, text=True)
    seen = 0
    while seen < 3:
        seen += process.stdout.readline().startswith("}")
    process.kill()
    process.wait()


@pytest.mark.parametrize("arguments, words", [
    (["cluster"], "needs a verb"), (["cluster", "explode"], "can't `explode`"), (["nothing", "x"], "no command"),
    (["cluster", "status", "--nonsense"], "--nonsense"), (["cluster", "drain"], "usage: cairnctl cluster drain NODE"),
    (["cluster", "transfer", "x", "n1"], "no partition's number"), (["-o", "xml", "cluster", "status"], "table or json"),
    (["cluster", "settings", "speed=9"], "no setting `speed`"), (["cluster", "settings", "grace_ms=-1"], "whole number"),
    (["command", "send", "echo", "a", "Put", "{"], "isn't JSON"), (["cluster", "status", "--force"], "isn't for"),
    (["-t", "0", "cluster", "status"], "1 to 86400"), (["-e", "nowhere", "cluster", "status"], "HOST:PORT"),
    ([], "Usage: cairnctl"),
])
def test_wrong_usage_is_told_with_what_and_where(shared_three, arguments, words):
    assert words in ctl(shared_three, *arguments, code=2).stderr


def test_help_completion_and_the_man_page_know_every_command(shared_three):
    text = ctl(shared_three, "--help").stdout
    commands = [line.split()[:2] for line in text.splitlines() if line.startswith("  ") and line.split()[0] in
                ("cluster", "aggregate", "command", "event")]
    assert len(commands) == 11
    script = ctl(shared_three, "completion", "bash").stdout
    man = ctl(shared_three, "--man").stdout
    for noun, verb in commands:
        assert f".B {noun} {verb}" in man
        assert verb in script
        assert ctl(shared_three, noun, verb, "--help").stdout.startswith(f"Usage: cairnctl {noun} {verb}")
    typed = subprocess.run(["bash", "-c", f"{script}\nCOMP_WORDS=(cairnctl cluster dr); COMP_CWORD=2; _cairnctl; "
                            "echo ${COMPREPLY[@]}"], capture_output=True, text=True)
    assert typed.stdout.strip() == "drain", typed.stderr
