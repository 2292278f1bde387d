"""Pekko Cluster Sharding and Persistence over JDBC, on one PostgreSQL: N members, each a JVM of its own; the caller sits
in one of them. As it ships, or tuned as well as was found (`tuned`). Needs a JDK and Maven.
"""

import contextlib
import zipfile

import jvm
import postgres
from cluster import free_ports

# Fewer threads than it would take on two cores, and more connections to the database.
TUNED = ["-Djava.util.concurrent.ForkJoinPool.common.parallelism=2", "-Dslick-settings.db.numThreads=40",
         "-Dslick-settings.db.maxConnections=40", "-Dslick-settings.db.queueSize=10000",
         "-Djdbc-journal.bufferSize=100000", "-Djdbc-journal.batchSize=400", "-Djdbc-journal.parallelism=16"]


def _schema():
    jar = next((jvm.build("pekko") / "dependency").glob("pekko-persistence-jdbc_*.jar"))
    return zipfile.ZipFile(jar).read("schema/postgres/postgres-create-schema.sql").decode()


@contextlib.contextmanager
def start(members, tuned=False):
    with postgres.server() as database:
        database.sql(_schema())
        ports = free_ports(members)
        commands = [[*(TUNED if tuned else []), f"-Dbench.port={port}", f"-Dbench.seed={ports[0]}",
                     f"-Dbench.url=jdbc:postgresql://127.0.0.1:{database.port}/postgres", "bench.Member", str(members)]
                    for port in ports]
        with jvm.members("pekko", database.folder, commands) as run:
            yield run
