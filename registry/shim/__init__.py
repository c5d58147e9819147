"""Thin runtime shim: serves the sandbox calls of the CRI from a registry.

    runtime      requests and responses of the CRI
    validate     refuses, by field, what a config may not ask for
    pause        the process that holds a sandbox's namespaces
    sandboxer    runs, stops, removes and recovers sandboxes
    service      translates between messages and the Sandboxer
    server       the gRPC server on a unix socket
    command      `sandbox-registry serve`

It runs no containers and has no images. A pod network is a namespace with only a loopback device:
CNI is not supported yet. The registry holds the whole state. The shim uses the public names of
`registry` wherever they suffice.
"""
