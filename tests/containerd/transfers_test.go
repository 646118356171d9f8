package contract

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/transfer"
	archives "github.com/containerd/containerd/v2/core/transfer/archive"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/semaphore"
)

// Images that come and go: by the client over Content, Snapshots and Diff, and by the server's Transfer service.

func removeSnapshotsIsDone(ctx context.Context, t testing.TB, client *containerd.Client) {
	t.Helper()
	require.NoError(t, client.SnapshotService(*snapshotter).Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		t.Errorf("left: %s", info.Name)
		return nil
	}))
}

// TestPullUnpacksBesideEachOther has the client unpack all layers at once, each on nothing, and put them on each other in the end.
func TestPullUnpacksBesideEachOther(t *testing.T) {
	client, ctx := begin(t)
	if *reference == "" {
		t.Skip("needs -image")
	}
	capabilities, err := client.GetSnapshotterCapabilities(ctx, *snapshotter)
	require.NoError(t, err)
	require.Contains(t, capabilities, snapshots.RebaseCap)
	pulled, err := client.Pull(
		ctx, *reference, plainHTTP(), containerd.WithPullUnpack, containerd.WithPullSnapshotter(*snapshotter),
		containerd.WithUnpackOpts([]containerd.UnpackOpt{containerd.WithUnpackLimiter(semaphore.NewWeighted(4))}),
	)
	require.NoError(t, err)
	layers, err := pulled.RootFS(ctx)
	require.NoError(t, err)
	service, parent := client.SnapshotService(*snapshotter), ""
	for i := range layers {
		name := identity.ChainID(layers[:i+1]).String()
		info, err := service.Stat(ctx, name)
		require.NoError(t, err)
		assert.Equal(t, parent, info.Parent)
		parent = name
	}
	mounts, err := service.View(ctx, "seen", parent, kept)
	require.NoError(t, err)
	require.NoError(t, mount.WithTempMount(ctx, mounts, func(root string) error {
		assert.FileExists(t, filepath.Join(root, "bin", "sh"))
		assert.DirExists(t, filepath.Join(root, "etc"))
		assert.NoFileExists(t, filepath.Join(root, "etc", "only-in-base")) // a layer deletes it
		return nil
	}))
	require.NoError(t, service.Remove(ctx, "seen"))
}

func TestPullByTheClient(t *testing.T) {
	client, ctx := begin(t)
	pulled := pull(ctx, t, client)
	unpacked, err := pulled.IsUnpacked(ctx, *snapshotter)
	require.NoError(t, err)
	assert.True(t, unpacked)
	size, err := pulled.Size(ctx)
	require.NoError(t, err)
	assert.Positive(t, size)
	available, _, _, missing, err := images.Check(ctx, client.ContentStore(), pulled.Target(), platforms.Default())
	require.NoError(t, err)
	assert.True(t, available)
	assert.Empty(t, missing)
	layers, err := pulled.RootFS(ctx)
	require.NoError(t, err)
	info, err := client.SnapshotService(*snapshotter).Stat(ctx, identity.ChainID(layers).String())
	require.NoError(t, err)
	assert.Equal(t, snapshots.KindCommitted, info.Kind)
	collect(ctx, t, client)
	unpacked, err = pulled.IsUnpacked(ctx, *snapshotter)
	require.NoError(t, err)
	assert.True(t, unpacked, "an image keeps its snapshots")
	again, err := client.Pull(ctx, *reference, plainHTTP(), containerd.WithPullUnpack, containerd.WithPullSnapshotter(*snapshotter))
	require.NoError(t, err)
	assert.Equal(t, pulled.Target(), again.Target())
}

func TestPushByTheClient(t *testing.T) {
	client, ctx := begin(t)
	pulled := pull(ctx, t, client)
	if *repository == "" {
		t.Skip("needs -push")
	}
	name := *repository + "/pushed:by-client"
	require.NoError(t, client.Push(ctx, name, pulled.Target(), plainHTTP()))
	back, err := client.Fetch(fresh(t, client), name, plainHTTP())
	require.NoError(t, err)
	assert.Equal(t, pulled.Target().Digest, back.Target.Digest)
}

