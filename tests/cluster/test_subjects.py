"""Payloads about a subject: sealed at rest, gone once the subject is forgotten; master keys that change."""

import json
import pathlib
import subprocess
import threading

import cairn
import pytest
from cluster import BIN, SLOW, Cluster, wait_placed, wait_until
from load import put
from pki import Pki

SECRET = "4711-very-private-4711"


def make_key(path):
    done = subprocess.run([BIN / "cairnctl", "key", "master", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "master"
    make_key(path)
    return path


@pytest.fixture
def three(key):
    with Cluster(3, modules=("echo",), arguments=("--master-key", str(key))) as cluster:
        yield cluster


@pytest.fixture
def client(three):
    with cairn.Client(three.endpoints, timeout=20 * SLOW) as client:
        yield client


def payloads(client, aggregate):
    return [(e.json(), e.subject, e.forgotten) for e in client.read(aggregate)]


def on_disk(cluster, text):
    """The nodes that have the text anywhere in their files."""
    found = set()
    for node in cluster.nodes:
        for path in pathlib.Path(node.folder).rglob("*"):
            if path.is_file() and text.encode() in path.read_bytes():
                found.add(node.name)
    return found


def test_payloads_about_a_subject_are_sealed_at_rest(three, client):
    client.dispatch(put("sealed", {"card": SECRET}, subject="anna"))
    client.dispatch(put("open", {"card": "not-private-0815"}))
    assert payloads(client, "sealed") == [({"card": SECRET}, "anna", False)]
    for node in three.nodes:
        assert node.stop() == 0
    assert on_disk(three, "not-private-0815") == {"n1", "n2", "n3"}
    assert on_disk(three, SECRET) == set()


def test_every_reader_sees_what_was_given_and_nobody_what_is_forgotten(three, client):
    for i in range(20):
        client.dispatch(put(f"of-{i}", {"n": i}, subject="anna" if i % 2 else "bert"))
    client.dispatch(put("of-1", {"n": "both"}, subject="bert"))
    asked = put("of-3", {"n": "again"}, subject="anna", id="asked once")
    first = client.dispatch(asked)

    def all_events():
        forwards = {(e.aggregate_id, e.sequence): e for e in client.read_all()}
        backwards = {(e.aggregate_id, e.sequence): e for e in client.read_all(backwards=True)}
        assert forwards == backwards
        return forwards

    before = all_events()
    assert before["of-1", 0].json() == {"n": 1} and before["of-2", 0].json() == {"n": 2}
    assert client.forget_subject("anna") == 64
    after = all_events()
    assert after.keys() == before.keys()
    for place, event in after.items():
        if event.subject == "anna":
            assert event.forgotten and event.payload is None and event.type == before[place].type
        else:
            assert event == before[place]
    assert payloads(client, "of-1") == [(None, "anna", True), ({"n": "both"}, "bert", False)]
    again = client.dispatch(asked)
    assert (again.first_sequence, again.event_count) == (first.first_sequence, first.event_count)
    # Life goes on, also with the same subject: with another key.
    client.dispatch(put("of-1", {"n": "new"}, subject="anna"))
    assert payloads(client, "of-1")[2] == ({"n": "new"}, "anna", False)
    for node in three.nodes:
        node.kill()
    three.start()
    for node in three.nodes:
        with cairn.Client([node.endpoint], timeout=20 * SLOW) as one:
            assert payloads(one, "of-1") == [(None, "anna", True), ({"n": "both"}, "bert", False),
                                             ({"n": "new"}, "anna", False)]


def test_a_node_that_comes_later_can_read_and_forgets_as_well(three, client):
    for i in range(30):
        client.dispatch(put(f"late-{i}", {"n": i}, subject=f"s{i % 3}"))
    client.forget_subject("s1")
    late = three.add("n4")
    late.start()
    late.wait_ready()
    wait_placed(client, "n4")
    client.drain_node("n1")
    wait_until(lambda: next(m for m in client.topology().members if m.name == "n1").replicas == 0, 60 * SLOW, "n1 is empty", 0.1)
    three.nodes[0].stop()
    with cairn.Client([late.endpoint], timeout=20 * SLOW) as one:
        for i in range(30):
            assert payloads(one, f"late-{i}") == [(None if i % 3 == 1 else {"n": i}, f"s{i % 3}", i % 3 == 1)]


def test_a_node_that_was_away_forgets_when_it_comes_back(three, client):
    """Its log is trimmed meanwhile: it gets the range, and drops the keys that are in it no more."""
    for i in range(30):
        client.dispatch(put(f"away-{i}", {"n": i}, subject=f"s{i % 3}"))
    three.nodes[2].kill()
    assert client.forget_subject("s1", timeout=60 * SLOW) == 64
    for i in range(30):
        client.dispatch(put(f"away-{i}", {"n": "more"}, subject=f"s{i % 3}"))
    three.nodes[2].start()
    three.nodes[2].wait_ready()

    def is_there():
        try:
            with cairn.Client([three.nodes[2].endpoint], timeout=5 * SLOW) as one:
                return all([e.json() for e in one.read(f"away-{i}", stale=True)] ==
                           [None if i % 3 == 1 else {"n": i}, {"n": "more"}] for i in range(30))
        except cairn.CairnError:
            return False
    wait_until(is_there, 60 * SLOW, "it has all, and has forgotten", 0.2)
    assert "range-installed" in three.nodes[2].log()


def test_a_node_that_dies_while_it_forgets_comes_back(key):
    """What is in its log and wasn't applied is applied when it starts, orders to forget as well."""
    with Cluster(1, modules=("echo",), arguments=("--master-key", str(key))) as cluster:
        node = cluster.nodes[0]
        for round in range(5 if SLOW == 1 else 2):
            stop = threading.Event()

            def forget_on():
                with cairn.Client(cluster.endpoints, timeout=20 * SLOW) as one:
                    while not stop.is_set():
                        try:
                            one.forget_subject("anna", timeout=2 * SLOW)
                            forgot.release()
                        except cairn.CairnError:
                            pass

            forgot = threading.Semaphore(0)
            with cairn.Client(cluster.endpoints, timeout=20 * SLOW) as client:
                client.dispatch(put(f"a{round}", {"n": round}, subject="anna"))
            threads = [threading.Thread(target=forget_on) for _ in range(4)]
            for thread in threads:
                thread.start()
            for _ in range(8):
                assert forgot.acquire(timeout=30 * SLOW)
            node.kill()
            stop.set()
            for thread in threads:
                thread.join()
            node.start()
            node.wait_ready()
        with cairn.Client(cluster.endpoints, timeout=20 * SLOW) as client:
            assert [payloads(client, f"a{i}") for i in range(round + 1)] == [[(None, "anna", True)]] * (round + 1)


def test_master_keys_change_while_all_goes_on(tmp_path):
    path = tmp_path / "master"
    make_key(path)
    old = path.read_text()
    with Cluster(3, modules=("echo",), arguments=("--master-key", str(path))) as cluster:
        with cairn.Client(cluster.endpoints, timeout=20 * SLOW) as client:
            for i in range(20):
                client.dispatch(put(f"k-{i}", {"n": i}, subject="anna"))
            wait_until(lambda: _newer(path), 5, "another second", 0.1)
            new = path.read_text()
            assert new.endswith(old) and new != old
            wait_until(lambda: all("master-keys-taken" in n.log() for n in cluster.nodes), 10 * SLOW, "all have them")
            # Only the new one is left: everything is wrapped by it by then.
            wait_until(lambda: sum(n.log().count("keys-wrapped-again") for n in cluster.nodes) >= 1, 10 * SLOW, "wrapped")
            wait_until(lambda: _is_read(client, path, new[:len(new) - len(old)]), 20 * SLOW, "all is wrapped by the new key", 1)
            client.dispatch(put("k-1", {"n": "new"}, subject="anna"))
            assert payloads(client, "k-1") == [({"n": 1}, "anna", False), ({"n": "new"}, "anna", False)]
            client.forget_subject("anna")
            assert payloads(client, "k-1") == [(None, "anna", True)] * 2
            path.write_text("nonsense")
            wait_until(lambda: all("stay in force" in n.log() for n in cluster.nodes), 10 * SLOW, "all say so")
            client.dispatch(put("k-2", {"n": "on"}, subject="bert"))


def _newer(path):
    done = subprocess.run([BIN / "cairnctl", "key", "master", str(path)], capture_output=True, text=True)
    ids = [line.split()[0] for line in path.read_text().splitlines()]
    if len(set(ids)) < len(ids):
        path.write_text("\n".join(path.read_text().splitlines()[1:]) + "\n")
        return False
    return done.returncode == 0


def _is_read(client, path, keys):
    path.write_text(keys)
    try:
        return all(payloads(client, f"k-{i}")[0][0] == {"n": i} for i in range(20))
    except cairn.CairnError as error:
        assert error.reason == "MASTER_KEY_MISSING", error
        return False


def test_without_a_master_key_nothing_is_sealed_and_nothing_slips_through():
    with Cluster(1, modules=("echo",)) as cluster, cairn.Client(cluster.endpoints, timeout=5 * SLOW) as client:
        with pytest.raises(cairn.CairnError) as refused:
            client.dispatch(put("a", {"n": 1}, subject="anna"))
        assert refused.value.reason == "MASTER_KEY_MISSING"
        with pytest.raises(cairn.NotFound):
            list(client.read("a"))
        client.dispatch(put("a", {"n": 1}))
        assert client.forget_subject("anna") == 64


@pytest.mark.parametrize("text, mode, words", [("", 0o600, "holds no key"), ("a b", 0o600, "32 bytes in base64"),
                                               (None, 0o600, "cannot read"), ("a " + "A" * 43 + "=", 0o644, "only its owner")])
def test_a_file_of_master_keys_that_is_no_good_is_refused(tmp_path, text, mode, words):
    path = tmp_path / "master"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    cluster = Cluster(1, arguments=("--master-key", str(path)))
    try:
        cluster.nodes[0].start()
        assert cluster.nodes[0].process.wait(20 * SLOW) == 2
        assert words in cluster.nodes[0].log()
    finally:
        cluster.close()


def test_only_operators_forget_and_cairnctl_wants_to_be_sure(key, tmp_path):
    pki = Pki(tmp_path)
    with pki.secure(Cluster(1, modules=("echo",), arguments=("--master-key", str(key)))) as cluster:
        with cairn.Client(cluster.endpoints, timeout=10 * SLOW, tls=pki.tls("client", "shop")) as client:
            client.dispatch(put("a", {"n": 1}, subject="anna"))
            with pytest.raises(cairn.Denied):
                client.forget_subject("anna")
            tls = pki.tls("operator", "root")
            ctl = [BIN / "cairnctl", "-e", cluster.endpoints[0], "--ca", tls.ca, "--cert", tls.certificate, "--key", tls.key,
                   "subject", "forget", "anna"]
            unsure = subprocess.run(ctl, capture_output=True, text=True)
            assert unsure.returncode == 2 and "--force" in unsure.stderr
            assert payloads(client, "a") == [({"n": 1}, "anna", False)]
            done = subprocess.run([*ctl, "--force"], capture_output=True, text=True)
            assert done.returncode == 0 and "anna is forgotten in 64 partitions" in done.stdout, done.stderr
            assert payloads(client, "a") == [(None, "anna", True)]


def test_cairnctl_names_a_subject_and_shows_what_is_forgotten(key):
    with Cluster(1, modules=("echo",), arguments=("--master-key", str(key))) as cluster:
        def ctl(*arguments):
            done = subprocess.run([BIN / "cairnctl", "-e", cluster.endpoints[0], *arguments], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout

        send = ("command", "send", "echo", "a", "Put", '{"n": 1}', "--subject", "anna", "--id", "once")
        before = json.loads(ctl(*send, "-o", "json"))
        assert not before["reply_forgotten"]
        event = json.loads(ctl("aggregate", "history", "a", "-o", "json"))
        assert (event["payload"], event["subject"], event["forgotten"]) == ({"n": 1}, "anna", False)
        ctl("subject", "forget", "anna", "--force")
        event = json.loads(ctl("event", "read", "-o", "json"))
        assert (event["payload"], event["subject"], event["forgotten"]) == (None, "anna", True)
        assert "(forgotten)" in ctl("aggregate", "history", "a")
        again = json.loads(ctl(*send, "-o", "json"))
        assert again == {**before, "reply": None, "reply_forgotten": before["reply"] is not None}
