"""Metadata: what the store knows beside the bytes, in one SQLite file (``<root>/metadata.db``).

See :mod:`lamella.metadata.database` for transactions and locking, :mod:`lamella.metadata.schema` for the tables.
"""

from __future__ import annotations

from lamella.metadata.clock import timestamp
from lamella.metadata.database import Database, Transaction

__all__ = ["Database", "Transaction", "timestamp"]
