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
create table if not exists scheduled (tail text, flight text, at text, origin text);
create index if not exists scheduled_of on scheduled (tail, flight, at);
create table if not exists numbers (
    kind text, name text, month text, departed integer default 0, late_minutes integer default 0,
    arrived integer default 0, cancelled integer default 0, primary key (kind, name, month));
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
        """By airline and by airport of origin, each month by itself."""
        flight = event.json()
        if event.type == "FlightScheduled":
            self.db.execute("insert into scheduled values (?, ?, ?, ?)",
                            (event.aggregate_id, flight["flight"], flight["at"], flight["origin"]))
            return
        planned, origin = self.db.execute(
            "select at, origin from scheduled where tail = ? and flight = ? and at <= ? order by at desc limit 1",
            (event.aggregate_id, flight["flight"], flight["at"])).fetchone() or (None, "?")
        late = datetime.timedelta()
        if event.type == "FlightDeparted" and planned:
            late = moment(flight["at"]) - moment(planned) - SCHEDULED_AHEAD
        change = {"FlightDeparted": (1, int(late.total_seconds() // 60), 0, 0), "FlightArrived": (0, 0, 1, 0),
                  "FlightCancelled": (0, 0, 0, 1)}[event.type]
        for kind, name in (("airline", flight["flight"][:2]), ("airport", origin)):
            key = (kind, name, flight["at"][:7])
            self.db.execute("insert or ignore into numbers (kind, name, month) values (?, ?, ?)", key)
            self.db.execute("update numbers set departed = departed + ?, late_minutes = late_minutes + ?, "
                            "arrived = arrived + ?, cancelled = cancelled + ? "
                            "where kind = ? and name = ? and month = ?", change + key)


def main() -> None:
    path, group, *endpoints = sys.argv[1:]
    statistics = Statistics(path)
    processor = cairn.Processor(endpoints, group, statistics.handle, window=2000, tls=cairn.Tls.from_environment(),
                                filter=cairn.Filter(aggregate_types=["aircraft"]))
    signal.signal(signal.SIGTERM, lambda *_: processor.stop())
    processor.run()


if __name__ == "__main__":
    main()
