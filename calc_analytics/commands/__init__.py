"""The commands that watch: `serve`, `status`, `doctor`. `cli.py` adds them to the others.

Each is click's options and the printing; what they print comes from `service/`, which is imported when it is used.
"""

from calc_analytics.commands.doctor import doctor
from calc_analytics.commands.serve import serve
from calc_analytics.commands.status import status

COMMANDS = (serve, status, doctor)
