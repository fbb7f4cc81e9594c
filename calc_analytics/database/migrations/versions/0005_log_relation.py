"""Which table the log is: its oid, so that another one in its place is detected.

What was counted is what the live view reads; another table may have the log's name now. A state row that was written
in another cluster stays one: this revision's own writing must not hide that it came from there.
"""

from alembic import op
from sqlalchemy import text

from calc_analytics.database.migrations.cluster import STILL_HERE

revision = "0005_log_relation"
down_revision = "0004_needs_calc_analytics_0.2"


def upgrade() -> None:
    connection = op.get_bind()
    connection.execute(text("set local row_security = off"))
    connection.execute(text("alter table rollup_state add column if not exists log_relation bigint"))
    connection.execute(text(_NOTE))


_READ_BY_LIVE_VIEW = """
    select d.refobjid
    from unnest(s.rollups) as name
    join pg_rewrite r on r.ev_class = to_regclass(quote_ident(name || '_live'))
    join pg_depend d on d.classid = cast('pg_rewrite' as regclass) and d.objid = r.oid
    join pg_attribute a on a.attrelid = d.refobjid and a.attname = 'xact_id'
    where d.refclassid = cast('pg_class' as regclass)
    limit 1
"""
_NOTE = f"""
    update rollup_state s set
        log_relation = cast(coalesce(({_READ_BY_LIVE_VIEW}), cast(to_regclass(quote_ident(log)) as oid)) as bigint),
        {STILL_HERE}
    where log_relation is null
"""
