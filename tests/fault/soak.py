"""Random faults on three real nodes for so many minutes, with a bank at work; `tools/test soak [minutes]`."""

import pathlib
import random
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "support"))

from bank import Bank  # noqa: E402
from cluster import Cluster  # noqa: E402
from network import Network, usable  # noqa: E402

ROUND_S = 40


def kill(cluster, network, luck):
    node = luck.choice(cluster.nodes)
    node.kill()
    time.sleep(luck.uniform(0, 4))
    node.start()
    node.wait_ready(40)


def stop(cluster, network, luck):
    node = luck.choice(cluster.nodes)
    node.signal(signal.SIGSTOP)
    time.sleep(luck.choice([1, 3, 8]))
    node.signal(signal.SIGCONT)


def power_cut(cluster, network, luck):
    for node in cluster.nodes:
        node.kill()
    cluster.start(60)


def restart(cluster, network, luck):
    node = luck.choice(cluster.nodes)
    node.stop(30)
    node.start()
    node.wait_ready(40)


def cut(cluster, network, luck):
    network.cut_off(luck.randint(1, 3))
    time.sleep(luck.uniform(0.2, 6))
    network.heal()


def one_way(cluster, network, luck):
    network.set(cut=[luck.sample([1, 2, 3], 2) for _ in range(luck.randint(1, 2))])
    time.sleep(luck.uniform(0.2, 6))
    network.heal()


def slow(cluster, network, luck):
    network.set(delay_ms=luck.uniform(1, 60), jitter_ms=luck.uniform(1, 60), loss=luck.uniform(0, 0.05))
    time.sleep(luck.uniform(1, 6))
    network.heal()


FAULTS = [kill, stop, power_cut, restart, cut, one_way, slow]


def play(cluster, network, luck, end):
    """One round: faults with a bank at work, then every check. Gives how often each fault was played."""
    count = {}
    bank = Bank(cluster.endpoints, seed=luck.randrange(10**6))
    with bank:
        while time.monotonic() < end:
            fault = luck.choice(FAULTS)
            fault(cluster, network, luck)
            count[fault.__name__] = count.get(fault.__name__, 0) + 1
            bank.wait_for(10)
    bank.check(cluster.folder)
    return count, len(bank.history), bank.longest


def main():
    minutes = float(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    why_not = usable()
    if why_not:
        sys.exit(f"soak: {why_not}")
    luck = random.Random(seed)
    end = time.monotonic() + minutes * 60
    total, operations = {}, 0
    print(f"seed {seed}", flush=True)
    while time.monotonic() < end:
        network = Network(3)
        try:
            with Cluster(3, modules=("bank",), network=network) as cluster:
                count, done, longest = play(cluster, network, luck, min(end, time.monotonic() + ROUND_S))
        finally:
            network.close()
        operations += done
        for name, n in count.items():
            total[name] = total.get(name, 0) + n
        print(f"{(end - time.monotonic()) / 60:5.1f} minutes left; {operations} operations, linearizable; "
              f"longest {longest:.1f} s; {total}", flush=True)


if __name__ == "__main__":
    main()
