package contract

import (
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
)

// kept is the label of a snapshot that garbage collection leaves alone.
var kept = snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "1"})

// ours is a server's snapshotter in a namespace of this test: all tests of the suite say the same one.
type ours struct {
	snapshots.Snapshotter
	name string
}

func (o ours) in(ctx context.Context) context.Context { return namespaces.WithNamespace(ctx, o.name) }

func (o ours) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	return o.Snapshotter.Stat(o.in(ctx), key)
}

func (o ours) Update(ctx context.Context, info snapshots.Info, paths ...string) (snapshots.Info, error) {
	return o.Snapshotter.Update(o.in(ctx), info, paths...)
}

func (o ours) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	return o.Snapshotter.Usage(o.in(ctx), key)
}

func (o ours) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	return o.Snapshotter.Mounts(o.in(ctx), key)
}

func (o ours) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return o.Snapshotter.Prepare(o.in(ctx), key, parent, opts...)
}

func (o ours) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return o.Snapshotter.View(o.in(ctx), key, parent, opts...)
}

func (o ours) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	return o.Snapshotter.Commit(o.in(ctx), name, key, opts...)
}

func (o ours) Remove(ctx context.Context, key string) error {
	return o.Snapshotter.Remove(o.in(ctx), key)
}

func (o ours) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	return o.Snapshotter.Walk(o.in(ctx), fn, filters...)
}

func TestSnapshotsSuite(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	testsuite.SnapshotterSuite(t, *snapshotter, func(context.Context, string) (snapshots.Snapshotter, func() error, error) {
		client := connect(t)
		service := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(client.Conn().(*grpc.ClientConn)), *snapshotter)
		name := "suite-" + strings.ToLower(rand.Text()[:12])
		return ours{service, name}, func() error {
			return remove(namespaces.WithNamespace(context.Background(), name), client, name)
		}, nil
	})
}

func anyError(error) bool { return true }

func TestSnapshotErrors(t *testing.T) {
	client, ctx := begin(t)
	sn := client.SnapshotService(*snapshotter)
	_, err := sn.Prepare(ctx, "active", "", kept)
	require.NoError(t, err)
	_, err = sn.Prepare(ctx, "work", "", kept)
	require.NoError(t, err)
	require.NoError(t, sn.Commit(ctx, "base", "work", kept))
	_, err = sn.View(ctx, "view", "base", kept)
	require.NoError(t, err)

	prepare := func(key, parent string) func() error {
		return func() error { _, err := sn.Prepare(ctx, key, parent); return err }
	}
	for name, test := range map[string]struct {
		is  func(error) bool
		try func() error
	}{
		"prepare: key there":              {errdefs.IsAlreadyExists, prepare("active", "")},
		"prepare: key is a view's":        {errdefs.IsAlreadyExists, prepare("view", "")},
		"prepare: no parent of that name": {errdefs.IsNotFound, prepare("new", "nobody")},
		"prepare: parent not committed":   {errdefs.IsInvalidArgument, prepare("new", "active")},
		"view: no parent of that name": {errdefs.IsNotFound, func() error {
			_, err := sn.View(ctx, "new", "nobody")
			return err
		}},
		"commit: no such key":   {errdefs.IsNotFound, func() error { return sn.Commit(ctx, "new", "nobody") }},
		"commit: name taken":    {errdefs.IsAlreadyExists, func() error { return sn.Commit(ctx, "base", "active") }},
		"commit: of a view":     {errdefs.IsFailedPrecondition, func() error { return sn.Commit(ctx, "new", "view") }},
		"remove: no such key":   {errdefs.IsNotFound, func() error { return sn.Remove(ctx, "nobody") }},
		"remove: with children": {errdefs.IsFailedPrecondition, func() error { return sn.Remove(ctx, "base") }},
		"mounts: no such key":   {errdefs.IsNotFound, func() error { _, err := sn.Mounts(ctx, "nobody"); return err }},
		"stat: no such key":     {errdefs.IsNotFound, func() error { _, err := sn.Stat(ctx, "nobody"); return err }},
		"usage: no such key":    {errdefs.IsNotFound, func() error { _, err := sn.Usage(ctx, "nobody"); return err }},
		"update: of a parent": {errdefs.IsInvalidArgument, func() error {
			_, err := sn.Update(ctx, snapshots.Info{Name: "active", Parent: "base"}, "parent")
			return err
		}},
		"update: no such key": {errdefs.IsNotFound, func() error {
			_, err := sn.Update(ctx, snapshots.Info{Name: "nobody"}, "labels.a")
			return err
		}},
		"a filter that cannot be read": {anyError, func() error { // containerd: Unknown
			return sn.Walk(ctx, func(context.Context, snapshots.Info) error { return nil }, `name==`)
		}},
		"another snapshotter": {errdefs.IsInvalidArgument, func() error {
			_, err := client.SnapshotService("nosuch").Stat(ctx, "active")
			return err
		}},
		"a label that is too long": {errdefs.IsInvalidArgument, func() error {
			_, err := sn.Prepare(ctx, "new", "", snapshots.WithLabels(map[string]string{"a": strings.Repeat("x", 4096)}))
			return err
		}},
		"no namespace": {errdefs.IsFailedPrecondition, func() error {
			_, err := sn.Stat(context.Background(), "active")
			return err
		}},
		"another namespace": {errdefs.IsNotFound, func() error {
			_, err := sn.Stat(namespaces.WithNamespace(context.Background(), "go-elsewhere"), "active")
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.try()
			require.Error(t, err)
			assert.True(t, test.is(err), "%T %v", err, err)
		})
	}
}

