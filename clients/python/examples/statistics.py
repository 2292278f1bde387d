"""A read model of the flights: one member of the processor group `statistics`, into an SQLite file.

    python statistics.py FILE GROUP HOST:PORT [HOST:PORT...]

Any number of members may share the file. An event may come again; the position that is kept with the numbers,
in the same transaction, makes each count once.
"""

import datetime
import signal
import sqlite3
import sys

import cairn

SCHEMA = """
create table if not exists cursor (partition integer primary key, position integer not null);
create table if not exists scheduled (tail text, flight text, at text);
create index if not exists scheduled_of on scheduled (tail, flight);
create table if not exists airline (
    name text primary key, departed integer default 0, late_minutes integer default 0,
    arrived integer default 0, cancelled integer default 0);
"""
SCHEDULED_AHEAD = datetime.timedelta(hours=1)  # an aircraft hears of a flight so long before


def moment(text: str) -> datetime.datetime:
    return datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ")


class Statistics:
    def __init__(self, path: str):
        self.db = sqlite3.connect(path, timeout=60, isolation_level=None)
        self.db.execute("pragma journal_mode = wal")
        self.db.execute("pragma synchronous = normal")
        self.db.executescript(SCHEMA)

    def handle(self, event: cairn.Delivered) -> None:
        self.db.execute("begin immediate")
        try:
            row = self.db.execute("select position from cursor where partition = ?", (event.partition,)).fetchone()
            if row is None or event.position > row[0]:
                self.count(event)
                self.db.execute("insert or replace into cursor values (?, ?)", (event.partition, event.position))
            self.db.execute("commit")
        except BaseException:
            self.db.execute("rollback")
            raise

    def count(self, event: cairn.Delivered) -> None:
        flight = event.json()
        airline = flight["flight"][:2]
        self.db.execute("insert or ignore into airline (name) values (?)", (airline,))
        if event.type == "FlightScheduled":
            self.db.execute("insert into scheduled values (?, ?, ?)",
                            (event.aggregate_id, flight["flight"], flight["at"]))
        elif event.type == "FlightDeparted":
            planned = self.db.execute(
                "select max(at) from scheduled where tail = ? and flight = ? and at <= ?",
                (event.aggregate_id, flight["flight"], flight["at"])).fetchone()[0]
            late = moment(flight["at"]) - moment(planned) - SCHEDULED_AHEAD if planned else datetime.timedelta()
            self.db.execute("update airline set departed = departed + 1, late_minutes = late_minutes + ? "
                            "where name = ?", (int(late.total_seconds() // 60), airline))
        elif event.type == "FlightArrived":
            self.db.execute("update airline set arrived = arrived + 1 where name = ?", (airline,))
        elif event.type == "FlightCancelled":
            self.db.execute("update airline set cancelled = cancelled + 1 where name = ?", (airline,))


def main() -> None:
    path, group, *endpoints = sys.argv[1:]
    statistics = Statistics(path)
    processor = cairn.Processor(endpoints, group, statistics.handle, window=2000,
                                filter=cairn.Filter(aggregate_types=["aircraft"]))
    signal.signal(signal.SIGTERM, lambda *_: processor.stop())
    processor.run()


if __name__ == "__main__":
    main()
