"""Axon Framework 4.5 over Hazelcast 4.2, events by JDBC in one PostgreSQL: N members, each a JVM of its own; the caller
sits in one of them. As it ships, or tuned as well as was found (`tuned`). Needs a JDK and Maven.
"""

import contextlib

import jvm
import postgres
from cluster import free_ports

TUNED = ["-Djava.util.concurrent.ForkJoinPool.common.parallelism=2", "-Dbench.pool=40", "-Dbench.executor=128"]
# What Hazelcast reaches into, by its own manual, on a JDK of today.
OPEN = ["--add-modules", "java.se", "--add-exports", "java.base/jdk.internal.ref=ALL-UNNAMED",
        *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in ("java.lang", "java.nio", "sun.nio.ch")),
        "--add-opens=java.management/sun.management=ALL-UNNAMED",
        "--add-opens=jdk.management/com.sun.management.internal=ALL-UNNAMED"]


@contextlib.contextmanager
def start(members, tuned=False):
    with postgres.server() as database:
        ports = free_ports(members)
        url = f"jdbc:postgresql://127.0.0.1:{database.port}/postgres"
        commands = [[*OPEN, *(TUNED if tuned else []), "bench.Member", str(members), str(port), str(ports[0]), url]
                    for port in ports]
        with jvm.members("axon", database.folder, commands) as run:
            yield run
