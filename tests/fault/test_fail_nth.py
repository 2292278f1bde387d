"""Every failure once: the N-th allocation, send, receive, read, write or sync of one node fails, then a later
one. The node goes on, or stops and says so; what was acknowledged is there, and the history is one bank's."""

import os

import pytest
from bank import Bank
from cluster import BIN, Cluster, wait_until

# How much further each next failure lies. CAIRN_THOROUGH=1 looks closer, for some ten minutes.
FACTOR = 1.4 if os.environ.get("CAIRN_THOROUGH") else 4
# The first N: what comes before is the start of the process, the same for all.
CALLS = {"malloc": 500, "sendmsg": 1, "recvmsg": 1, "write": 1, "pread": 1, "fdatasync": 1, "openat": 1}
LAST = {"malloc": 400_000}
FAIL_NTH = BIN / "libfail_nth.so"

pytestmark = pytest.mark.skipif("san" in os.environ.get("CAIRN_PRESET", ""),
                                reason="a sanitizer wants to be loaded first")


def came(node):
    return "fail-nth: it fails here" in node.log()


def ended(node):
    return node.process.poll() is not None


@pytest.mark.parametrize("call", CALLS)
def test_the_nth_call_may_fail(call):
    with Cluster(3, modules=("bank",)) as cluster, Bank(cluster.endpoints) as bank:
        victim = cluster.nodes[0]
        n, failures = CALLS[call], 0
        while n < LAST.get(call, 3000):
            victim.kill()
            victim.log_path.unlink()
            victim.program = "cairnd-preloadable"
            victim.environment = {"LD_PRELOAD": str(FAIL_NTH), "FAIL_CALL": call, "FAIL_AT": str(int(n))}
            victim.start()
            wait_until(lambda: ended(victim) or ready(victim), 60, f"{call} {int(n)}: start or end")
            bank.wait_for(25)
            if came(victim) and ended(victim):
                log = victim.log()
                assert log.strip().splitlines()[-1] != "fail-nth: it fails here", "it ended without a word"
                # Debian's RocksDB has its own assertions on: a failed write trips one. Ours never may.
                ours = [line for line in log.splitlines() if "Assertion" in line and "rocksdb::" not in line]
                assert not ours, log[-2000:]
            elif not came(victim):
                break  # so many calls weren't made
            failures += came(victim)
            n = max(n + 1, n * FACTOR)
        assert failures >= 2, f"{call} failed {failures} times only"
        victim.kill()
        victim.environment = {}
        victim.start()
        victim.wait_ready(30)
        bank.wait_for(20)
        bank.__exit__()
        bank.check(cluster.folder)


def ready(node):
    try:
        return node.is_ready()
    except RuntimeError:  # it ended meanwhile
        return True
