"""The tables of a registry, and the only SQL that writes to them.

version       numbers by which a file and this code recognise each other
sql           generated: the text of all statements
queries       statements with variable parts, joined from generated parts
columns       types and ranges of stored values
rows          rows, and the values that they hold
encoding      values as columns
migrations    the schema of a file: verified, created, upgraded
inspection    the file at a path, observed before anything is changed
writes        everything that is written in one transaction
integrity     rules that the data must satisfy
schema        definition: tables, triggers, views in SQLAlchemy Core
statements    definition: statements in SQLAlchemy Core
generate      generator of `sql` from the two definitions

The last three are read by `make sql`, tests and Alembic alone: they import SQLAlchemy, and nothing
else here does.
"""
