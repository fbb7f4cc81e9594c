"""What people and analysts get: one report of a publisher or of the platform, its days as a table, the summary
of all publishers, and pictures of days.

Numbers come from the SQL contract (`database/contract/`), so a report and a query of the API agree: `questions` asks,
`report` collects. `export` writes CSV, Parquet and JSON; `page`, `figures` and `svg` make the HTML. No Dagster, no
environment, no terminal.
"""

import logging

# Its warnings about its folders and fonts do not concern the reader of a report.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
