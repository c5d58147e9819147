"""The program `sandbox-registry`: the content of a registry, as tables and as JSON.

output      output on stdout: tables, JSON and other formats
containerd  sandboxes from and to the JSON that containerd stores
failures    exit codes, and errors on stderr
usage       errors of usage, with hints
signals     signals that end a verb which has something to undo
moments     points in time as operators write them
complete    completion in a shell: values of the registry
options     options that several verbs share, and the registry that they name
lookup      sandboxes by id, name or pod
verbs       the verbs, one module for each
program     group of all verbs, each imported when it is run
"""
