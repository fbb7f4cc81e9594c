"""A statement trigger that writes what each statement adds into a table of deltas, and a refresher that merges them."""

from benchmarks.peers.peer import CountedAtInstall
from benchmarks.peers.rows import KEYS, MEASURES, grouped, upsert

COLUMNS = ", ".join((*KEYS, *MEASURES))
NEGATED = ", ".join((*KEYS, *(f"-{name}" for name in MEASURES)))
# Deletions are retention, which the statistics outlive; corrections of rows count.
CAPTURE = f"""
    create table peer_deltas (like peer_stats);
    create function add_deltas() returns trigger language plpgsql as $$
    begin
        insert into peer_deltas ({COLUMNS}) {grouped("new_rows")};
        if tg_op = 'UPDATE' then
            insert into peer_deltas ({COLUMNS}) select {NEGATED} from ({grouped("old_rows")}) g;
        end if;
        return null;
    end $$;
    create trigger add_deltas after insert on calculation_logs
        referencing new table as new_rows for each statement execute function add_deltas();
    create trigger change_deltas after update on calculation_logs
        referencing old table as old_rows new table as new_rows for each statement execute function add_deltas();
"""
SUMS = ", ".join(f"sum({name})::bigint as {name}" for name in MEASURES)


class Trigger(CountedAtInstall):
    """Each statement on the log appends its groups; a refresh deletes the deltas that it can see, and adds them."""

    key, name = "trigger", "statement trigger, table of deltas"
    adds_to_log = True

    def add_capture(self) -> None:
        """The table and its triggers."""
        self.connection.execute(CAPTURE.encode())

    def refresh(self) -> None:
        """One statement."""
        taken = "with taken as (delete from peer_deltas returning *)"
        merged = f"select publisher_id, date, {SUMS} from taken group by 1, 2"
        self.connection.execute(upsert(merged, before=taken).encode(), prepare=True)

    def maintain(self) -> None:
        """Autovacuum does this once a minute."""
        self.connection.execute("vacuum peer_deltas")
