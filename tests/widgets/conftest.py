"""What the tests of widgets share."""

from browser import browser

__all__ = ["browser"]
