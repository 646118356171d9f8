"""``containerd.services.images.v1.Images``: names that point at descriptors."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.empty_pb2 import Empty

from lamella import images
from lamella.errors import InvalidArgument
from lamella.labels import GC_EXPIRE
from lamella.oci import Descriptor
from lamella.serve.api import images_pb2
from lamella.serve.call import Call
from lamella.serve.messages import (
    from_descriptor,
    from_timestamp,
    mask_paths,
    masked,
    to_descriptor,
    to_timestamp,
)
from lamella.serve.service import Service


class Images(Service):
    """Names that point at descriptors. A name is taken as it stands."""

    descriptor = images_pb2.DESCRIPTOR.services_by_name["Images"]

    def Get(self, request: images_pb2.GetImageRequest, call: Call) -> images_pb2.GetImageResponse:
        """Give one image. NotFound."""
        return images_pb2.GetImageResponse(image=_message(call.client.images.get(request.name, exact=True)))

    def List(self, request: images_pb2.ListImagesRequest, call: Call) -> images_pb2.ListImagesResponse:
        """Give the images that match the filters, by ``name``, ``target.digest``, ``target.mediatype`` and ``labels``."""
        found = call.client.images.list(filters=request.filters)
        return images_pb2.ListImagesResponse(images=map(_message, found))

    def Create(self, request: images_pb2.CreateImageRequest, call: Call) -> images_pb2.CreateImageResponse:
        """Record an image. AlreadyExists, InvalidArgument."""
        image = request.image
        labels = dict(image.labels)
        at = from_timestamp(request.source_date_epoch) if request.HasField("source_date_epoch") else None
        with call.client.database.write():
            _hold(call, image.name, labels)
            made = call.client.images.create(image.name, from_descriptor(image.target), labels=labels, at=at)
        return images_pb2.CreateImageResponse(image=_message(made))

    def Update(self, request: images_pb2.UpdateImageRequest, call: Call) -> images_pb2.UpdateImageResponse:
        """Change what the mask names: ``target``, ``labels``, ``labels.KEY``, ``annotations``, ``annotations.KEY``; else all.

        NotFound, InvalidArgument.
        """
        asked = request.image
        if not asked.name:
            raise InvalidArgument("image name is required for update")
        paths = mask_paths(request.update_mask, "target", "labels", "annotations")
        if any(path.startswith("target.") for path in paths):
            raise InvalidArgument("a target is replaced as a whole")
        at = from_timestamp(request.source_date_epoch) if request.HasField("source_date_epoch") else None
        with call.client.database.write():
            present = call.client.images.get(asked.name, exact=True)
            target = present.target if paths and "target" not in paths else from_descriptor(asked.target)
            annotations = masked(
                paths, "annotations", target.annotations or {}, dict(asked.target.annotations)
            )
            labels = dict(asked.labels)
            if paths:
                labels = masked(paths, "labels", present.labels, labels)
            _hold(call, asked.name, labels)
            target = Descriptor(
                media_type=target.media_type,
                digest=target.digest,
                size=target.size,
                annotations=annotations or None,
            )
            updated = call.client.images.update(asked.name, target=target, labels=labels, at=at)
        return images_pb2.UpdateImageResponse(image=_message(updated))

    def Delete(self, request: images_pb2.DeleteImageRequest, call: Call) -> Empty:
        """Remove a name; with ``sync`` what nothing else keeps is collected, too. NotFound, also when it has another target."""
        digest = request.target.digest if request.HasField("target") else None
        call.client.images.remove(request.name, sync=request.sync, digest=digest, exact=True)
        return Empty()


def _hold(call: Call, name: str, labels: Mapping[str, str]) -> None:
    """Have the lease keep an image that expires; any other needs none."""
    if call.lease and GC_EXPIRE in labels:
        call.client.leases.add(call.lease, "images", name)


def _message(image: images.Image) -> images_pb2.Image:
    return images_pb2.Image(
        name=image.name,
        labels=image.labels,
        target=to_descriptor(image.target),
        created_at=to_timestamp(image.created_at),
        updated_at=to_timestamp(image.updated_at),
    )
