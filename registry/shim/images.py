"""Image service of a runtime that has no images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from google.protobuf.message import Message

from registry.shim import runtime_pb2 as api

METHODS: Final[dict[str, tuple[type[Message], Callable[..., Message]]]] = {
    "ListImages": (api.ListImagesRequest, lambda *_: api.ListImagesResponse()),
    "ImageFsInfo": (api.ImageFsInfoRequest, lambda *_: api.ImageFsInfoResponse()),
}
"""Class of the request, and function of the response, by the name on the wire."""
