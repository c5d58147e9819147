"""Values that describe a sandbox, without input or output.

validation    checks of single values
text          JSON of stored values
identity      identities of network namespaces and processes
status        State, Status, UpdateFunc
cni           the answer of the CNI plugins
metadata      Metadata: what is fixed when a sandbox is created
containerd    the JSON in which containerd stores metadata
"""
