"""Where work that is not yet where it belongs is kept: trainings that were interrupted, records that were not sent."""

import os
from pathlib import Path

import platformdirs


def state_folder() -> Path:
    """`TWINSQUEEZE_STATE`, else the folder that the system has for state, such as ~/.local/state/twinsqueeze."""
    named = os.environ.get("TWINSQUEEZE_STATE")
    return Path(named).expanduser() if named else platformdirs.user_state_path("twinsqueeze")