func TestExportAndImportByTheClient(t *testing.T) {
	client, ctx := begin(t)
	pulled := pull(ctx, t, client)
	var file bytes.Buffer
	require.NoError(t, client.Export(ctx, &file, archive.WithImage(client.ImageService(), pulled.Name())))
	elsewhere := fresh(t, client)
	brought, err := client.Import(elsewhere, &file)
	require.NoError(t, err)
	require.Len(t, brought, 1)
	assert.Equal(t, pulled.Name(), brought[0].Name)
	own := containerd.NewImage(client, brought[0])
	require.NoError(t, own.Unpack(elsewhere, *snapshotter))
	theirs, err := pulled.RootFS(ctx)
	require.NoError(t, err)
	layers, err := own.RootFS(elsewhere)
	require.NoError(t, err)
	assert.Equal(t, theirs, layers)
}

// steps keeps what a transfer tells of its progress.
type steps struct {
	sync.Mutex
	events []string
}

func (s *steps) see(progress transfer.Progress) {
	s.Lock()
	defer s.Unlock()
	s.events = append(s.events, progress.Event)
}

func TestTransferPullsAndPushes(t *testing.T) {
	if *reference == "" || *repository == "" {
		t.Skip("needs -image and -push")
	}
	client, ctx := begin(t)
	source, err := registry.NewOCIRegistry(ctx, *reference, registry.WithDefaultScheme("http"))
	require.NoError(t, err)
	name := "example.com/pulled:latest"
	seen := &steps{}
	into := image.NewStore(name, image.WithUnpack(platforms.DefaultSpec(), *snapshotter))
	require.NoError(t, client.Transfer(ctx, source, into, transfer.WithProgress(seen.see)))
	eventually(t, "its progress is told", func() bool {
		seen.Lock()
		defer seen.Unlock()
		return len(seen.events) > 0
	})
	pulled := containerd.NewImage(client, target(ctx, t, client, name))
	unpacked, err := pulled.IsUnpacked(ctx, *snapshotter)
	require.NoError(t, err)
	assert.True(t, unpacked)

	remote := *repository + "/pushed:by-transfer"
	destination, err := registry.NewOCIRegistry(ctx, remote, registry.WithDefaultScheme("http"))
	require.NoError(t, err)
	require.NoError(t, client.Transfer(ctx, image.NewStore(name), destination))
	back, err := client.Fetch(fresh(t, client), remote, plainHTTP())
	require.NoError(t, err)
	assert.Equal(t, pulled.Target().Digest, back.Target.Digest)

	require.NoError(t, client.Transfer(ctx, image.NewStore(name), image.NewStore("example.com/tagged:latest")))
	assert.Equal(t, pulled.Target().Digest, target(ctx, t, client, "example.com/tagged:latest").Target.Digest)
}

func TestTransferOfWhatIsNotThereFails(t *testing.T) {
	if *repository == "" {
		t.Skip("needs -push")
	}
	client, ctx := begin(t)
	source, err := registry.NewOCIRegistry(ctx, *repository+"/nobody:latest", registry.WithDefaultScheme("http"))
	require.NoError(t, err)
	failsWith(t, errdefs.IsNotFound, client.Transfer(ctx, source, image.NewStore("example.com/x:latest")))
	failsWith(t, errdefs.IsNotFound, client.Transfer(ctx, image.NewStore("nobody"), image.NewStore("example.com/x:latest")))
}

// closing is where a stream ends: what was written can be read once it is closed.
type closing struct {
	bytes.Buffer
	closed chan struct{}
	once   sync.Once
}

func (c *closing) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

func TestTransferExportsAndImports(t *testing.T) {
	client, ctx := begin(t)
	pulled := pull(ctx, t, client)
	file := &closing{closed: make(chan struct{})}
	export := archives.NewImageExportStream(file, "", archives.WithPlatform(platforms.DefaultSpec()))
	require.NoError(t, client.Transfer(ctx, image.NewStore("", image.WithExtraReference(pulled.Name())), export))
	<-file.closed
	require.NotZero(t, file.Len())

	elsewhere := fresh(t, client)
	into := image.NewStore("", image.WithNamedPrefix("nobody", true), image.WithDigestRef("imported", true, true),
		image.WithUnpack(platforms.DefaultSpec(), *snapshotter))
	require.NoError(t, client.Transfer(elsewhere, archives.NewImageImportStream(&file.Buffer, ""), into))
	found, err := client.ImageService().List(elsewhere)
	require.NoError(t, err)
	require.NotEmpty(t, found)
	assert.Equal(t, pulled.Target().Digest, found[0].Target.Digest)
}

