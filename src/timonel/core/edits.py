"""Edits of a sample in place."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class EditWatch(NamedTuple):
    """A sample that may be edited in place, with its version and a copy from before."""

    x: Tensor
    version: int  # -1 where torch counts none
    before: Tensor

    @classmethod
    def of(cls, x: Tensor) -> EditWatch:
        """The sample as it is now."""
        return cls(x, -1 if x.is_inference() else x._version, x.clone())

    def touched(self, x: Tensor) -> bool:
        """Whether x is the sample, and may have been edited since."""
        return x is self.x and (self.version < 0 or x._version != self.version)
