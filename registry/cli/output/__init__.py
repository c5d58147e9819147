"""Output on stdout.

streams   text and bytes, written whole
values    values as JSON, and as people read them
cells     cells as lines of text, whose columns are aligned
ids       short ids
terminal  tables on a terminal: their width, and colours
progress  bars for long work
pager     pager for long output
views     fields of objects, and formats
rows      values of rows, and their order
formats   objects as tables, as JSON and in other formats
"""