func TestTransferEchoesAStream(t *testing.T) {
	client, ctx := begin(t)
	for _, size := range []int{0, 11, 5 << 20} {
		data, _ := blob(size)
		file := &closing{closed: make(chan struct{})}
		require.NoError(t, client.Transfer(ctx,
			archives.NewImageImportStream(bytes.NewReader(data), "application/octet-stream"),
			archives.NewImageExportStream(file, "application/octet-stream")))
		<-file.closed
		require.True(t, bytes.Equal(data, file.Bytes()), "%d bytes", size)
	}
}

// tree commits a snapshot with two files on top of a parent.
func tree(ctx context.Context, t *testing.T, client *containerd.Client, name, parent string, files map[string]string) {
	t.Helper()
	sn := client.SnapshotService(*snapshotter)
	mounts, err := sn.Prepare(ctx, name+"-work", parent, kept)
	require.NoError(t, err)
	require.NoError(t, mount.WithTempMount(ctx, mounts, func(root string) error {
		for path, text := range files {
			if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o640); err != nil {
				return err
			}
		}
		return nil
	}))
	require.NoError(t, sn.Commit(ctx, name, name+"-work", kept))
}

func TestDiffIsComparedAndApplied(t *testing.T) {
	client, ctx := begin(t)
	// Without a lease, containerd may collect what CreateDiff views, and then takes the parent for one that has a child yet.
	ctx, _, err := client.WithLease(ctx)
	require.NoError(t, err)
	tree(ctx, t, client, "lower", "", map[string]string{"same": "same", "changed": "before"})
	tree(ctx, t, client, "upper", "lower", map[string]string{"changed": "after", "new": strings.Repeat("new", 1000)})
	sn, cs := client.SnapshotService(*snapshotter), client.ContentStore()
	for _, mediaType := range []string{
		ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerZstd,
	} {
		t.Run(mediaType, func(t *testing.T) {
			create := func() ocispec.Descriptor {
				descriptor, err := rootfs.CreateDiff(ctx, "upper", sn, client.DiffService(), diff.WithMediaType(mediaType),
					diff.WithLabels(map[string]string{"containerd.io/gc.root": "1"}), diff.WithSourceDateEpoch(epoch()))
				require.NoError(t, err)
				return descriptor
			}
			descriptor := create()
			assert.Equal(t, mediaType, descriptor.MediaType)
			info, err := cs.Info(ctx, descriptor.Digest)
			require.NoError(t, err)
			assert.Equal(t, info.Size, descriptor.Size)
			assert.Equal(t, "1", info.Labels["containerd.io/gc.root"])
			uncompressed := info.Labels["containerd.io/uncompressed"]
			assert.Equal(t, descriptor.Digest, create().Digest, "the same again")

			key := "applied-" + descriptor.Digest.Encoded()[:8]
			mounts, err := sn.Prepare(ctx, key, "lower", kept)
			require.NoError(t, err)
			applied, err := client.DiffService().Apply(ctx, descriptor, mounts)
			require.NoError(t, err)
			assert.Equal(t, ocispec.MediaTypeImageLayer, applied.MediaType)
			if uncompressed != "" {
				assert.Equal(t, uncompressed, applied.Digest.String())
			}
			require.NoError(t, mount.WithTempMount(ctx, mounts, func(root string) error {
				for path, text := range map[string]string{
					"same": "same", "changed": "after", "new": strings.Repeat("new", 1000),
				} {
					got, err := os.ReadFile(filepath.Join(root, path))
					require.NoError(t, err)
					assert.Equal(t, text, string(got))
				}
				return nil
			}))
		})
	}
}

func epoch() *time.Time {
	moment := time.Unix(1_700_000_000, 0).UTC()
	return &moment
}

func TestDiffErrors(t *testing.T) {
	client, ctx := begin(t)
	sn := client.SnapshotService(*snapshotter)
	mounts, err := sn.Prepare(ctx, "work", "", kept)
	require.NoError(t, err)
	_, absent := blob(10)
	absent.MediaType = ocispec.MediaTypeImageLayerGzip
	_, err = client.DiffService().Apply(ctx, absent, mounts)
	failsWith(t, errdefs.IsNotFound, err)
	data, broken := blob(1000)
	broken.MediaType = ocispec.MediaTypeImageLayerGzip
	require.NoError(t, content.WriteBlob(ctx, client.ContentStore(), "broken", bytes.NewReader(data), broken, keptBlob))
	_, err = client.DiffService().Apply(ctx, broken, mounts)
	require.Error(t, err)
	_, err = client.DiffService().Compare(ctx, mounts, mounts, diff.WithMediaType("application/nonsense"))
	require.Error(t, err)
	assert.True(t, errdefs.IsNotImplemented(err), "%v", err)
}
