"""How many of one unit are in another."""

from __future__ import annotations

__all__ = ["GIB", "NS_PER_S"]

GIB = 2**30
"""Bytes."""
NS_PER_S = 10**9
