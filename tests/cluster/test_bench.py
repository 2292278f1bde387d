"""The benchmark tool measures what happened: its counts are the cluster's, and it owns up to failures."""

import json
import pathlib
import signal
import subprocess
import threading
import time

import cairn
import pytest
from cluster import BIN, SLOW, Cluster, free_ports, wait_until


pytestmark = pytest.mark.slow  # how fast a sanitizer is, nobody asks

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def three():
    with Cluster(3, modules=("echo",)) as cluster:
        cluster.wait_balanced()
        yield cluster


def bench(*arguments, good=True):
    done = subprocess.run([BIN / "cairn-bench", *map(str, arguments)], capture_output=True, text=True, timeout=120 * SLOW)
    assert (done.returncode == 0) == good, (arguments, done.stdout, done.stderr)
    return done


def run(workload, cluster, *arguments, good=True):
    return json.loads(bench(workload, "--json", "--seconds", 1, "--in-flight", 16, *arguments, *cluster.endpoints, good=good).stdout)


def events(cluster):
    with cairn.Client(cluster.endpoints, timeout=20 * SLOW) as client:
        return sum(client.count_events().values())


@pytest.mark.parametrize("workload", ["dispatch", "dispatch-unary", "append", "read", "mixed"])
def test_each_load_does_what_it_counts(three, workload):
    if workload == "read": # of something that is there
        run("dispatch", three)
    before = events(three)
    said = run(workload, three)
    after = events(three)
    assert said["failed"] == 0 and said["done"] > 10
    assert said["done"] == sum(count for _, count in said["histogram"])
    assert said["per_second"] == pytest.approx(said["done"] / said["seconds"], rel=1e-3)
    assert said["p50_us"] <= said["p90_us"] <= said["p99_us"] <= said["p999_us"] <= said["longest_us"]
    if workload == "read":
        assert after == before
    elif workload == "mixed":
        assert 0.2 * said["done"] < after - before
    else: # with those of the second before, and those in flight at the end
        assert said["done"] <= after - before


@pytest.mark.parametrize("to, proxied", [("owner", False), ("other", True)])
def test_it_finds_owners_and_avoids_them(three, to, proxied):
    def forwarded():
        return sum(node.metrics()["cairn_router_forwarded_total"] for node in three.nodes)

    before = forwarded()
    said = run("dispatch", three, "--to", to)
    assert said["failed"] == 0
    if proxied:
        assert forwarded() - before >= said["done"]
    else:
        assert forwarded() - before <= said["done"] / 10


def test_an_open_loop_counts_what_a_stall_holds_up(three):
    """A hundred due each second: half a second without answers is in all that were due meanwhile."""
    node = three.nodes[0]
    said = {}

    def load():
        said.update(json.loads(bench("dispatch", "--json", "--seconds", 4, "--rate", 100, node.endpoint).stdout))

    before = events(three)
    thread = threading.Thread(target=load)
    thread.start()
    wait_until(lambda: events(three) > before + 150, 20 * SLOW, "it is in the part that counts", 0.1)
    node.signal(signal.SIGSTOP)
    time.sleep(0.5) # the length of the stall
    node.signal(signal.SIGCONT)
    thread.join()
    assert said["failed"] == 0
    late = sum(count for end_us, count in said["histogram"] if end_us > 100_000)
    assert late >= 30 and said["longest_us"] >= 400_000


def test_a_worker_of_its_own_decides(three):
    worker = subprocess.Popen([BIN / "cairn-bench", "worker", "by-worker", *three.endpoints], stdout=subprocess.PIPE, text=True)
    try:
        assert worker.stdout.readline() == "ready\n"
        said = run("dispatch", three, "--type", "by-worker")
        assert said["failed"] == 0 and said["done"] > 10
        with cairn.Client(three.endpoints, timeout=20 * SLOW) as client:
            assert {e.type for e in client.read("bench-by-worker-0")} == {"Put"}
    finally:
        worker.terminate()
        assert worker.wait(20) == 0


def test_failures_are_owned_up_to(three):
    done = bench("--type", "nobody", "--seconds", 1, "--in-flight", 4, *three.endpoints, good=False)
    assert done.returncode == 1 and "no module or worker decides" in done.stderr and "0 commands/s" in done.stdout


def test_it_asks_again_when_a_node_dies():
    with Cluster(3, modules=("echo",)) as cluster:
        cluster.wait_balanced()
        said = {}

        def load():
            said.update(run("dispatch", cluster, "--seconds", 6, "--retry-after", 500))

        thread = threading.Thread(target=load)
        thread.start()
        wait_until(lambda: events(cluster) > 1000, 20 * SLOW, "it has begun", 0.1)
        cluster.nodes[0].kill()
        thread.join()
        assert said["failed"] == 0 and said["retried"] > 0


@pytest.mark.parametrize("arguments, words", [
    ((), "which nodes"), (("--in-flight", "x", "a:1"), "is no number"), (("--in-flight", "99999", "a:1"), "more operations"),
    (("--to", "nowhere", "a:1"), "owner or other"), (("--to", "owner", "a:1"), "all nodes must be named"),
    (("--bytes", "99999999", "a:1"), "too much")])
def test_what_cant_be_is_refused(arguments, words):
    done = bench(*arguments, good=False)
    assert done.returncode == 2 and words in done.stderr


def test_the_bare_server_echoes():
    endpoint = f"127.0.0.1:{free_ports(1)[0]}"
    server = subprocess.Popen([BIN / "cairn-bench", "echo", endpoint], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout.readline() == "ready\n"
        for workload in "echo-stream", "echo-unary":
            said = json.loads(bench(workload, "--json", "--seconds", 1, endpoint).stdout)
            assert said["failed"] == 0 and said["done"] > 10
    finally:
        server.terminate()
        assert server.wait(20) == 0


def test_sides_are_compared_in_turn(tmp_path):
    done = subprocess.run([ROOT / "tools" / "bench" / "compare", "--seconds", "1", "--rounds", "2", "--in-flight", "4", "--json",
                           tmp_path / "ratios", "cairn1", "echo-stream", "cairn1-python"], capture_output=True, text=True, timeout=120 * SLOW)
    assert done.returncode == 0, done.stderr
    shown = [line.split()[0] for line in done.stdout.splitlines() if "/s, p50" in line]
    assert shown == ["cairn1", "echo-stream", "cairn1-python"] * 2
    row, by_worker = json.loads((tmp_path / "ratios").read_text())
    assert (row["of"], row["to"], row["in_flight"]) == ("cairn1", "echo-stream", 4)
    assert by_worker["to"] == "cairn1-python"
    assert len(row["rate"]) == len(row["p50"]) == 2 and all(0 < ratio < 1.5 for ratio in row["rate"])
