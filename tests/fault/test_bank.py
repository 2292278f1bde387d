"""Money moves between accounts while nodes die, hang, are cut off, run late or lose their disks' favour.
Afterwards nobody may have been told anything that one bank, doing one thing at a time, would not have said."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import cairn
import pytest
from bank import Bank
from cluster import SLOW, Cluster, wait_until
from network import Network, usable

LIBFIU = pathlib.Path("/usr/lib/fiu/fiu_posix_preload.so")
FAKETIME = next(pathlib.Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
MODULES = ("bank",)



def preload(node, *libraries, **environment):
    """From its next start on."""
    node.program = "cairnd-preloadable"
    node.environment = {"LD_PRELOAD": " ".join(map(str, libraries)), **environment}


@pytest.fixture
def three():
    with Cluster(3, modules=MODULES) as cluster:
        yield cluster


@pytest.fixture
def networked():
    why_not = usable()
    if why_not:
        pytest.skip(why_not)
    network = Network(3)
    try:
        with Cluster(3, modules=MODULES, network=network) as cluster:
            yield cluster, network
    finally:
        network.close()


def restart(node):
    node.start()
    node.wait_ready(30)


# ---- processes ----

def test_kill_9_of_one_owner_after_the_other(three):
    with Bank(three.endpoints) as bank:
        for _ in range(3):
            bank.wait_for(40)
            victim = three.busiest()
            victim.kill()
            bank.wait_for(40)
            restart(victim)
    bank.check(three.folder)


@pytest.mark.parametrize("seconds", [1, 6, pytest.param(30, marks=pytest.mark.slow)])
def test_an_owner_stopped_for_a_while(three, seconds):
    with Bank(three.endpoints) as bank:
        bank.wait_for(40)
        victim = three.busiest()
        victim.signal(signal.SIGSTOP)
        time.sleep(seconds)  # the length of the fault
        victim.signal(signal.SIGCONT)
        bank.wait_for(40)
    bank.check(three.folder)


def test_two_of_five_are_killed_at_once():
    """Some partitions lose their majority until the two are back: their callers wait, nobody is told nonsense."""
    with Cluster(5, modules=MODULES) as five, Bank(five.endpoints, accounts=12) as bank:
        bank.wait_for(40)
        victims = [five.busiest(), five.nodes[0]]
        victims = victims if victims[0] is not victims[1] else [victims[0], five.nodes[1]]
        for victim in victims:
            victim.kill()
        for victim in victims:
            restart(victim)
        bank.wait_for(60)
        bank.__exit__()
        bank.check(five.folder)


def test_power_cut(three):
    with Bank(three.endpoints) as bank:
        for _ in range(2):
            bank.wait_for(40)
            for node in three.nodes:
                node.kill()
            three.start(40)
        bank.wait_for(40)
    bank.check(three.folder)


def test_rolling_restart(three):
    with Bank(three.endpoints) as bank:
        for node in three.nodes:
            bank.wait_for(30)
            assert node.stop() == 0
            restart(node)
        bank.wait_for(30)
    bank.check(three.folder)


# ---- the network ----

def test_an_owner_cut_off(networked):
    cluster, network = networked
    with Bank(cluster.endpoints) as bank:
        bank.wait_for(40)
        victim = cluster.nodes.index(cluster.busiest()) + 1
        network.cut_off(victim)
        bank.wait_for(25)
        network.heal()
        bank.wait_for(40)
    bank.check(cluster.folder)


def test_a_reader_at_a_node_that_is_cut_off_goes_to_another(networked):
    cluster, network = networked
    endpoints = [cluster.nodes[0].endpoint, cluster.nodes[1].endpoint]
    with cairn.Client(endpoints[1:]) as client:
        client.dispatch(cairn.Command("account", "reader", "Deposit", {"amount": 1}))
        network.cut_off(1)
        client.dispatch(cairn.Command("account", "reader", "Deposit", {"amount": 2}))  # by an owner that isn't cut off
    began = time.monotonic()
    with cairn.Client(endpoints) as client:
        assert len(list(client.read("reader", timeout=20 * SLOW))) == 2
    assert 1 < time.monotonic() - began < 5 * SLOW  # the first node has been patient for 2 s


@pytest.mark.parametrize("way", ["from", "to"])
def test_an_owner_cut_off_one_way(networked, way):
    cluster, network = networked
    with Bank(cluster.endpoints) as bank:
        bank.wait_for(40)
        victim = cluster.nodes.index(cluster.busiest()) + 1
        others = [i for i in network.names if i != victim]
        network.set(cut=[[victim, o] if way == "from" else [o, victim] for o in others])
        bank.wait_for(25)
        network.heal()
        bank.wait_for(40)
    bank.check(cluster.folder)


def test_flapping_links(networked):
    cluster, network = networked
    luck = random.Random(7)
    with Bank(cluster.endpoints) as bank:
        bank.wait_for(20)
        for _ in range(12):
            pair = luck.sample(sorted(network.names), 2)
            network.set(cut=[pair, pair[::-1]][:luck.randint(1, 2)])
            time.sleep(luck.uniform(0.1, 0.8))  # the rhythm of the fault
        network.heal()
        bank.wait_for(40)
    bank.check(cluster.folder)


def test_a_slow_and_lossy_network(networked):
    cluster, network = networked
    network.set(delay_ms=15, jitter_ms=25, loss=0.03)
    with Bank(cluster.endpoints) as bank:
        bank.wait_for(60)
        victim = cluster.busiest()
        victim.kill()
        bank.wait_for(20)
        restart(victim)
        network.heal()
        bank.wait_for(40)
    bank.check(cluster.folder)


# ---- disk and clock ----

@pytest.mark.skipif(not LIBFIU.is_file(), reason="libfiu isn't here; tools/setup --tests installs it")
@pytest.mark.skipif("san" in os.environ.get("CAIRN_PRESET", ""), reason="a sanitizer wants to be loaded first")
def test_a_failed_fsync_stops_the_node_and_loses_nothing(three):
    victim = three.nodes[0]
    with Bank(three.endpoints) as bank:
        bank.wait_for(20)
        victim.kill()
        fifo = str(three.folder / "fiu")
        preload(victim, "/usr/lib/fiu/fiu_run_preload.so", LIBFIU, FIU_CTRL_FIFO=fifo)
        restart(victim)
        bank.wait_for(20)
        for point in ("fsync", "fdatasync"):
            subprocess.run(["fiu-ctrl", "-f", fifo, "-c", f"enable name=posix/io/sync/{point},failinfo=5",
                            str(victim.process.pid)], check=True)
        victim.process.wait(30)
        assert victim.process.returncode == 1, victim.log()[-2000:]
        assert "fsync" in victim.log() or "sync" in victim.log()
        victim.environment = {}
        bank.wait_for(20)
        restart(victim)
        bank.wait_for(20)
    bank.check(three.folder)


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime isn't here; tools/setup --tests installs it")
@pytest.mark.skipif("san" in os.environ.get("CAIRN_PRESET", ""), reason="a sanitizer wants to be loaded first")
def test_clocks_that_differ_and_jump():
    """Never ahead of the kernel's clock: abseil waits for absolute times there, which isn't faked."""
    cluster = Cluster(3, modules=MODULES)
    cluster.folder.mkdir(exist_ok=True)
    for i, node in enumerate(cluster.nodes):
        clock = cluster.folder / f"clock-{i}"
        clock.write_text("+0")
        preload(node, FAKETIME, FAKETIME_TIMESTAMP_FILE=str(clock), FAKETIME_NO_CACHE="1",
                FAKETIME_DONT_FAKE_MONOTONIC="1")
    with cluster, Bank(cluster.endpoints) as bank:
        for shift in ("-3600", "-5", "-86400", "+0"):
            bank.wait_for(20)
            (cluster.folder / f"clock-{random.randrange(3)}").write_text(shift)
        victim = cluster.busiest()
        victim.kill()
        bank.wait_for(20)
        restart(victim)
        bank.wait_for(20)
        bank.__exit__()
        bank.check(cluster.folder)
        with cairn.Client(cluster.endpoints) as client:
            for account in bank.accounts:
                times = [e.time for e in client.read(account)]
                assert times == sorted(times), "time ran backwards within an aggregate"
