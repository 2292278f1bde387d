"""TLS between nodes and to clients, identities, roles, and who tries to come in without."""

import base64
import datetime
import hashlib
import hmac
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time

import cairn
import grpc
import jwt
import pytest
from cairn.connection import open_channel
from cairn.v1 import event_pb2, event_pb2_grpc
from cluster import BIN, SLOW, Cluster, wait_until
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from load import put
from pki import Pki
from test_grpcurl import GRPCURL


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def secured(pki):
    """Three nodes that only talk TLS."""
    with pki.secure(Cluster(3, modules=("echo",))) as cluster:
        yield cluster


@pytest.fixture
def alone(pki):
    """Makes one node with TLS and more arguments; all are ended."""
    made = []

    def make(*arguments, start=True):
        cluster = pki.secure(Cluster(1, modules=("echo",)), *arguments)
        made.append(cluster)
        return cluster.start() if start else cluster
    yield make
    for cluster in made:
        cluster.__exit__(None, None, None)


def client_of(cluster, tls, **more):
    return cairn.Client(cluster.endpoints, timeout=more.pop("timeout", 20) * SLOW, tls=tls, **more)


def refused_start(cluster):
    """The node doesn't start; what it says, and its exit code."""
    node = cluster.nodes[0]
    node.start()
    code = node.process.wait(20 * SLOW)
    return code, node.log()


def denied(cluster, tls, timeout=20 * SLOW):
    """The command isn't let in; gives the error. One that is decided comes at once; a handshake that fails is tried
    again until the time is over."""
    with cairn.Client(cluster.endpoints[:1], timeout=timeout, try_timeout=2 * SLOW, tls=tls) as client:
        with pytest.raises(cairn.CairnError) as error:
            client.dispatch(put("nobody"))
    return error.value


# ---- who, and that it gets everywhere ----

def test_every_event_says_who_sent_its_command(secured, pki):
    """Also when another node than the owner was asked; what the caller says of itself counts for nothing."""
    tls = pki.tls("client", "shop")
    for number, endpoint in enumerate(secured.endpoints):
        with cairn.Client([endpoint], timeout=20 * SLOW, tls=tls) as client:
            for i in range(4):
                client.dispatch(put(f"who-{number}-{i}", metadata={"principal": "cairn://cairn/operator/root"}))
                event = list(client.read(f"who-{number}-{i}"))[0]
                assert event.principal == "cairn://cairn/client/shop"
                assert event.metadata["principal"] == "cairn://cairn/operator/root"  # theirs, and only metadata
    assert sum(n.metrics()["cairn_router_forwarded_total"] for n in secured.nodes) > 0


def test_forged_headers_change_nothing(secured, pki):
    channel = open_channel(secured.endpoints[0], pki.tls("client", "shop"))
    stub = event_pb2_grpc.EventServiceStub(channel)
    request = event_pb2.AppendRequest(command_id="forged-1", aggregate_type="echo", aggregate_id="forged",
                                      events=[event_pb2.NewEvent(type="Put", json="{}")])
    stub.Append(request, timeout=20 * SLOW, metadata=[("cairn-principal", "cairn://cairn/operator/root"),
                                                      ("x-forwarded-client-cert", "URI=cairn://cairn/node/n1"),
                                                      ("principal", "root")])
    with client_of(secured, pki.tls("client", "shop")) as client:
        assert [e.principal for e in client.read("forged")] == ["cairn://cairn/client/shop"]
    channel.close()


def test_a_client_without_the_role_changes_nothing_in_the_cluster(secured, pki):
    with client_of(secured, pki.tls("client", "shop")) as client:
        before = [(m.name, m.placement) for m in client.topology().members]
        for order in (lambda: client.drain_node("n1"), lambda: client.remove_node("n1")):
            with pytest.raises(cairn.Denied) as error:
                order()
            assert error.value.reason == "DENIED" and "lacks the role operator" in error.value.message
        assert [(m.name, m.placement) for m in client.topology().members] == before
    tls = pki.tls("operator", "alice")
    done = subprocess.run([BIN / "cairnctl", "-e", secured.endpoints[0], "--ca", tls.ca, "--cert", tls.certificate,
                           "--key", tls.key, "cluster", "members"], capture_output=True, text=True)
    assert done.returncode == 0 and "n3" in done.stdout


