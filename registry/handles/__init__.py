"""Handles on sandboxes, and what they share.

runtime_state  objects of a sandbox that live in this process, not in the file
cache          query results, valid until the next commit
stops          StopChs that are waited for, set by commits of other processes
session        state that a store and its handles share
damaged        session of a damaged registry
watch          iterator of the transitions that any process commits
identities     identities of namespace and process, and when they are recorded
extensions     extensions of a sandbox
sandbox        Sandbox and its status
additions      sandboxes to be added
exit_watcher   watcher of the ends of init processes
"""
