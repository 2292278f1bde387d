"""The worker of worker.c in Python: one event for each command, its payload as it came.

    build/venv/bin/python tools/bench/worker.py AGGREGATE_TYPE HOST:PORT...
"""

import sys

import cairn


class Echo:
    commands = ("Put",)

    def __init__(self, aggregate_type: str):
        self.aggregate_type = aggregate_type

    def initial(self, aggregate_id: str) -> int:
        return 0

    def decide(self, state: int, command: cairn.Command):
        yield cairn.NewEvent("Put", command.payload)

    def evolve(self, state: int, event) -> int:
        return state + 1


if __name__ == "__main__":
    cairn.Worker(sys.argv[2:], Echo(sys.argv[1]), name="bench.py").run()
