"""Fleet: the registries of many nodes, copied to one PostgreSQL database and queried there.

text        values of SQLite as PostgreSQL can store them
tables      tables of the database, in SQLAlchemy Core; for migrations and tests
statements  SQL that a pusher runs
postgres    connections, and errors of psycopg as errors of the package
source      registry that is pushed: a snapshot of raw rows at a time
lines       lines of a history: gaps, and where a registry parts from what was pushed
lease       registration: which machine and path may push a registry
push        one batch, in one transaction
figures     figures of a pusher
follow      loop that pushes each commit, sends heartbeats and retries
maintain    migrations, partitions and retention
queries     questions of the command line

The database is the copy and the registry is the original. A pusher opens the registry read-only and
holds no snapshot while it waits for PostgreSQL, so trouble there never reaches a shim. A pusher
imports psycopg without SQLAlchemy, which would take 15 MB in each pusher.
"""
