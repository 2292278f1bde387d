"""A bank: clients that move money between accounts while things break, and the history of what they were told."""

from __future__ import annotations

import json
import pathlib
import random
import subprocess
import threading
import time

import cairn
from cluster import ROOT, SLOW, wait_until

CHECKER = ROOT / "build" / "tools" / "history"
START = 100


def _balance(events) -> int:
    return sum(json.loads(e.payload)["amount"] * (1 if e.type == "Deposited" else -1) for e in events)


class Bank:
    """Every operation is noted with when it was asked and answered, for a checker that isn't ours."""

    def __init__(self, endpoints: list[str], accounts: int = 8, clients: int = 4, seed: int = 1):
        self.endpoints = endpoints
        self.accounts = [f"account-{i}" for i in range(accounts)]
        self.history: list[dict] = []
        self.transfers = 0
        self.longest = 0.0
        self.faults: list[str] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i, random.Random(seed * 1000 + i)))
                         for i in range(clients)]
        with cairn.Client(endpoints, timeout=30 * SLOW) as client:
            for account in self.accounts:
                self._ask(client, 99, account, "deposit", START, f"open {account}")

    def _ask(self, client, number, account, kind, amount, command_id):
        """One operation to its end. Gives whether it took effect."""
        entry = {"client": number, "account": account, "kind": kind, "amount": amount,
                 "call": time.monotonic_ns(), "outcome": "ok"}
        try:
            if kind == "read":
                entry["balance"] = _balance(client.read(account, timeout=15 * SLOW))
            else:
                outcome = client.dispatch(cairn.Command("account", account, kind.capitalize(),
                                                        {"amount": amount}, id=command_id))
                entry["balance"] = json.loads(outcome.reply.payload)["balance"]
        except cairn.Rejected:
            entry["outcome"] = "rejected"
        except cairn.CairnError as error:
            entry["outcome"] = "unknown"
            self.faults.append(f"{kind} of {account}: {error}")
        entry["return"] = time.monotonic_ns()
        with self._lock:
            self.history.append(entry)
            self.longest = max(self.longest, (entry["return"] - entry["call"]) / 1e9)
        return entry["outcome"] == "ok"

    def _run(self, number, luck):
        with cairn.Client(self.endpoints, timeout=90 * SLOW, try_timeout=0.5 * SLOW) as client:
            turn = 0
            while not self._stop.is_set():
                turn += 1
                source, target = luck.sample(self.accounts, 2)
                amount = luck.randint(1, 60)
                if luck.random() < 0.2:
                    self._ask(client, number, source, "read", 0, "")
                    continue
                name = f"transfer {number}-{turn}"
                if self._ask(client, number, source, "withdraw", amount, name + " out"):
                    self._ask(client, number, target, "deposit", amount, name + " in")
                    self.transfers += 1

    def wait_for(self, transfers: int) -> None:
        goal = self.transfers + transfers
        wait_until(lambda: self.transfers >= goal or self.faults, 90 * SLOW, f"{transfers} more transfers")

    def __enter__(self) -> Bank:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def check(self, folder: pathlib.Path) -> None:
        """No money is lost or made, nothing is unknown in the end, and the history is linearizable."""
        assert not self.faults, self.faults[:3]
        with cairn.Client(self.endpoints, timeout=60 * SLOW) as client:
            total = 0
            for account in self.accounts:
                events = list(client.read(account))
                assert [e.sequence for e in events] == list(range(len(events)))
                assert len({e.command_id for e in events}) == len(events), f"{account}: an event is doubled"
                total += _balance(events)
                self._ask(client, 99, account, "read", 0, "")
        assert total == START * len(self.accounts)
        path = folder / "history.jsonl"
        path.write_text("".join(json.dumps(entry) + "\n" for entry in self.history))
        verdict = subprocess.run([CHECKER, path], capture_output=True, text=True, timeout=120)
        assert verdict.returncode == 0, verdict.stdout + verdict.stderr
