"""The checker of histories says no to what no bank would say."""

import json
import subprocess

import pytest
from bank import CHECKER


def entry(kind, call, end, outcome="ok", amount=0, balance=0, client=1):
    return {"client": client, "account": "a", "kind": kind, "amount": amount, "balance": balance,
            "call": call, "return": end, "outcome": outcome}


OPEN = entry("deposit", 1, 2, amount=10, balance=10)
HISTORIES = {
    "sound": (True, [OPEN, entry("withdraw", 3, 4, amount=4, balance=6), entry("read", 5, 6, balance=6)]),
    "a read at the same time may see either": (
        True, [OPEN, entry("deposit", 3, 9, amount=5, balance=15), entry("read", 4, 5, balance=10, client=2)]),
    "unknown, and it happened": (
        True, [OPEN, entry("deposit", 3, 4, outcome="unknown", amount=5), entry("read", 5, 6, balance=15)]),
    "unknown, and it didn't": (
        True, [OPEN, entry("deposit", 3, 4, outcome="unknown", amount=5), entry("read", 5, 6, balance=10)]),
    "a stale read": (False, [OPEN, entry("deposit", 3, 4, amount=5, balance=15), entry("read", 5, 6, balance=10)]),
    "a lost update": (False, [OPEN, entry("deposit", 3, 4, amount=5, balance=15),
                              entry("deposit", 5, 6, amount=1, balance=11)]),
    "a rejection without a reason": (False, [OPEN, entry("withdraw", 3, 4, outcome="rejected", amount=4)]),
    "an overdraft": (False, [OPEN, entry("withdraw", 3, 4, amount=11, balance=-1)]),
    "twice": (False, [OPEN, entry("deposit", 3, 4, amount=5, balance=20)]),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_verdict(name, tmp_path):
    sound, entries = HISTORIES[name]
    path = tmp_path / "history"
    path.write_text("".join(json.dumps(e) + "\n" for e in entries))
    verdict = subprocess.run([CHECKER, path], capture_output=True, text=True)
    assert (verdict.returncode == 0) == sound, verdict.stdout
