"""Observation of the host, and its network namespaces and processes.

descriptor      file descriptors that several threads share
kernel          system calls that Python lacks
file_events     writes to a file, as inotify reports them
context         boot and namespaces of the observer
namespaces      observation of network namespaces at paths
inventory       namespaces in which the processes of the host live
mounts          mounts on a file in other mount namespaces
paths           files at paths, inspected by stat alone
file_locks      locks that processes hold on a file
part_file       new content of a file, put in place when it is whole
directory_lock  flock of a directory of network namespaces
netns           network namespaces: created, entered and removed
pidfd           pidfds, and the entry of a process in /proc
file_users      processes that have files open
process         identity of the process that a pid names
held_process    Process: a process held by a pidfd
"""
