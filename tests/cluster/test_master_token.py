"""Master keys that a key in a PKCS #11 token derives: a real module (SoftHSM), real nodes."""

import hashlib
import hmac
import json
import re
import subprocess

import cairn
import pytest
from cluster import BIN, SLOW, Cluster, wait_until
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import algorithms
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFCMAC, KBKDFHMAC, CounterLocation, Mode
from load import put

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
SECRET = bytes(range(32))


def tool(*arguments, **more):
    done = subprocess.run(arguments, capture_output=True, text=True, **more)
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return done.stdout


def token_tool(*arguments):
    return tool("pkcs11-tool", "--module", MODULE, "--token-label", "cairn", "--login", "--pin", "1234", *arguments)


def write_key(folder, label, id):
    path = folder / "value"
    path.write_bytes(SECRET)
    token_tool("--write-object", str(path), "--type", "secrkey", "--key-type", "AES:32", "--usage-sign", "--private",
               "--label", label, "--id", id)


@pytest.fixture(scope="module")
def token(tmp_path_factory):
    """A folder with a token that has four keys, and files with PINs."""
    folder = tmp_path_factory.mktemp("token")
    (folder / "tokens").mkdir()
    (folder / "conf").write_text(f"directories.tokendir = {folder}/tokens\n")
    for name, pin, mode in ("pin", "1234\n", 0o600), ("wrong", "9999", 0o600), ("exposed", "1234", 0o644):
        (folder / name).write_text(pin)
        (folder / name).chmod(mode)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(folder / "conf"))
        tool("softhsm2-util", "--init-token", "--free", "--label", "cairn", "--pin", "1234", "--so-pin", "5678")
        write_key(folder, "aes", "01")
        write_key(folder, "twice", "02")
        write_key(folder, "twice", "03")
        token_tool("--keygen", "--key-type", "GENERIC:32", "--usage-sign", "--extractable", "--label", "generic", "--id", "04")
        token_tool("--read-object", "--type", "secrkey", "--label", "generic", "--output-file", str(folder / "generic"))
        yield folder


def uri(token, name="aes", pin="pin", module=MODULE, where="cairn"):
    return f"pkcs11:token={where};object={name}?module-path={module}&pin-source=file:{token / pin}"


def check(source, *more):
    return subprocess.run([BIN / "cairnctl", "key", "check", source, *more], capture_output=True, text=True)


def derived(token, kind, id):
    """By an implementation that isn't ours: NIST SP 800-108, counter mode."""
    common = dict(mode=Mode.CounterMode, length=32, rlen=4, llen=4, location=CounterLocation.BeforeFixed,
                  label=b"cairn master key", context=id.encode(), fixed=None)
    one = KBKDFCMAC(algorithms.AES, **common) if kind == "aes" else KBKDFHMAC(hashes.SHA256(), **common)
    return one.derive(SECRET if kind == "aes" else (token / "generic").read_bytes())


@pytest.mark.parametrize("kind", ["aes", "generic"])
def test_the_key_is_derived_as_the_standard_says(token, kind):
    done = check(uri(token, kind), "--output", "json")
    expected = hmac.new(derived(token, kind, kind), b"cairn check value", hashlib.sha256).hexdigest()[:8]
    assert json.loads(done.stdout) == [{"id": kind, "check": expected}]


@pytest.mark.parametrize("change, words", [
    (dict(pin="wrong"), "refuses the PIN"),
    (dict(pin="missing"), "cannot read the PIN"),
    (dict(pin="exposed"), "only its owner can read"),
    (dict(name="nobody"), "no secret key like that"),
    (dict(name="twice"), "more than one key"),
    (dict(where="other"), "no token is like that"),
    (dict(module="/nowhere.so"), "cannot load the module /nowhere.so"),
    (dict(module="here.so"), "must be absolute"),
])
def test_what_is_wrong_is_said(token, change, words):
    done = check(uri(token, **change))
    assert done.returncode == 2 and words in done.stderr and "pin-source" not in done.stderr, done


