"""Importing this lets the scripts here use the modules of ``training/zsnr`` (lora) and
``training/emoji``.
"""

import sys
from pathlib import Path

for folder in ("emoji", "zsnr"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))
