"""Image service of a runtime that has no images, and its answers about containers.

A kubelet asks for them all the time. What is missing is stopped and removed, as the CRI wants.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final, NoReturn

from google.protobuf.message import Message

from registry import NotFoundError
from registry.shim import limits
from registry.shim import runtime_pb2 as api
from registry.sync.interrupts import reraise_interrupt

Method = tuple[type[Message], Callable[..., Message]]
"""Class of a request, and function of the response."""


def _missing(request: api.ContainerStatusRequest, _: object) -> NoReturn:
    id = request.container_id
    raise NotFoundError(f"status of container {id!r}: not found; this runtime has none", id=id)


CONTAINERS: Final[dict[str, Method]] = {
    "ListContainers": (api.ListContainersRequest, lambda *_: api.ListContainersResponse()),
    "ListContainerStats": (
        api.ListContainerStatsRequest,
        lambda *_: api.ListContainerStatsResponse(),
    ),
    "ContainerStatus": (api.ContainerStatusRequest, _missing),
    "StopContainer": (api.StopContainerRequest, lambda *_: api.StopContainerResponse()),
    "RemoveContainer": (api.RemoveContainerRequest, lambda *_: api.RemoveContainerResponse()),
}
"""Methods of the runtime service about containers, by their names on the wire."""


def methods(path: str) -> dict[str, Method]:
    """Return the methods of the image service, by their names on the wire.

    Args:
        path: path of the registry, whose file system stands for the one of images.
    """
    directory = os.path.dirname(os.path.abspath(path))
    return {
        "ListImages": (api.ListImagesRequest, lambda *_: api.ListImagesResponse()),
        "ImageStatus": (api.ImageStatusRequest, lambda *_: api.ImageStatusResponse()),
        "RemoveImage": (api.RemoveImageRequest, lambda *_: api.RemoveImageResponse()),
        "ImageFsInfo": (api.ImageFsInfoRequest, lambda *_: file_system(directory)),
    }


def file_system(directory: str) -> api.ImageFsInfoResponse:
    """Return what is used of the file system of *directory*, once for images and for containers.

    Raises:
        RegistryError: the directory cannot be observed.
    """
    try:
        space, point = os.statvfs(directory), directory
        while not os.path.ismount(point):
            point = os.path.dirname(point)
    except OSError as error:
        reraise_interrupt(error)
        raise limits.failed(f"inspect file system of {directory!r}", error) from error
    usage = api.FilesystemUsage(timestamp=time.time_ns())
    # A message cannot hold the bytes of a path that are not UTF-8.
    usage.fs_id.mountpoint = point.encode(errors="replace").decode()
    usage.used_bytes.value = (space.f_blocks - space.f_bfree) * space.f_frsize
    usage.inodes_used.value = space.f_files - space.f_ffree
    return api.ImageFsInfoResponse(image_filesystems=[usage], container_filesystems=[usage])
