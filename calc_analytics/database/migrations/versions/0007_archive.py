"""Which days are in the Parquet archive: the table `rollup_archive`."""

from alembic import op

from calc_analytics.database.tables import rollup_archive

revision = "0007_archive"
down_revision = "0006_comments"


def upgrade() -> None:
    rollup_archive.create(op.get_bind(), checkfirst=True)