@pytest.mark.parametrize("text, words", [("pkcs11:token=cairn", "which key"), ("pkcs11:objekt=aes", "isn't known"),
                                         ("pkcs11:object=%zz", "not a PKCS #11 URI"),
                                         (f"pkcs11:token=cairn;object=aes?module-path={MODULE}", "only with a PIN"),
                                         (f"pkcs11:object=aes?module-path={MODULE}&pin-source=|cat", "absolute path")])
def test_a_uri_that_is_no_good_is_refused(token, text, words):
    done = check(text)
    assert done.returncode == 2 and words in done.stderr, done


def payloads(client, aggregate):
    return [(e.json(), e.forgotten) for e in client.read(aggregate)]


def test_three_nodes_with_the_key_in_a_token(token):
    with Cluster(3, modules=("echo",), arguments=("--master-key", uri(token))) as cluster:
        with cairn.Client(cluster.endpoints, timeout=20 * SLOW) as client:
            for i in range(10):
                client.dispatch(put(f"t-{i}", {"n": i}, subject=f"s{i % 2}"))
            client.forget_subject("s1")
            for node in cluster.nodes:
                node.kill()
            cluster.start()
            for i in range(10):
                assert payloads(client, f"t-{i}") == [(None, True) if i % 2 else ({"n": i}, False)]


def test_a_node_whose_token_refuses_does_not_start(token):
    cluster = Cluster(1, arguments=("--master-key", uri(token, pin="wrong")))
    try:
        cluster.nodes[0].start()
        assert cluster.nodes[0].process.wait(20 * SLOW) == 2
        assert "refuses the PIN" in cluster.nodes[0].log()
    finally:
        cluster.close()


def test_from_a_file_into_a_token_while_all_goes_on(token, tmp_path):
    path = tmp_path / "master"
    tool(BIN / "cairnctl", "key", "master", str(path))
    before = path.read_text()
    with Cluster(1, modules=("echo",), arguments=("--master-key", str(path))) as cluster:
        node = cluster.nodes[0]
        with cairn.Client(cluster.endpoints, timeout=20 * SLOW) as client:
            for i in range(10):
                client.dispatch(put(f"f-{i}", {"n": i}, subject=f"s{i}"))
            lines = f"in-the-token {uri(token)}\n"
            path.write_text(lines + before)
            wait_until(lambda: "master-keys-taken" in node.log(), 10 * SLOW, "the token's key is taken", 0.1)
            wait_until(lambda: wrapped(node) == 10, 20 * SLOW, "all keys are wrapped by it", 0.1)
            path.write_text(lines) # the file knows no key any more, only where one is
            node.kill()
            node.start()
            node.wait_ready()
            for i in range(10):
                assert payloads(client, f"f-{i}") == [({"n": i}, False)]
            path.write_text(f"in-the-token {uri(token, pin='wrong')}\n")
            wait_until(lambda: "stay in force" in node.log(), 10 * SLOW, "it says so", 0.1)
            client.dispatch(put("f-0", {"n": "on"}, subject="s0"))


def wrapped(node):
    return sum(int(count) for count in re.findall(r"(\d+) keys of partition", node.log()))


def test_cairnctl_adds_the_key_of_a_token_to_the_file(token, tmp_path):
    path = tmp_path / "master"
    tool(BIN / "cairnctl", "key", "master", str(path))
    tool(BIN / "cairnctl", "key", "master", str(path), uri(token))
    first, second = path.read_text().splitlines()
    assert first.endswith(uri(token)) and "pkcs11" not in second
    assert path.stat().st_mode & 0o777 == 0o600
    refused = subprocess.run([BIN / "cairnctl", "key", "master", str(path), uri(token, pin="wrong")], capture_output=True, text=True)
    assert refused.returncode == 2 and path.read_text().splitlines() == [first, second]
