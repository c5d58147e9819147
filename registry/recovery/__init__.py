"""What a start does: it decides which sandboxes are gone, and marks them.

evidence      evidence for and against a reboot of the host
verdicts      which state a sandbox is to have, and why, from what was observed
reconcile     observes this host, marks, and removes orphans
"""
