"""The program `sandbox-registry`: the content of a registry, as tables and as JSON.

containerd  sandboxes from and to the JSON that containerd stores
output      output on stdout: tables and JSON
failures    exit codes, and errors on stderr
options     options that several verbs share, and the registry that they name
verbs       the verbs, one module for each
program     group of all verbs, each imported when it is run
"""
