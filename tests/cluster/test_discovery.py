"""Nodes that find each other: by a DNS server whose answers change, by multicast, from lists; in namespaces."""

import pathlib
import random
import signal
import socket
import subprocess
import time

import cairn
import pytest
from cluster import BIN, SLOW, Cluster, Node, wait_until
from network import Network, usable

pytestmark = pytest.mark.skipif(usable() != "", reason=usable())
PORT, HTTP = 7411, 7412


@pytest.fixture
def network():
    network = Network(5)
    yield network
    network.close()


class Field:
    """Nodes at the stations of a network, each with arguments of its own."""

    def __init__(self, network, folder):
        self.network, self.folder, self.nodes = network, folder, []

    def node(self, station, *arguments, name=None):
        node = Node(name or f"n{station}", PORT, HTTP, pathlib.Path(self.folder) / f"d{station}",
                    ["--insecure", *arguments], self.network.address(station), self.network.inside(station))
        self.nodes.append(node)
        return node

    def members(self, node):
        with cairn.Client([node.endpoint], timeout=10) as client:
            view = client.topology()
        return view.cluster_id, {m.name for m in view.members if m.status == 1}

    def wait_one_cluster(self, nodes, timeout=40):
        names = {n.name for n in nodes}
        for node in nodes:
            node.wait_ready(timeout)

        def together():
            views = [self.members(n) for n in nodes]
            return len({c for c, _ in views}) == 1 and all(m == names for _, m in views)
        wait_until(together, timeout * SLOW, f"{names} in one cluster", 0.2)

    def close(self):
        for node in self.nodes:
            if node.process is not None and node.process.poll() is None:
                node.process.send_signal(signal.SIGCONT)
                node.kill()


@pytest.fixture
def field(network, tmp_path):
    field = Field(network, tmp_path)
    yield field
    field.close()


class Dns:
    """dnsmasq in the namespace of a station; its answers are a file."""

    def __init__(self, network, station, folder):
        self.hosts = pathlib.Path(folder) / "hosts"
        self.conf = pathlib.Path(folder) / "srv.conf"
        self.hosts.write_text("")
        self.address = network.address(station)
        self._command = [*network.inside(station), "dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts",
                         f"--addn-hosts={self.hosts}", f"--conf-file={self.conf}", "--local-ttl=0",
                         f"--listen-address={self.address}", "--bind-interfaces", "--user=root", "--pid-file",
                         "--local=/test/"]
        self.conf.write_text("")
        self.process = None

    def start(self):
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return self

    def say(self, *addresses, name="cairn.test"):
        self.hosts.write_text("".join(f"{a} {name}\n" for a in addresses))
        if self.process is not None:
            self.process.send_signal(signal.SIGHUP)

    def services(self, name, *targets):
        self.conf.write_text("".join(f"srv-host={name},{host},{port}\n" for host, port in targets))

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def dns(network, tmp_path):
    dns = Dns(network, 5, tmp_path)
    yield dns
    dns.stop()


def by_dns(dns, name="cairn.test"):
    return ("--discover", f"dns:{name}", "--dns-server", dns.address)


def test_a_name_that_resolves_late_wrongly_and_to_dead_addresses(field, network, dns):
    """No server; then no name; then an address where nobody is; then the right ones with a dead one among them."""
    nodes = [field.node(i, *by_dns(dns), "--bootstrap-expect", "3") for i in (1, 2, 3)]
    for node in nodes:
        node.start()
    wait_until(lambda: "has no address yet" in nodes[0].log(), 20 * SLOW, "the name is asked for")
    dns.say(network.address(4))
    dns.start()
    wait_until(lambda: "has 1 addresses" in nodes[0].log(), 20 * SLOW, "an answer")
    dns.say(*[network.address(i) for i in (1, 2, 3, 4)])
    field.wait_one_cluster(nodes)
    late = field.node(4, *by_dns(dns))
    late.start()
    field.wait_one_cluster([*nodes, late])


@pytest.mark.slow
def test_all_addresses_change_while_the_cluster_is_down(field, network, dns):
    """As pods that are made anew: the same disks at other addresses."""
    dns.say(network.address(1), network.address(2))
    dns.start()
    nodes = [field.node(i, *by_dns(dns), "--bootstrap-expect", "2") for i in (1, 2)]
    for node in nodes:
        node.start()
    field.wait_one_cluster(nodes)
    before = field.members(nodes[0])[0]
    for node in nodes:
        node.kill()
    dns.say(network.address(3), network.address(4))
    for node, station in zip(nodes, (3, 4)):
        node.host, node.prefix = network.address(station), network.inside(station)
        node.start()
    field.wait_one_cluster(nodes)
    assert field.members(nodes[0])[0] == before


