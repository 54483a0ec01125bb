"""Modules that some checks need and most do not, since loading them takes a while."""

from collections.abc import Callable
from typing import Any

Loader = Callable[[str], Any]
"""A module's name to the module, ready for use. In a worker's child it may raise NotLoaded."""


class NotLoaded(Exception):
    """A child wants a module that its server has to load first; its message is the name."""
