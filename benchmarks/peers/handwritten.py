"""SQL that an engineer types: the floor, and the whole day."""

from datetime import date

from benchmarks.peers.peer import CountedAtInstall, Peer
from benchmarks.peers.rows import TODAY, YESTERDAY, grouped, replace, upsert


class Bare(Peer):
    """The log table alone: what writers cost without any statistics."""

    key, name = "bare", "bare table"
    has_refresher, adds_to_log = False, True

    def install(self) -> None:
        """Nothing."""

    def refresh(self) -> None:
        """Nothing."""


class Floor(CountedAtInstall):
    """The aggregate-upsert of the rows whose ids are above the last: no refresh can cost less.

    The ids are looked up before, which is not measured. As a system it is a high-water mark of ids, kept in memory.
    """

    key, name = "floor", "floor: upsert of the ids above the last"

    def add_capture(self) -> None:
        """The last id that is there."""
        self.last = self.up_to = self._greatest()

    def prepare(self) -> None:
        """Looks up the ids."""
        self.up_to = self._greatest()

    def refresh(self) -> None:
        """Begin, one statement, commit."""
        statement = upsert(grouped("calculation_logs", "id > %s and id <= %s"))
        with self.connection.transaction():
            self.connection.execute(statement.encode(), [self.last, self.up_to], prepare=True)
        self.last = self.up_to

    def _greatest(self) -> int:
        found = self.connection.execute("select coalesce(max(id), 0) from calculation_logs").fetchone()
        return int(found[0]) if found else 0


class WholeDay(Peer):
    """What this project replaces, made safe to repeat: recounts today and yesterday every time."""

    key, name = "whole_day", "whole-day SQL"

    def install(self) -> None:
        """Counts all days once."""
        super().install()
        self.connection.execute(replace(grouped("calculation_logs")))

    def refresh(self) -> None:
        """One statement."""
        self.catch_up(YESTERDAY)

    def catch_up(self, first: date) -> None:
        """The same statement, for more days."""
        recent = f"created_at >= '{first} 00:00Z' and created_at < '{TODAY} 24:00Z'"
        self.connection.execute(replace(grouped("calculation_logs", recent)).encode())
