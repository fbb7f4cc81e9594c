"""Which days are in the Parquet archive: the table `rollup_archive`."""

from alembic import op

from calc_analytics.database.tables import rollup_archive

revision = "0008_archive"
down_revision = "0007_readers"


def upgrade() -> None:
    rollup_archive.create(op.get_bind(), checkfirst=True)
