"""The source code of pipelines, read by one thread at a time.

Python 3.11 counts the depth of syntax trees for all threads together, so two that make trees at
once may get a `SystemError`; `inspect.getsource` of a class makes one.
"""

from __future__ import annotations

import inspect
import threading
from functools import lru_cache
from typing import Any

READING = threading.RLock()


@lru_cache(maxsize=256)  # of a long method it takes 8 ms, and every call of a helm asks
def getsource(of: Any) -> str:
    """As `inspect.getsource`. Raises `OSError` or `TypeError` where there is none."""
    with READING:
        return inspect.getsource(of)
