"""Where the tables live: the server (embedded or given), connections, table definitions, migrations.

Nothing here knows how statistics are computed; that is `rollup/`.
"""
