"""A thin runtime shim: the CRI's sandbox calls, answered out of a registry.

    runtime      the CRI's requests and responses
    validate     what a config may ask for
    pause        the process that holds a sandbox's namespaces
    sandboxer    running, stopping, removing and recovering sandboxes
    service      the calls, from messages to the Sandboxer and back
    server       the unix socket
    command      `sandbox-registry serve`

It runs no containers and has no images, and a pod network is a namespace with nothing but its
loopback: there is no CNI yet. All that it knows is in the registry; what it can do through the
public names of `registry`, it does through them.
"""