def test_the_session_of_the_readme_with_tls(secured, pki):
    certificate, key = pki.pair("client", "shop")
    flags = ["-cacert", str(pki.ca), "-cert", str(certificate), "-key", str(key)]

    def grpcurl(*arguments):
        done = subprocess.run([str(GRPCURL), *arguments], capture_output=True, text=True, timeout=30)
        return done.returncode, done.stdout + done.stderr
    code, output = grpcurl(*flags, secured.endpoints[0], "list")
    assert code == 0 and "cairn.v1.CommandService" in output
    body = json.dumps({"command": {"aggregate_type": "echo", "aggregate_id": "curl", "type": "Put", "json": "{}"}})
    code, output = grpcurl(*flags, "-d", body, secured.endpoints[0], "cairn.v1.CommandService/Dispatch")
    assert code == 0 and json.loads(output)["eventCount"] == 1
    code, output = grpcurl("-connect-timeout", "1", "-cacert", str(pki.ca), secured.endpoints[0], "list")
    assert code != 0


# ---- certificates that are no good ----

def test_wrong_certificates_are_refused(secured, pki, tmp_path):
    stranger = Pki(tmp_path / "other")
    shop = "cairn://cairn/client/shop"
    good = pki.strange("good", shop)
    with client_of(secured, good) as client:
        client.dispatch(put("good"))
    wrong = {
        "expired": pki.strange("expired", shop, -20, -1),
        "not yet valid": pki.strange("early", shop, 1, 20),
        "self-signed": pki.strange("self", shop, own_signature=True),
        "of another CA": cairn.Tls(pki.ca, *stranger.pair("client", "shop")),
        "none": cairn.Tls(pki.ca),
    }
    for what, tls in wrong.items():
        assert denied(secured, tls, timeout=1.5).code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED), what
    error = denied(secured, pki.strange("foreign", "cairn://other/client/shop"))
    assert error.code == grpc.StatusCode.PERMISSION_DENIED
    error = denied(secured, pki.strange("dots", "cairn://cairn/client/../operator/root"))
    assert error.code == grpc.StatusCode.UNAUTHENTICATED and "two dots" in error.message
    with client_of(secured, good) as client:
        with pytest.raises(cairn.NotFound):
            list(client.read("nobody"))


def test_a_client_looks_at_the_nodes_certificate_too(secured, pki, tmp_path):
    """A node of another CA isn't talked to."""
    stranger = Pki(tmp_path / "other")
    tls = cairn.Tls(stranger.ca, *pki.pair("client", "shop"))
    assert denied(secured, tls, timeout=1.5).code == grpc.StatusCode.UNAVAILABLE


def test_plaintext_and_tls_dont_mix(secured, pki, one):
    assert denied(secured, None, timeout=1.5).code == grpc.StatusCode.UNAVAILABLE
    assert denied(one, pki.tls("client", "shop"), timeout=1.5).code == grpc.StatusCode.UNAVAILABLE
    with client_of(secured, pki.tls("client", "shop")) as client:
        client.dispatch(put("still-there"))


def test_a_revoked_certificate_is_shut_out_also_on_an_open_connection(alone, pki):
    folder = pki.folder / "revoked"
    folder.mkdir(exist_ok=True)
    cluster = alone("--tls-revoked", str(folder))
    tls = pki.tls("client", "thief")
    with client_of(cluster, tls, try_timeout=2) as client:
        client.dispatch(put("before"))
        pki.revoke(tls.certificate)

        def shut_out():
            try:
                client.dispatch(put("after"), timeout=1 * SLOW)
                return False
            except cairn.Denied as error:
                return "revoked" in error.message
        wait_until(shut_out, 20 * SLOW, "the thief is shut out", 0.1)
    assert "revoked" in denied(cluster, tls).message
    with client_of(cluster, pki.tls("client", "shop")) as client:
        client.dispatch(put("others"))
    shutil.rmtree(folder)


