"""Ray on this machine, and the command line."""

import os

# What Ray reads from the environment when it is imported, unless the user says otherwise.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what it will do anyway, minus a warning
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "ServeController.graceful_shutdown failed")  # it did not

PROXY = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.again.middlewares"}  # of every process of Ray's
for _name, _value in PROXY.items():
    os.environ.setdefault(_name, _value)
