"""One browser for all widgets."""

from browser import browser

__all__ = ["browser"]
