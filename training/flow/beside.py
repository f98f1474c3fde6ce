"""Importing this lets the scripts here use the modules of ``training/emoji`` (data, common, muon)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "emoji"))
