"""What is asked of, and done to, the host.

descriptor    file descriptors that several threads share
kernel        boot, mounts and namespaces, and system calls that Python lacks
mounts        mounts on a file in other mount namespaces
namespaces    network namespaces at paths, without side effects
netns         network namespaces: created, entered and removed
process       the process that a pid names
"""
