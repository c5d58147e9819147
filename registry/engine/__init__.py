"""The file: one place that begins and ends write transactions, one place that reads.

driver        connections as we want them, driver errors as we raise them
turnstile     the lock between processes
transaction   whose turn it is in this process
file          the engine: all of it for one database file, shared by the Stores of a process
"""

from registry.engine.file import Engine, attach
from registry.engine.transaction import Transaction

__all__ = ["Engine", "Transaction", "attach"]
