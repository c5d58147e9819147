"""Output on stdout.

cells     cells as lines of text, whose columns are aligned
terminal  tables on a terminal: their width, and colours
streams   text and bytes, written whole
values    values as JSON, and as people read them
ids       short ids
progress  bars for long work
pager     pager for long output
views     fields of objects, and formats
rows      values of rows, and their order
formats   objects as tables, as JSON and in other formats
"""
