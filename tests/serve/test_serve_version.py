"""Version and introspection."""

import os

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

from lamella import __version__
from lamella.serve.api import images_pb2, introspection_pb2, types_pb2, version_pb2


def test_version_needs_no_namespace(served) -> None:
    answer = served.stub(version_pb2, "Version", namespace=None).Version(Empty())
    assert (answer.version, answer.revision) == (f"v{__version__}", "lamella")


def test_server_has_the_same_id_at_every_call(served) -> None:
    introspection = served.stub(introspection_pb2, "Introspection", namespace=None)
    first, second = introspection.Server(Empty()), introspection.Server(Empty())
    assert first.uuid == second.uuid
    assert first.pid == os.getpid()


def test_plugins_name_the_snapshotters(served) -> None:
    introspection = served.stub(introspection_pb2, "Introspection")
    request = introspection_pb2.PluginsRequest(filters=["type==io.containerd.snapshotter.v1, id==overlayfs"])
    (plugin,) = introspection.Plugins(request).plugins
    assert plugin.platforms[0].os == "linux"
    assert len(introspection.Plugins(introspection_pb2.PluginsRequest()).plugins) > 5


def test_a_malformed_filter_is_an_invalid_argument(served) -> None:
    introspection = served.stub(introspection_pb2, "Introspection")
    with pytest.raises(grpc.RpcError) as caught:
        introspection.Plugins(introspection_pb2.PluginsRequest(filters=["type=="]))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_plugin_info_tells_of_the_runtime(served) -> None:
    introspection = served.stub(introspection_pb2, "Introspection")
    answer = introspection.PluginInfo(
        introspection_pb2.PluginInfoRequest(type="io.containerd.runtime.v2", id="task")
    )
    assert types_pb2.RuntimeInfo.FromString(answer.extra.value).name == "io.containerd.runc.v2"
    for kind, code in (
        ("none", grpc.StatusCode.NOT_FOUND),
        ("io.containerd.gc.v1", grpc.StatusCode.UNIMPLEMENTED),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            introspection.PluginInfo(introspection_pb2.PluginInfoRequest(type=kind, id="scheduler"))
        assert caught.value.code() is code


def test_what_is_not_there_is_unimplemented_by_name(served) -> None:
    call = served.channel.unary_unary(
        "/containerd.services.images.v1.Images/Nothing",
        request_serializer=images_pb2.GetImageRequest.SerializeToString,
    )
    with pytest.raises(grpc.RpcError) as caught:
        call(images_pb2.GetImageRequest(), timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "unknown method Nothing for service containerd.services.images.v1.Images" in caught.value.details()


def test_a_request_that_is_no_message_is_refused(served) -> None:
    introspection = served.stub(introspection_pb2, "Introspection")
    with pytest.raises(grpc.RpcError) as caught:
        introspection.Plugins(b"\xff\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "unmarshalling" in caught.value.details()
