"""The tables of a registry, and the only SQL that writes to them.

schema        tables, triggers, views
columns       types and ranges of stored values
statements    SQLAlchemy Core statements as text
rows          rows to values and back
migrations    the schema that a file has, created and upgraded
inspection    what is at a path, before anything is changed
writes        all that is written in one transaction
integrity     rules that must hold of the data
"""
