"""Page in a browser that shows a registry, with Datasette (extra `browse`).

questions  thirty questions of an operator, with their SQL
"""
