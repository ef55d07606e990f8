"""One browser for all pages."""

from browser import browser

__all__ = ["browser"]
