"""``grpc.reflection.v1.ServerReflection``, and the same under its first name: which services there are, and their messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor

from lamella.serve.api import reflection_pb2, reflection_v1alpha_pb2
from lamella.serve.call import Call, Conversation
from lamella.serve.service import Service
from lamella.serve.status import Code


class _Reflection(Service):
    messages: ClassVar[Any]
    """The generated module: both versions have the same messages."""

    def ServerReflectionInfo(self, call: Call) -> Conversation[Any, Any]:
        """Answer each question: the services, or the files that define something and all that those import."""
        responses: list[Any] = []
        while (request := (yield responses)) is not None:
            response = self.messages.ServerReflectionResponse(
                valid_host=request.host, original_request=request
            )
            try:
                self._answer(request, response)
            except KeyError:
                asked = request.WhichOneof("message_request")
                response.error_response.error_code = Code.NOT_FOUND
                response.error_response.error_message = f"not found: {getattr(request, asked)}"[:1000]
            responses = [response]

    def _answer(self, request: Any, response: Any) -> None:
        pool = descriptor_pool.Default()
        match request.WhichOneof("message_request"):
            case "list_services":
                for service in self.server.services:
                    response.list_services_response.service.add(name=service.descriptor.full_name)
            case "file_by_filename":
                self._files(pool.FindFileByName(request.file_by_filename), response)
            case "file_containing_symbol":
                self._files(pool.FindFileContainingSymbol(request.file_containing_symbol), response)
            case "all_extension_numbers_of_type":  # no message here has extensions
                pool.FindMessageTypeByName(request.all_extension_numbers_of_type)
                response.all_extension_numbers_response.base_type_name = request.all_extension_numbers_of_type
            case "file_containing_extension":
                raise KeyError
            case _:
                response.error_response.error_code = Code.INVALID_ARGUMENT
                response.error_response.error_message = "the request asks for nothing"

    def _files(self, file: FileDescriptor, response: Any) -> None:
        found: dict[str, bytes] = {}
        _collect([file], found)
        response.file_descriptor_response.file_descriptor_proto.extend(found.values())


def _collect(files: Iterable[FileDescriptor], found: dict[str, bytes]) -> None:
    for file in files:
        if file.name not in found:
            found[file.name] = file.serialized_pb
            _collect(file.dependencies, found)


class ReflectionV1(_Reflection):
    """Version 1."""

    messages: ClassVar[Any] = reflection_pb2
    descriptor = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]


class ReflectionV1Alpha(_Reflection):
    """What older clients ask for."""

    messages: ClassVar[Any] = reflection_v1alpha_pb2
    descriptor = reflection_v1alpha_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
