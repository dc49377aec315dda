"""A page about one model: what it computes for texts of the reader's, from data to samples."""

from .page import Report, explain
from .passes import trace

__all__ = ["Report", "explain", "trace"]
