"""Page in a browser that shows a registry, with Datasette (extra `browse`).

questions  thirty questions of an operator, with their SQL
metadata   what Datasette says of the views, tables and questions
timeline   states of sandboxes over time, from their changes
drawing    a timeline as SVG
readings   queries of the pages
cells      values as HTML
database   read-only connections, each for one query
plugin     pages and cells, as hooks of Datasette
server     server on 127.0.0.1
command    the verb `sandbox-registry browse`

Only `server` and `command` are imported by other packages. The page never writes, never makes a
writer wait, and keeps no snapshot between two queries: see `database`.
"""
