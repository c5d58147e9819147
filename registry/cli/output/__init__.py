"""Output on stdout.

streams   text and bytes, written whole
values    values as JSON, and as people read them
cells     widths of text on a terminal
terminal  tables on a terminal: folding and colours
formats   objects as tables and as JSON
"""
