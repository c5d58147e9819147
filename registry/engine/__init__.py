"""The file: one place that begins and ends write transactions, one place that reads.

paths          the files themselves, looked at by stat alone
probe          what the system refuses when SQLite cannot open a file
driver         connections as we want them, driver errors as we raise them
wal_file       the log as a file: what SQLite would apply
continuity     whether a log continues the database file beside it
disk_reserve   disk space and inodes reserved for use when the disk is full
lost           evidence of a registry whose database is missing
disk_space     what a transaction may write, by what is free on the disk
lock_file      a file that exists to be locked, and says by whom
file_locks     locks that processes hold on a file, as the kernel lists them
process_lock   fair lock between processes
owner          the task or thread that owns a transaction
transaction    what is open in this process, and what is committed together
lock_holder    who holds the write lock, for errors
file_identity  whether the paths still refer to the files that are open
readers        connections that only read
watch          whether anybody has committed
wal            the log: how long it may get, and preallocation
writer         the connection that writes, step by step
group_commit   several writes committed by one COMMIT
engine         all of it for one database file
write          a write transaction as the body of a `with`
shared         which files the process has open; its Stores of one file share one engine
"""

from registry.engine.driver import Connection
from registry.engine.engine import Engine
from registry.engine.shared import attach, detach
from registry.engine.transaction import Transaction
from registry.engine.write import Write

__all__ = ["Connection", "Engine", "Transaction", "Write", "attach", "detach"]
