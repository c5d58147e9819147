"""Values that describe a sandbox, without input or output.

validation    checks of single values
text          JSON of stored values
identity      identities of network namespaces and processes
selector      label selectors of Kubernetes
status        State, Status, UpdateFunc
cni           result of the CNI plugins
metadata      Metadata: fixed when a sandbox has been created
extensions    Extension: data of the embedding program
containerd    the JSON in which containerd stores metadata
"""
