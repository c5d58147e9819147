"""Access to one database file: write transactions, snapshots, and the files beside it.

driver         connections with the settings that a registry needs
long_wal       message about a write-ahead log that cannot be reset
sqlite_errors  SQLite's errors as errors of this package, with the errno behind them
wal_file       the write-ahead log, read as a file
journal_file   a rollback journal, read as a file
continuity     whether a WAL continues the database file beside it; numbers of commits
disk_reserve   disk space and inodes reserved for use when the disk is full
beside         whether each file beside a database may be one of its registry
disk_space     limits of a transaction, by the free space of the disk
lock_file      file that is locked by one process at a time, and names the holder
process_lock   fair lock between processes
usage          use of a database file by the processes of the host
deadline       deadline of the calls in the body of a `with`
owner          the task or thread that owns a transaction
measurements   durations and sizes of the writes, for metrics
transaction    the open write transaction, and the group that shares its commit
hooks          what the engine asks about the schema
lock_holder    the holder of the write lock, as errors name it
file_identity  whether the paths still refer to the files that are open
readers        connections that only read, and the data version
own_commits    commits of this process, reported to caches
poller         when to find out whether another process has committed
commits        threads that wait for commits of any process
loop_waits     tasks of asyncio that wait for them
wal            growth of the write-ahead log: its bound, and preallocation
writer         the connection that writes, step by step
group_commit   several writes committed by one COMMIT
engine         the writer, the readers and the group commit of one database file
spans          OpenTelemetry spans of a write; imported where the embedder traces
write          a write transaction as the body of a `with`
open_files     the files that this process has open: Stores of one file share one engine
"""

from registry.engine.deadline import Deadline
from registry.engine.driver import Connection
from registry.engine.engine import Engine
from registry.engine.hooks import SchemaHooks
from registry.engine.open_files import attach, detach
from registry.engine.transaction import Transaction
from registry.engine.write import CallerWrite, Write

__all__ = [
    "CallerWrite",
    "Connection",
    "Deadline",
    "Engine",
    "SchemaHooks",
    "Transaction",
    "Write",
    "attach",
    "detach",
]