# ---- the peer service ----

def hello(name, cluster="cairn", node_id=1 << 63 | 7):
    """A packed LinkRequest with a Hello, as a node sends it first."""
    def text(field, value):
        return bytes([field << 3 | 2, len(value)]) + value.encode()
    inner = (text(2, cluster) + b"\x19" + node_id.to_bytes(8, "little") + text(4, name) + text(5, "127.0.0.1:1") +
             b"\x30\x01\x38\x01")
    return bytes([1 << 3 | 2, len(inner)]) + inner


def say_to_peers(cluster, tls, method, *messages):
    """Speaks as a node would; gives what the node answered and the error."""
    channel = open_channel(cluster.endpoints[0], tls)
    stream = channel.stream_stream(f"/cairn.peer.v1.PeerService/{method}", lambda b: b, lambda b: b)
    answers = []
    try:
        for answer in stream(iter(messages), timeout=5 * SLOW):
            answers.append(answer)
        return answers, None
    except grpc.RpcError as error:
        return answers, error
    finally:
        channel.close()


@pytest.mark.parametrize("method", ["Link", "Gossip", "FetchRange", "Operate"])
def test_only_nodes_speak_to_nodes(secured, pki, method):
    """A captured frame in a stranger's stream is a frame in a stranger's stream."""
    for kind in ("client", "operator"):
        answers, error = say_to_peers(secured, pki.tls(kind, "shop"), method, hello("n1"))
        assert answers == [] and error.code() == grpc.StatusCode.PERMISSION_DENIED, kind
        assert "lacks the role node" in error.details()


def test_a_node_speaks_for_itself_only(secured, pki):
    answers, error = say_to_peers(secured, pki.tls("node", "n9"), "Link", hello("n2"))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION and "that of node n9, not of n2" in error.details()


def test_a_node_of_another_cluster_is_refused(secured, pki):
    tls = pki.strange("foreign-node", "cairn://other/node/n1")
    answers, error = say_to_peers(secured, tls, "Link", hello("n1", "other"))
    assert answers == [] and error.code() == grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.slow
def test_a_node_with_a_certificate_of_another_ca_finds_nobody(secured, pki, tmp_path):
    stranger = Pki(tmp_path / "other")
    node = secured.add("n4")
    secured.nodes.remove(node)
    at = node.arguments.index("--tls-certificate")
    node.arguments = [*node.arguments[:at], *stranger.node_arguments("n4"), "--join", ",".join(secured.endpoints)]
    node.start()
    try:
        time.sleep(2)  # nothing is to happen
        with client_of(secured, pki.tls("operator", "alice")) as client:
            assert {m.name for m in client.topology().members} == {"n1", "n2", "n3"}
        assert not node.is_ready()
    finally:
        node.kill()


def test_roots_of_nodes_apart_from_those_of_clients(pki, tmp_path):
    """A CA for clients can't make nodes, though both come to one port."""
    nodes = Pki(tmp_path / "nodes")
    cluster = Cluster(2, modules=("echo",))
    for node in cluster.nodes:
        certificate, key = nodes.pair("node", node.name)
        node.arguments = [*node.arguments, "--tls-certificate", str(certificate), "--tls-key", str(key),
                          "--tls-ca", str(pki.ca), "--peer-tls-ca", str(nodes.ca)]
    with cluster:
        with client_of(cluster, cairn.Tls(nodes.ca, *pki.pair("client", "shop"))) as client:
            client.dispatch(put("apart"))
        tls = cairn.Tls(nodes.ca, *pki.pair("node", "n1"))
        answers, error = say_to_peers(cluster, tls, "Link", hello("n1"))
        assert answers == [] and error.code() == grpc.StatusCode.PERMISSION_DENIED


# ---- roles ----

POLICY = """
grants:
  - identities: ["cairn://cairn/client/shop", "dns:*.shop.example"]
    roles: [dispatcher]
    aggregate_types: ["echo"]
    command_types: ["Put"]
  - identities: ["cairn://cairn/client/shop"]
    roles: [reader]
    event_types: ["Put"]
  - identities: ["cairn://cairn/client/*"]
    roles: [worker]
    aggregate_types: ["job-*"]
  - identities: ["cairn://cairn/client/auditor"]
    roles: [reader]
"""


