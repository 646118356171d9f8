import pytest

from lamella import oci
from lamella.digest import digest_of, parse_digest
from lamella.errors import InvalidArgument, ResourceExhausted, Unsupported
from lamella.structs import decode, encode

DIGEST = digest_of(b"x")


def manifest(**changes):
    document = {
        "schemaVersion": 2,
        "mediaType": oci.OCI_MANIFEST,
        "config": {"mediaType": oci.OCI_CONFIG, "digest": DIGEST, "size": 2},
        "layers": [{"mediaType": oci.OCI_LAYER_GZIP, "digest": DIGEST, "size": 3}],
    }
    document.update(changes)
    return encode(document)


def test_a_manifest_parses_to_typed_descriptors():
    parsed = oci.parse_manifest(manifest())
    assert parsed.config == oci.Descriptor(media_type=oci.OCI_CONFIG, digest=DIGEST, size=2)
    assert [layer.size for layer in parsed.layers] == [3]


@pytest.mark.parametrize("field", ["manifests", "fsLayers"])
def test_a_manifest_that_is_also_another_document_is_refused(field):
    with pytest.raises(InvalidArgument, match=field):
        oci.parse_manifest(manifest(**{field: []}))


def test_an_index_that_is_also_a_manifest_is_refused():
    with pytest.raises(InvalidArgument, match="layers"):
        oci.parse_index(b'{"manifests": [], "layers": []}')


@pytest.mark.parametrize(
    "layer",
    [
        {"mediaType": "x", "digest": DIGEST, "size": -1},
        {"mediaType": "x", "digest": "sha256:../../etc", "size": 1},
        {"mediaType": "x", "digest": DIGEST},
        {"mediaType": "x", "digest": DIGEST, "size": "1"},
        {"mediaType": "x", "digest": DIGEST, "size": 1.5},
        "text",
    ],
)
def test_a_malformed_descriptor_is_refused(layer):
    with pytest.raises(InvalidArgument):
        oci.parse_manifest(manifest(layers=[layer]))


def test_a_document_over_the_cap_is_refused_before_it_is_parsed():
    with pytest.raises(ResourceExhausted):
        oci.parse_manifest(b"[" * (oci.DOCUMENT_MAX + 1))


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{}", b"\xff\xfe", b'{"config": 1}'])
def test_garbage_is_refused(data):
    for parse in (oci.parse_manifest, oci.parse_index):
        with pytest.raises(InvalidArgument):
            parse(data)


@pytest.mark.parametrize(
    "data",
    [b'{"schemaVersion":2,"mediaType":"\xff","config":1}', b'{"layers":' + b"[" * 100_000],
    ids=["bytes that are no text", "deep nesting"],
)
def test_what_python_calls_otherwise_than_malformed_is_refused_too(data):
    for parse in (
        oci.parse_manifest,
        oci.parse_index,
        oci.parse_config,
        oci.subject_of,
        lambda data: oci.document_type(data, None),
    ):
        with pytest.raises(InvalidArgument):
            parse(data)


@pytest.mark.parametrize(
    ("document", "declared", "expected"),
    [
        ({"mediaType": oci.OCI_INDEX, "manifests": []}, None, oci.OCI_INDEX),
        ({"manifests": []}, oci.OCI_INDEX, oci.OCI_INDEX),
        ({"manifests": []}, "application/json; charset=utf-8", oci.OCI_INDEX),
        ({"layers": []}, None, oci.OCI_MANIFEST),
        ({"layers": []}, oci.DOCKER_MANIFEST, oci.DOCKER_MANIFEST),
        ({"mediaType": oci.DOCKER_INDEX, "manifests": []}, oci.DOCKER_INDEX, oci.DOCKER_INDEX),
    ],
)
def test_the_type_of_a_document_comes_from_itself_or_its_source(document, declared, expected):
    assert oci.document_type(encode(document), declared) == expected


def test_a_document_that_disagrees_with_its_source_is_refused():
    with pytest.raises(InvalidArgument, match="calls itself"):
        oci.document_type(encode({"mediaType": oci.OCI_INDEX}), oci.OCI_MANIFEST)


@pytest.mark.parametrize(
    ("document", "declared"),
    [
        ({"schemaVersion": 1, "fsLayers": []}, None),
        ({}, "application/vnd.docker.distribution.manifest.v1+prettyjws"),
    ],
)
def test_docker_schema_1_is_refused_by_name(document, declared):
    with pytest.raises(Unsupported, match="schema 1"):
        oci.document_type(encode(document), declared)


def test_a_document_of_another_type_is_unsupported():
    with pytest.raises(Unsupported, match="text/html"):
        oci.document_type(b"{}", "text/html")


def test_chain_ids_follow_the_image_spec():
    a, b, c = (digest_of(text) for text in (b"a", b"b", b"c"))
    ab = digest_of(f"{a} {b}".encode())
    assert oci.chain_ids([a, b, c]) == [a, ab, digest_of(f"{ab} {c}".encode())]
    assert oci.chain_ids([]) == []


def test_an_unknown_layer_type_is_unsupported_and_named():
    descriptor = oci.Descriptor(media_type="application/x-tar+lz4", digest=DIGEST, size=1)
    with pytest.raises(Unsupported, match=r"x-tar\+lz4"):
        oci.compression_of(descriptor)


@pytest.mark.parametrize(
    ("media_type", "compression"),
    [
        ("application/vnd.oci.image.layer.nondistributable.v1.tar", "none"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "gzip"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", "zstd"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "gzip"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+lz4", None),
    ],
)
def test_foreign_layers_are_known_by_their_media_type(media_type, compression):
    descriptor = oci.Descriptor(media_type=media_type, digest=DIGEST, size=1)
    assert oci.is_foreign(descriptor)
    if compression:
        assert oci.compression_of(descriptor) == compression
    else:
        with pytest.raises(Unsupported):
            oci.compression_of(descriptor)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        "sha256:" + "A" * 64,
        "sha256:" + "a" * 63,
        ":" + "a" * 64,
        "sha256:" + "../" * 21 + "a",
    ],
)
def test_a_malformed_digest_is_refused(text):
    with pytest.raises(InvalidArgument):
        parse_digest(text)


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256x", "SHA256", "blake3"])
def test_only_the_sha2_family_is_taken(algorithm):
    with pytest.raises(Unsupported):
        parse_digest(f"{algorithm}:{'a' * 64}")


def test_descriptors_survive_a_round_trip():
    descriptor = oci.Descriptor(
        media_type=oci.OCI_MANIFEST,
        digest=DIGEST,
        size=7,
        platform=oci.Platform(os="linux", architecture="arm64", variant="v8", os_version="1"),
        annotations={"a": "b"},
    )
    encoded = encode(descriptor)
    assert b'"os.version"' in encoded
    assert decode(encoded, oci.Descriptor) == descriptor