func TestSnapshotLabelsAreFilteredAndChanged(t *testing.T) {
	client, ctx := begin(t)
	sn := client.SnapshotService(*snapshotter)
	labels := map[string]string{"containerd.io/gc.root": "1", "color": "red"}
	_, err := sn.Prepare(ctx, "one", "", snapshots.WithLabels(labels))
	require.NoError(t, err)
	info, err := sn.Update(ctx, snapshots.Info{Name: "one", Labels: map[string]string{"color": "blue"}}, "labels.color")
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"containerd.io/gc.root": "1", "color": "blue"}, info.Labels)
	for filter, count := range map[string]int{
		"": 1, "labels.color==blue": 1, "labels.color==red": 0, "kind==active": 1, "kind==committed": 0, "name==one": 1, "parent==one": 0,
	} {
		found := 0
		require.NoError(t, sn.Walk(ctx, func(context.Context, snapshots.Info) error { found++; return nil }, filter))
		assert.Equal(t, count, found, filter)
	}
	require.NoError(t, sn.Commit(ctx, "base", "one", kept))
	info, err = sn.Stat(ctx, "base")
	require.NoError(t, err)
	assert.Equal(t, snapshots.KindCommitted, info.Kind)
	assert.Equal(t, map[string]string{"containerd.io/gc.root": "1"}, info.Labels)
}

func TestSnapshotsAreMountedAndMeasured(t *testing.T) {
	client, ctx := begin(t)
	sn := client.SnapshotService(*snapshotter)
	mounts, err := sn.Prepare(ctx, "work", "", kept)
	require.NoError(t, err)
	require.NoError(t, mount.WithTempMount(ctx, mounts, func(root string) error {
		return os.WriteFile(filepath.Join(root, "file"), make([]byte, 100_000), 0o600)
	}))
	usage, err := sn.Usage(ctx, "work")
	require.NoError(t, err)
	assert.GreaterOrEqual(t, usage.Size, int64(100_000))
	require.NoError(t, sn.Commit(ctx, "base", "work", kept))
	usage, err = sn.Usage(ctx, "base")
	require.NoError(t, err)
	assert.GreaterOrEqual(t, usage.Size, int64(100_000))
	mounts, err = sn.View(ctx, "view", "base", kept)
	require.NoError(t, err)
	require.NoError(t, mount.WithTempMount(ctx, mounts, func(root string) error {
		assert.Error(t, os.WriteFile(filepath.Join(root, "other"), nil, 0o600))
		_, err := os.Stat(filepath.Join(root, "file"))
		return err
	}))
}
