"""Maintenance of registry files: what is done to a registry that no store has open.

pages           pages of a database file, decoded without SQLite
salvage_report  report of a salvage: the records that were lost
damaged_file    the files of a damaged registry, read as bytes
records         records of a damaged registry, collected page by page
salvage_copy    the copy that a salvage writes
salvage         `salvage`: every readable record of a damaged registry, in a new one
"""