@pytest.mark.slow
def test_services_of_a_name(field, network, dns):
    dns.say(network.address(1), network.address(2), name="pod.test")
    dns.hosts.write_text(f"{network.address(1)} a.test\n{network.address(2)} b.test\n")
    dns.services("_peer._tcp.cairn.test", ("a.test", PORT), ("b.test", PORT))
    dns.start()
    nodes = [field.node(i, *by_dns(dns, "_peer._tcp.cairn.test"), "--bootstrap-expect", "2") for i in (1, 2)]
    for node in nodes:
        node.start()
    field.wait_one_cluster(nodes)


@pytest.mark.slow
def test_thousands_of_addresses_are_tried_in_bounded_number(field, network, dns):
    """Two of them are right; memory and connections stay small."""
    wrong = [f"10.{a}.{b}.9" for a in range(1, 11) for b in range(200)]  # no way leads there from the namespaces
    dns.say(*wrong, network.address(1), network.address(2))
    dns.start()
    nodes = [field.node(i, *by_dns(dns), "--bootstrap-expect", "2") for i in (1, 2)]
    for node in nodes:
        node.start()
    field.wait_one_cluster(nodes, 90)
    status = pathlib.Path(f"/proc/{nodes[0].process.pid}/status").read_text()
    assert int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) < 400 << 10


@pytest.mark.slow
def test_a_name_that_leads_to_another_cluster(field, network, dns):
    """It is refused by its name, and nothing of it is taken."""
    strangers = [field.node(i, "--cluster-name", "other", "--discover", f"static:{network.address(1)}:{PORT}",
                            f"--discover={network.address(2)}:{PORT}", "--bootstrap-expect", "2") for i in (1, 2)]
    for node in strangers:
        node.start()
    field.wait_one_cluster(strangers)
    dns.say(*[network.address(i) for i in (1, 3, 4)])
    dns.start()
    ours = [field.node(i, *by_dns(dns), "--bootstrap-expect", "2") for i in (3, 4)]
    for node in ours:
        node.start()
    field.wait_one_cluster(ours)
    assert field.members(strangers[0])[1] == {"n1", "n2"}
    assert "of the cluster named other" in ours[0].log() + ours[1].log() + strangers[0].log() + strangers[1].log() or \
        "cluster named cairn" in strangers[0].log()


def test_multicast_finds_everybody_in_any_order_also_after_a_cut(field, network):
    """Half of them can't see the other half at first: there is one cluster all the same."""
    nodes = [field.node(i, "--discover", "multicast", "--bootstrap-expect", "4") for i in (1, 2, 3, 4)]
    network.cut_off(1, 2)
    random.Random(5).shuffle(nodes)
    for node in nodes:
        node.start()
    wait_until(lambda: all("n" in n.log() and "alive" in n.log() for n in nodes), 30 * SLOW, "pairs find each other")
    assert not any(n.is_ready() for n in nodes)
    network.heal()
    field.wait_one_cluster(nodes, 60)
    late = field.node(5, "--discover", "multicast")
    late.start()
    field.wait_one_cluster([*nodes, late], 60)


@pytest.mark.slow
def test_two_clusters_on_one_network_do_not_mix(field, network):
    one = [field.node(i, "--discover", "multicast", "--bootstrap-expect", "2", "--cluster-name", "one") for i in (1, 2)]
    two = [field.node(i, "--discover", "multicast", "--bootstrap-expect", "2", "--cluster-name", "two") for i in (3, 4)]
    for node in [*one, *two]:
        node.start()
    field.wait_one_cluster(one)
    field.wait_one_cluster(two)


def test_a_flood_of_announcements_costs_little(field, network):
    node = field.node(1, "--discover", "multicast", "--bootstrap-expect", "1")
    node.start()
    node.wait_ready()
    flood = subprocess.Popen([*network.inside(2), "python3", "-c", """
import os, socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end = time.monotonic() + 4
while time.monotonic() < end:
    for _ in range(200):
        junk = os.urandom(int.from_bytes(os.urandom(1), "big"))
        s.sendto(b"\\x0a\\x05cairn\\x11" + os.urandom(8) + b"\\x1a\\x0910.1.1.1:" + str(os.urandom(1)[0]).encode(),
                 ("239.255.74.11", 7411))
        s.sendto(junk, ("239.255.74.11", 7411))
    time.sleep(0.001)
"""])
    with cairn.Client([node.endpoint]) as client:
        started = time.monotonic()
        while flood.poll() is None:
            client.topology()
        assert time.monotonic() - started < 20
    assert flood.returncode == 0
    assert node.is_ready()


@pytest.mark.slow
@pytest.mark.parametrize("text, words", [
    ("dns:", "dns:NAME"), ("dns:a:0", "dns:NAME"), ("multicast:1.2.3.4:7411", "multicast group"),
    ("multicast:239.1.1.1", "multicast"), ("avahi:x", "static:HOST:PORT"), ("static:nowhere", "static:HOST:PORT"),
])
def test_a_setting_that_is_none_is_refused(tmp_path, text, words):
    done = subprocess.run([BIN / "cairnd", "--data-dir", tmp_path / "d", "--listen", "127.0.0.1:0", "--http", "",
                           "--discover", text], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
