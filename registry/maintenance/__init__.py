"""Maintenance of registry files: a backup put in place, and a damaged registry salvaged.

present         registry, or remains of one, at the path to which a backup is restored
restore         `restore`: a backup, put in the place of a registry
pages           pages of a database file, decoded without SQLite
salvage_report  report of a salvage: the records that were lost
damaged_file    the files of a damaged registry, read as bytes
records         records of a damaged registry, collected page by page
salvage_copy    the copy that a salvage writes
salvage         `salvage`: every readable record of a damaged registry, in a new one
"""
