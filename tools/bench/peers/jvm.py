"""Peers in Java: built by Maven into build/tools, each member a JVM of its own that says "ready", takes "run IN_FLIGHT
SECONDS" lines and answers each with "RATE P50 P99 LONGEST".
"""

import contextlib
import pathlib
import subprocess

WARM_SECONDS = 15  # compiled by then; rates grew for about as long
HERE = pathlib.Path(__file__).resolve().parent


def build(name: str) -> pathlib.Path:
    target = HERE.parent.parent.parent / "build" / "tools" / name
    newest = max(path.stat().st_mtime for folder in (name, "java") for path in (HERE / folder).rglob("*") if path.is_file())
    jar = target / f"{name}-1.jar"
    if not jar.exists() or jar.stat().st_mtime < newest:
        subprocess.run(["mvn", "-q", "-B", f"-Dbench.target={target}", "package", "dependency:copy-dependencies"],
                       cwd=HERE / name, check=True)
    return target


class Caller:
    """The member that makes the load, and the processes of the others."""

    def __init__(self, nodes: list[subprocess.Popen]):
        self.node = nodes[-1]
        self.others = nodes[:-1]

    def __call__(self, in_flight: int, seconds: int) -> list[float]:
        self.node.stdin.write(f"run {in_flight} {seconds}\n")
        self.node.stdin.flush()
        return [float(word) for word in self.node.stdout.readline().split()]


@contextlib.contextmanager
def members(name: str, folder: pathlib.Path, commands: list[list[str]]):
    """The arguments of each member's java. Gives a Caller: (in flight, seconds) -> commands/s, p50, p99, longest in ms."""
    target = build(name)
    with contextlib.ExitStack() as stack:
        nodes = []
        for number, arguments in enumerate(commands):
            log = stack.enter_context(open(folder / f"member-{number}.log", "w+"))
            node = subprocess.Popen(["java", "-cp", f"{target}/{name}-1.jar:{target}/dependency/*", *arguments],
                                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
            stack.callback(node.wait)
            stack.callback(node.kill)
            nodes.append((node, log))
        for node, log in nodes:
            if node.stdout.readline() != "ready\n":
                log.seek(0)
                raise SystemExit(f"a member of {name} ended: {log.read()[-2000:]}")
        run = Caller([node for node, _ in nodes])
        for in_flight in 64, 256:
            run(in_flight, WARM_SECONDS)
        yield run
