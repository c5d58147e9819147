"""Reconcile: decide which sandboxes are gone, and mark them.

findings      result of a reconcile, as a caller gets it
evidence      evidence for and against a reboot of the host; pure
verdicts      verdict on each sandbox, from its row and the observations; pure
observations  observation of the namespace, process and creator of one sandbox
orphans       network namespaces that belong to no sandbox
reconcile     steps of a reconcile: read, observe, decide, and mark in one transaction
"""
