"""The tables of a registry, and the only SQL that writes to them.

version         numbers by which a file and this code recognise each other
sql             generated: the text of all statements
queries         statements with variable parts, joined from generated parts
filters         filters of a list, checked
columns         types and ranges of stored values
rows            rows of a sandbox, decoded to values
readable        rows of a damaged registry that can be read
encoding        values, encoded as columns
position        position in the history, after which a reader goes on
incarnation     line of the history that a restored backup begins
copies          copies by SQLite's backup API
upgrade_backup  copy beside a file, made before its upgrade
migrations      schema of a file: verified, created, upgraded
upgrade_sql     SQL that an upgrade would run
inspection      file at a path, inspected before anything is changed
backup          backup of a registry that is in use
writes          all writes, inside the transaction of the caller
integrity       rules that the data must satisfy
triggers        definition: triggers
schema          definition: tables in SQLAlchemy Core, with the meaning of each column
views           definition: views, the contract with operators
statements      definition: statements in SQLAlchemy Core
generate        generator of `sql` from the definitions
document        generator of the tables in docs/schema.md

Only `make sql`, `browse`, tests and Alembic import the last five modules, which import SQLAlchemy.
No other module here does.
"""
