"""The commands that count and prove (`counting.py`), and those that watch. `cli.py` adds them to the others.

Each is click's options and the printing; what they print comes from `rollup/` and `service/`.
"""

from calc_analytics.commands.counting import refresh, rollup, verify
from calc_analytics.commands.doctor import doctor
from calc_analytics.commands.erase import erase
from calc_analytics.commands.history import history
from calc_analytics.commands.serve import serve
from calc_analytics.commands.status import status
from calc_analytics.commands.widen import widen

COMMANDS = (refresh, rollup, verify, erase, widen, history, serve, status, doctor)
