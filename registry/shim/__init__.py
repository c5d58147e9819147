"""Thin runtime shim: serves the sandbox calls of the CRI from a registry.

    runtime      requests and responses of the CRI
    limits       errors that come from a limit of the system
    validate     validation of a config, field by field
    pause        process that holds the namespaces of a sandbox
    plugins      programs of CNI plugins
    netconf      CNI configurations
    arguments    arguments of CNI plugins from the config of a pod
    attachment   what ADD was given for a sandbox, and what it gave
    network      ADD, CHECK, DEL and GC of pod networks
    recovery     ends sandboxes, and finishes or undoes the calls that a crash interrupted
    runs         runs in progress, which retried calls join
    sandboxer    runs, stops and removes sandboxes
    answers      records as messages
    cgroups      cgroups of the pods, and the kernel's counters of them
    mounts       mount namespace and resolv.conf of a pause process
    seccomp      seccomp filter of a pause process
    stats        statistics and metrics of sandboxes
    images       image service of a runtime that has no images
    systemd      protocol of the supervisor
    ending       end of a server that cannot serve any more
    calls        calls: errors as status codes
    events       transitions as events of the CRI, and as lines of the log
    service      gRPC services: requests and responses
    metrics      metrics of the calls, served to Prometheus
    server       gRPC server on a unix socket
    command      the verb `sandbox-registry serve`

The shim runs no containers and has no images. The registry holds the whole state. The shim uses the
public names of `registry` wherever they suffice.
"""
