"""The program `sandbox-registry`: the content of a registry, as tables and as JSON.

documents      JSON documents in a file
extensions     extensions as JSON
import_export  sandboxes from and to containerd's JSON
cells          widths of text on a terminal
terminal       tables on a terminal: folding and colours
output         tables and JSON on stdout
failures       exit codes, and errors on stderr
options        options that several verbs share, and the registry that they name
show           the verbs list and inspect
history        the verb history
maintain       the verbs reconcile, check and delete
backups        the verbs backup and restore
transfer       the verbs import and export
program        group of all verbs, each imported when it is run
"""
