"""``containerd.services.namespaces.v1.Namespaces``: what separates the users of one store."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from lamella import namespaces
from lamella.errors import NotFound
from lamella.serve.api import namespaces_pb2
from lamella.serve.call import Call
from lamella.serve.messages import label_changes, mask_paths
from lamella.serve.service import Service


class Namespaces(Service):
    """What separates the users of one store; no call needs a namespace of its own."""

    descriptor = namespaces_pb2.DESCRIPTOR.services_by_name["Namespaces"]

    @property
    def _namespaces(self) -> namespaces.Namespaces:
        return self.server.client.namespaces

    def Get(
        self, request: namespaces_pb2.GetNamespaceRequest, call: Call
    ) -> namespaces_pb2.GetNamespaceResponse:
        """Give one namespace; without labels one that is not there, for which clients look before they make it."""
        try:
            found = _message(self._namespaces.get(request.name))
        except NotFound:
            found = namespaces_pb2.Namespace(name=request.name)
        return namespaces_pb2.GetNamespaceResponse(namespace=found)

    def List(
        self, request: namespaces_pb2.ListNamespacesRequest, call: Call
    ) -> namespaces_pb2.ListNamespacesResponse:
        """Give all. The filter of the request is passed over, as containerd does."""
        return namespaces_pb2.ListNamespacesResponse(namespaces=map(_message, self._namespaces.list()))

    def Create(
        self, request: namespaces_pb2.CreateNamespaceRequest, call: Call
    ) -> namespaces_pb2.CreateNamespaceResponse:
        """Create one. AlreadyExists, InvalidArgument."""
        made = self._namespaces.create(request.namespace.name, labels=dict(request.namespace.labels))
        return namespaces_pb2.CreateNamespaceResponse(namespace=_message(made))

    def Update(
        self, request: namespaces_pb2.UpdateNamespaceRequest, call: Call
    ) -> namespaces_pb2.UpdateNamespaceResponse:
        """Set labels, by a mask those that it names, without one all (:meth:`lamella.namespaces.Namespaces.update_labels`)."""
        name, labels = request.namespace.name, request.namespace.labels
        paths = mask_paths(request.update_mask, "labels.")
        changes = label_changes(paths, labels, {} if paths else self._namespaces.get(name).labels)
        updated = self._namespaces.update_labels(name, changes)
        return namespaces_pb2.UpdateNamespaceResponse(namespace=_message(updated))

    def Delete(self, request: namespaces_pb2.DeleteNamespaceRequest, call: Call) -> Empty:
        """Delete an empty one. NotFound, FailedPrecondition."""
        self._namespaces.delete(request.name)
        return Empty()


def _message(namespace: namespaces.Namespace) -> namespaces_pb2.Namespace:
    return namespaces_pb2.Namespace(name=namespace.name, labels=namespace.labels)