def test_roles_by_types(alone, pki, tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    policy.chmod(0o644)
    cluster = alone("--policy", str(policy))
    with client_of(cluster, pki.tls("client", "shop"), timeout=4) as shop, \
            client_of(cluster, pki.tls("client", "auditor"), timeout=4) as auditor:
        shop.dispatch(put("a"))

        def refused(what, text):
            with pytest.raises(cairn.Denied) as error:
                what()
            assert error.value.reason == "DENIED" and text in error.value.message
        refused(lambda: shop.dispatch(cairn.Command("echo", "a", "Delete", {})), "commands of type Delete")
        refused(lambda: shop.dispatch(cairn.Command("bank", "a", "Put", {})), "aggregates of type bank")
        refused(lambda: shop.append("echo", "a", [cairn.NewEvent("Put", {})]), "worker for aggregates of type echo")
        refused(lambda: list(shop.read("a")), "events of all types")
        refused(lambda: list(shop.read_all()), "events of all types")
        refused(lambda: list(shop.read_all(filter=cairn.Filter(event_types=["Put", "Secret"]))), "events of type Secret")
        refused(lambda: auditor.dispatch(put("a")), "dispatcher")
        assert [e.type for e in shop.read_all(filter=cairn.Filter(event_types=["Put"]))] == ["Put"]
        assert [e.type for e in auditor.read("a")] == ["Put"]
        shop.append("job-1", "j", [cairn.NewEvent("Made", {})])
        # A new policy counts at once, one that is broken not at all.
        policy.write_text(POLICY.replace('command_types: ["Put"]', 'command_types: ["Put", "Del*"]'))
        wait_until(lambda: not raises(cairn.Denied, shop.dispatch, cairn.Command("echo", "a", "Delete", {})), 20 * SLOW,
                   "the new policy is in force", 0.1)
        policy.write_text("grants: [{identities: [x], roles: [king]}]")
        wait_until(lambda: "role `king`" in cluster.nodes[0].log(), 20 * SLOW, "the broken policy is told of")
        shop.dispatch(put("a"))
        assert "stays in force" in cluster.nodes[0].log()


def raises(kind, function, *arguments):
    try:
        function(*arguments)
    except kind:
        return True
    except cairn.CairnError:
        pass
    return False


@pytest.mark.parametrize("text, said", [
    ("grants: {", "policy.yaml"),
    ("grants: [{identities: [x], roles: [king]}]", "role `king`"),
    ("grants: [{identities: [x], rolls: [reader]}]", "rolls"),
    ("grants: [{identities: ['cairn://cairn/client/../operator/root'], roles: [reader]}]", "two dots"),
    ("grants: [{identities: [x], roles: [reader], command_types: [a]}]", "for dispatchers only"),
    ("other: 1", "other"),
])
def test_a_policy_that_is_no_good_is_refused(alone, tmp_path, text, said):
    policy = tmp_path / "policy.yaml"
    policy.write_text(text)
    code, log = refused_start(alone("--policy", str(policy), start=False))
    assert code == 2 and said in log


def test_files_that_anybody_may_touch_are_refused(alone, pki, tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("grants: []")
    policy.chmod(0o666)
    code, log = refused_start(alone("--policy", str(policy), start=False))
    assert code == 2 and "others may write the policy" in log
    code, log = refused_start(alone("--policy", str(tmp_path / "none.yaml"), start=False))
    assert code == 2 and "cannot read the policy" in log
    key = tmp_path / "key"
    shutil.copy(pki.pair("node", "n1")[1], key)
    key.chmod(0o644)
    code, log = refused_start(alone("--tls-key", str(key), start=False))
    assert code == 2 and "others may read or write the private key" in log
    code, log = refused_start(alone("--name", "n7", start=False))
    assert code == 2 and "that of node n1, this is node n7" in log
    code, log = refused_start(alone("--peer-tls-ca", str(Pki(tmp_path / "other").ca), start=False))
    assert code == 2 and "peers would refuse it" in log


def test_the_audit_log_says_who_did_what_with_which_outcome(alone, pki, tmp_path):
    """And nothing of what was in it. It may be moved away at any time."""
    path = tmp_path / "audit.log"
    cluster = alone("--audit-log", str(path))

    def lines(file=path):
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def wait_for(**wanted):
        return wait_until(lambda: [e for e in lines() if wanted.items() <= e.items()], 10 * SLOW, f"{wanted} is noted")[0]
    with client_of(cluster, pki.tls("client", "shop"), timeout=4) as shop:
        shop.dispatch(put("noted", {"secret": "xyzzy"}, id="n-1"))
        with pytest.raises(cairn.Conflict):
            shop.append("echo", "noted", [cairn.NewEvent("Put", {})], expected_sequence=7)
        with pytest.raises(cairn.Denied):
            shop.drain_node("n1")
        list(shop.read("noted"))
        entry = wait_for(what="Dispatch", outcome="ok")
        assert entry.items() >= {"who": "cairn://cairn/client/shop", "node": "n1", "aggregate_type": "echo",
                                 "aggregate_id": "noted", "type": "Put", "command_id": "n-1"}.items()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["time"])
        assert wait_for(what="Append")["outcome"] not in ("", "ok")
        assert wait_for(what="DrainNode", outcome="DENIED")["who"] == "cairn://cairn/client/shop"
        wait_for(what="ReadAggregate", aggregate_id="noted", outcome="ok")
        assert "xyzzy" not in path.read_text()
        with client_of(cluster, pki.tls("operator", "alice")) as alice:
            with pytest.raises(cairn.CairnError):
                alice.remove_node("n1")
        entry = wait_for(what="RemoveNode", target="n1", who="cairn://cairn/operator/alice")
        assert entry["outcome"] not in ("", "ok") and entry["from"].startswith("ipv4:127.0.0.1")
        before = len(lines())
        path.rename(tmp_path / "audit.log.1")
        wait_until(lambda: shop.dispatch(put("noted")) and path.exists(), 10 * SLOW, "a new file", 0.1)
        assert len(lines(tmp_path / "audit.log.1")) >= before
    assert path.stat().st_mode & 0o777 == 0o600
    code, log = refused_start(alone("--audit-log", str(tmp_path / "no" / "audit.log"), start=False))
    assert code == 2 and "cannot open the audit log" in log


def test_a_refusal_is_noted_by_its_reason_whoever_decided(pki, tmp_path):
    """Orders are decided by the owner of the system partition, and noted where they came in."""
    path = tmp_path / "audit.log"
    with pki.secure(Cluster(3, modules=("echo",)), "--audit-log", str(path)) as cluster:
        for node in cluster.nodes:
            with cairn.Client([node.endpoint], timeout=20 * SLOW, tls=pki.tls("operator", "alice")) as alice:
                with pytest.raises(cairn.CairnError):
                    alice.remove_node("nobody")

        def noted():
            entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
            return {e["node"]: e["outcome"] for e in entries if e["what"] == "RemoveNode"}
        wait_until(lambda: len(noted()) == 3, 10 * SLOW, "all is noted")
        assert noted() == {"n1": "MEMBER_UNKNOWN", "n2": "MEMBER_UNKNOWN", "n3": "MEMBER_UNKNOWN"}


def test_sighup_reloads_and_doesnt_end_the_node(alone, pki, tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("grants: []")
    cluster = alone("--policy", str(policy))
    denied(cluster, pki.tls("client", "shop"))
    policy.write_text("grants: [{identities: ['cairn://cairn/client/shop'], roles: [dispatcher]}]")
    cluster.nodes[0].signal(signal.SIGHUP)
    wait_until(lambda: "policy-taken" in cluster.nodes[0].log(), 10 * SLOW, "the policy is taken")
    assert "reloaded" in cluster.nodes[0].log()
    with client_of(cluster, pki.tls("client", "shop")) as client:
        client.dispatch(put("after"))


# ---- bearer tokens ----

@pytest.fixture
def keys(tmp_path):
    """An EC and an RSA key, and the JWKS file."""
    elliptic = ec.generate_private_key(ec.SECP256R1())
    prime = rsa.generate_private_key(65537, 2048)
    entries = [json.loads(jwt.algorithms.ECAlgorithm.to_jwk(elliptic.public_key())) | {"kid": "e"},
               json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(prime.public_key())) | {"kid": "r"}]
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": entries}))
    return path, elliptic, prime


def claims(**more):
    now = datetime.datetime.now(datetime.timezone.utc)
    return {"sub": "batch", "aud": "cairn", "exp": now + datetime.timedelta(minutes=5)} | more


def test_bearer_tokens(alone, pki, keys, tmp_path):
    path, elliptic, prime = keys
    policy = tmp_path / "policy.yaml"
    policy.write_text("grants: [{identities: ['token:batch'], roles: [dispatcher, reader]}]")
    cluster = alone("--token-keys", str(path), "--policy", str(policy))
    past = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=1)

    def sign(key, algorithm, kid, **more):
        return jwt.encode(claims(**more), key, algorithm, headers={"kid": kid})
    for token in (sign(elliptic, "ES256", "e"), sign(prime, "RS256", "r", aud=["x", "cairn"])):
        with client_of(cluster, cairn.Tls(pki.ca, token=token)) as client:
            client.dispatch(put("token"))
            assert list(client.read("token"))[-1].principal == "token:batch"
    public = prime.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    good = sign(elliptic, "ES256", "e").split(".")

    def encode(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
    none = f"{encode({'alg': 'none', 'kid': 'e'})}.{good[1]}."
    confused = f"{encode({'alg': 'HS256', 'kid': 'r'})}.{good[1]}"
    confused += "." + base64.urlsafe_b64encode(hmac.new(public, confused.encode(), hashlib.sha256).digest()).rstrip(b"=").decode()
    wrong = {
        "none": (none, "not a signed"),
        "none, signed": (none + good[2], "RS256 nor ES256"),
        "padded": (".".join([*good[:2], "A=AA"]), "not a signed"),
        "a public key as secret": (confused, "RS256 nor ES256"),
        "wrong audience": (sign(elliptic, "ES256", "e", aud="other"), "another audience"),
        "expired": (sign(elliptic, "ES256", "e", exp=past), "expired"),
        "unknown key": (sign(elliptic, "ES256", "x"), "no key of that id"),
        "key of the other kind": (sign(elliptic, "ES256", "r"), "no key of that id and kind"),
        "another's signature": (sign(ec.generate_private_key(ec.SECP256R1()), "ES256", "e"), "signature is wrong"),
        "other claims": (".".join([good[0], encode({"sub": "root"}), good[2]]), "signature is wrong"),
        "not yet": (sign(elliptic, "ES256", "e", nbf=past + datetime.timedelta(hours=3)), "isn't valid yet"),
        "a path": (sign(elliptic, "ES256", "e", sub="../operator"), "can't be an identity"),
        "huge": (sign(elliptic, "ES256", "e", pad="x" * 9000), "longer than 8 KiB"),
        "garbage": ("a.b.c", "not a signed"),
    }
    for what, (token, said) in wrong.items():
        error = denied(cluster, cairn.Tls(pki.ca, token=token))
        assert error.code == grpc.StatusCode.UNAUTHENTICATED and said in error.message, (what, str(error))
    assert denied(cluster, cairn.Tls(pki.ca)).reason == "NO_IDENTITY"
    with client_of(cluster, cairn.Tls(pki.ca, token=sign(elliptic, "ES256", "e", sub="other"))) as client:
        with pytest.raises(cairn.Denied):
            client.dispatch(put("token"))


# ---- rotation, and what is offered ----

@pytest.mark.slow
def test_certificates_change_under_load_and_no_call_fails(tmp_path):
    """First the same CA, then another: both in the bundle while it changes."""
    old, new = Pki(tmp_path / "old"), Pki(tmp_path / "new")
    bundle = tmp_path / "bundle.crt"
    bundle.write_bytes(old.ca.read_bytes() + new.ca.read_bytes())
    cluster = Cluster(3, modules=("echo",))
    for node in cluster.nodes:
        for source, target in zip(old.pair("node", node.name), ("crt", "key")):
            shutil.copy(source, tmp_path / f"{node.name}.{target}")
        node.arguments = [*node.arguments, "--tls-certificate", f"{tmp_path}/{node.name}.crt", "--tls-key",
                          f"{tmp_path}/{node.name}.key", "--tls-ca", str(bundle)]
    certificate, key = old.pair("client", "shop")
    failures, done, stop = [], [0], threading.Event()

    def load(endpoint):
        turn = 0
        while not stop.is_set():
            with cairn.Client([endpoint], timeout=20 * SLOW, tls=cairn.Tls(bundle, certificate, key)) as client:
                for _ in range(20):  # then a new connection
                    turn += 1
                    try:
                        client.dispatch(put(f"{endpoint}-{turn % 7}"))
                        done[0] += 1
                    except cairn.CairnError as error:
                        failures.append(str(error))

    def change(pki, node):
        for source, target in zip(pki.pair("node", node.name), ("crt", "key")):
            draft = tmp_path / f"draft.{target}"
            shutil.copy(source, draft)
            os.rename(draft, tmp_path / f"{node.name}.{target}")
    with cluster:
        threads = [threading.Thread(target=load, args=(endpoint,)) for endpoint in cluster.endpoints]
        for thread in threads:
            thread.start()
        try:
            for authority in (old, new):
                for node in cluster.nodes:
                    before = serial_of(node.endpoint, bundle, certificate, key)
                    for path in authority.pair("node", node.name):
                        path.unlink()
                    change(authority, node)
                    wait_until(lambda: serial_of(node.endpoint, bundle, certificate, key) not in (b"", before),
                               30 * SLOW, "the new certificate is shown", 0.2)
            before = done[0]
            wait_until(lambda: done[0] > before + 60, 60 * SLOW, "more commands")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert failures == []


def serial_of(endpoint, bundle, certificate, key):
    done = subprocess.run(["openssl", "s_client", "-connect", endpoint, "-CAfile", str(bundle), "-cert", str(certificate),
                           "-key", str(key), "-alpn", "h2"], input=b"", capture_output=True, timeout=20)
    return subprocess.run(["openssl", "x509", "-noout", "-serial"], input=done.stdout, capture_output=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("flags, offered", [
    (["-tls1_3"], True), (["-tls1_2"], True), (["-tls1_1"], False), (["-tls1"], False),
    (["-tls1_2", "-cipher", "NULL:aNULL:eNULL:EXPORT:RC4:3DES:@SECLEVEL=0"], False),
    (["-tls1_2", "-cipher", "kRSA:@SECLEVEL=0"], False),
    (["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA:@SECLEVEL=0"], False),
    (["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"], True),
])
def test_protocols_and_ciphers_offered(secured, pki, flags, offered):
    certificate, key = pki.pair("client", "shop")
    done = subprocess.run(["openssl", "s_client", "-connect", secured.endpoints[0], "-CAfile", str(pki.ca), "-cert",
                           str(certificate), "-key", str(key), "-alpn", "h2", *flags],
                          input=b"", capture_output=True, timeout=20)
    agreed = re.search(rb"Cipher is (\S+)", done.stdout)
    assert (agreed is not None and agreed[1] != b"(NONE)") == offered, done.stdout.decode() + done.stderr.decode()


def test_metrics_tell_how_long_the_certificate_lasts(secured, alone, pki, tmp_path):
    assert 360 < secured.nodes[0].metrics()["cairn_certificate_days"] < 366
    short = Pki(tmp_path / "short")
    short.make("node", "n1", "--days", "10")
    cluster = alone("--tls-certificate", str(short.folder / "node-n1.crt"), "--tls-key", str(short.folder / "node-n1.key"),
                    "--tls-ca", str(short.ca))
    assert re.search("certificate expires in (9|10) days", cluster.nodes[0].log())
