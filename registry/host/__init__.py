"""What is asked of, and done to, the host.

descriptor    file descriptors that several threads share
kernel        system calls that Python lacks
context       boot and namespaces of the observer
mounts        mounts on a file in other mount namespaces
namespaces    network namespaces at paths, without side effects
netns         network namespaces: created, entered and removed
process       the process that a pid names
"""
