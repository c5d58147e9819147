"""Reconcile: decide which sandboxes are gone, and mark them.

evidence      evidence for and against a reboot of the host; pure
verdicts      verdict on each sandbox, from what was observed; pure
observations  observation of what one sandbox recorded
orphans       network namespaces that belong to no sandbox
reconcile     reads, observes, decides, and marks in one transaction
"""
