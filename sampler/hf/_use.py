"""A warning for a processor that generate() never calls."""

from __future__ import annotations

import sys
import warnings
import weakref
from typing import Any

_UNCALLED = "generate() never called the processor made here"
_REASONS = "ignore this after an error; continuous batching calls no processors"


class Use:
    """Whether a processor was handed out for generate(), and whether that has called it."""

    def __init__(self) -> None:
        self.called = self.handed_out = False
        self._error = 0

    def __deepcopy__(self, memo: Any) -> Use:
        return self  # whichever copy is called

    def warn_unless_called(self, processor: Any, consequence: str) -> None:
        """Warn, at the line that asked for it, if the processor goes without having been called."""
        self.handed_out = True
        self._error = id(getattr(sys, "last_value", None))
        frame = sys._getframe(3)  # of the call of a function that `helps`
        place = frame.f_code.co_filename, frame.f_lineno
        weakref.finalize(processor, self._warn, f"{_UNCALLED}, {consequence}: {_REASONS}", *place)

    def _warn(self, message: str, filename: str, line: int) -> None:
        # After an error, that is what there is to read.
        if not self.called and id(getattr(sys, "last_value", None)) == self._error:
            warnings.warn_explicit(message, RuntimeWarning, filename, line)
