"""The program `sandbox-registry`.

documents      the documents in a file of JSON
import_export  sandboxes in and out, as containerd's JSON
output         tables and JSON
commands       the verbs
"""
