"""Where the tables live: the server (embedded or given), connections, table definitions, migrations.

What belongs here: connections, errors and retries, the embedded server, table definitions, migrations and adoption,
and facts about the server and its tables. How statistics are computed is `rollup/`.
"""
