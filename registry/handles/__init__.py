"""Handles on sandboxes, and what they share.

runtime_state  objects of a sandbox that live in this process, not in the file
cache          query results, valid until the next commit
session        what a store and its handles share
identities     identities of namespace and process, and when they are recorded
sandbox        Sandbox and its status
additions      sandboxes that are to be added
exit_watcher   watches init processes, and marks those whose process has ended
"""
