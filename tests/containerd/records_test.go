package contract

import (
	"context"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Images, leases, namespaces, containers: what a server keeps of them, without any of their content.

func failsWith(t *testing.T, is func(error) bool, err error) {
	t.Helper()
	require.Error(t, err)
	assert.True(t, is(err), "%T %v", err, err)
}

func TestNamespaces(t *testing.T) {
	client, ctx := begin(t)
	name, _ := namespaces.Namespace(ctx)
	service := client.NamespaceService()
	require.NoError(t, service.Create(ctx, name, map[string]string{"a": "b"}))
	failsWith(t, errdefs.IsAlreadyExists, service.Create(ctx, name, nil))
	require.NoError(t, service.SetLabel(ctx, name, "c", "d"))
	labels, err := service.Labels(ctx, name)
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"a": "b", "c": "d"}, labels)
	require.NoError(t, service.SetLabel(ctx, name, "a", ""))
	labels, err = service.Labels(ctx, name)
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"c": "d"}, labels)
	all, err := service.List(ctx)
	require.NoError(t, err)
	assert.Contains(t, all, name)

	store(ctx, t, client.ContentStore(), 10)
	failsWith(t, errdefs.IsFailedPrecondition, service.Delete(ctx, name))
	failsWith(t, errdefs.IsNotFound, service.Delete(ctx, "go-nobody"))
	for _, bad := range []string{"", "..", "a/b", "-a", "a b", strings.Repeat("x", 77)} {
		failsWith(t, errdefs.IsInvalidArgument, service.Create(ctx, bad, nil))
	}
}

func TestLeases(t *testing.T) {
	client, ctx := begin(t)
	service := client.LeasesService()
	lease, err := service.Create(ctx, leases.WithID("held"), leases.WithExpiration(time.Hour), leases.WithLabel("a", "b"))
	require.NoError(t, err)
	assert.Equal(t, "held", lease.ID)
	assert.Equal(t, "b", lease.Labels["a"])
	assert.WithinDuration(t, time.Now(), lease.CreatedAt, time.Minute)
	_, err = service.Create(ctx, leases.WithID("held"))
	failsWith(t, errdefs.IsAlreadyExists, err)
	random, err := service.Create(ctx, leases.WithRandomID())
	require.NoError(t, err)
	for filter, count := range map[string]int{"": 2, "id==held": 1, "labels.a==b": 1, "labels.a==c": 0} {
		found, err := service.List(ctx, filter)
		require.NoError(t, err)
		assert.Len(t, found, count, filter)
	}
	require.NoError(t, service.Delete(ctx, random, leases.SynchronousDelete))
	failsWith(t, errdefs.IsNotFound, service.Delete(ctx, random))
	_, err = service.ListResources(ctx, random)
	failsWith(t, errdefs.IsNotFound, err)

	_, descriptor := store(ctx, t, client.ContentStore(), 10)
	resource := leases.Resource{ID: descriptor.Digest.String(), Type: "content"}
	require.NoError(t, service.AddResource(ctx, lease, resource))
	require.NoError(t, service.AddResource(ctx, lease, resource), "twice is harmless")
	held, err := service.ListResources(ctx, lease)
	require.NoError(t, err)
	assert.Equal(t, []leases.Resource{resource}, held)
	failsWith(t, errdefs.IsNotFound, service.AddResource(ctx, leases.Lease{ID: "nobody"}, resource))
	failsWith(t, errdefs.IsNotImplemented, service.AddResource(ctx, lease, leases.Resource{ID: "a", Type: "nonsense"}))
	require.NoError(t, service.DeleteResource(ctx, lease, resource))
	held, err = service.ListResources(ctx, lease)
	require.NoError(t, err)
	assert.Empty(t, held)
}

func TestWhatALeaseHoldsStaysUntilItGoes(t *testing.T) {
	client, ctx := begin(t)
	lease, err := client.LeasesService().Create(ctx, leases.WithRandomID(), leases.WithExpiration(time.Hour))
	require.NoError(t, err)
	within := leases.WithLease(ctx, lease.ID)
	data, descriptor := blob(1000)
	cs, sn := client.ContentStore(), client.SnapshotService(*snapshotter)
	require.NoError(t, content.WriteBlob(within, cs, "one", strings.NewReader(string(data)), descriptor))
	_, err = sn.Prepare(within, "work", "")
	require.NoError(t, err)
	held, err := client.LeasesService().ListResources(ctx, lease)
	require.NoError(t, err)
	assert.ElementsMatch(t, []leases.Resource{
		{ID: descriptor.Digest.String(), Type: "content"}, {ID: "work", Type: "snapshots/" + *snapshotter},
	}, held)

	collect(ctx, t, client)
	_, err = cs.Info(ctx, descriptor.Digest)
	require.NoError(t, err)
	_, err = sn.Stat(ctx, "work")
	require.NoError(t, err)
	require.NoError(t, client.LeasesService().Delete(ctx, lease, leases.SynchronousDelete))
	_, err = cs.Info(ctx, descriptor.Digest)
	failsWith(t, errdefs.IsNotFound, err)
	t.Run("an active snapshot, too", func(t *testing.T) {
		_, err = sn.Stat(ctx, "work")
		failsWith(t, errdefs.IsNotFound, err)
	})
}

func collect(ctx context.Context, t testing.TB, client *containerd.Client) {
	t.Helper()
	require.NoError(t, collectGarbage(ctx, client))
}

func TestImages(t *testing.T) {
	client, ctx := begin(t)
	service := client.ImageService()
	_, descriptor := store(ctx, t, client.ContentStore(), 100)
	name := "example.com/some/image:latest"
	created, err := service.Create(ctx, images.Image{Name: name, Target: descriptor, Labels: map[string]string{"a": "b"}})
	require.NoError(t, err)
	assert.WithinDuration(t, time.Now(), created.CreatedAt, time.Minute)
	_, err = service.Create(ctx, created)
	failsWith(t, errdefs.IsAlreadyExists, err)
	read := target(ctx, t, client, name)
	assert.Equal(t, descriptor, read.Target)
	assert.Equal(t, map[string]string{"a": "b"}, read.Labels)
	for filter, count := range map[string]int{
		"": 1, "name==" + name: 1, "name~=nobody": 0, "labels.a==b": 1, "target.digest==" + descriptor.Digest.String(): 1,
		"target.mediatype==application/octet-stream": 1,
	} {
		found, err := service.List(ctx, filter)
		require.NoError(t, err)
		assert.Len(t, found, count, filter)
	}

	changed, err := service.Update(ctx, images.Image{Name: name, Labels: map[string]string{"c": "d"}}, "labels.c")
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"a": "b", "c": "d"}, changed.Labels)
	assert.Equal(t, descriptor, changed.Target)
	_, other := store(ctx, t, client.ContentStore(), 200)
	changed, err = service.Update(ctx, images.Image{Name: name, Target: other}, "target")
	require.NoError(t, err)
	assert.Equal(t, other.Digest, changed.Target.Digest)
	assert.Equal(t, map[string]string{"a": "b", "c": "d"}, changed.Labels)
	assert.True(t, changed.UpdatedAt.After(changed.CreatedAt))

	_, err = service.Update(ctx, images.Image{Name: "nobody", Target: other})
	failsWith(t, errdefs.IsNotFound, err)
	_, err = service.Update(ctx, images.Image{Name: name, Target: other}, "name")
	failsWith(t, errdefs.IsInvalidArgument, err)
	_, err = service.Create(ctx, images.Image{Name: "", Target: other})
	failsWith(t, errdefs.IsInvalidArgument, err)
	_, err = service.Create(ctx, images.Image{Name: "notarget"})
	failsWith(t, errdefs.IsInvalidArgument, err)
	_, err = service.List(ctx, `labels."`)
	failsWith(t, errdefs.IsInvalidArgument, err)
	failsWith(t, errdefs.IsNotFound, service.Delete(ctx, "nobody"))
	_, err = service.Get(fresh(t, client), name)
	failsWith(t, errdefs.IsNotFound, err)
	require.NoError(t, service.Delete(ctx, name, images.DeleteTarget(&other)))
}

func TestASynchronousDeleteOfAnImageCollectsWhatItAloneHad(t *testing.T) {
	client, ctx := begin(t)
	image := pull(ctx, t, client)
	layers, err := image.RootFS(ctx)
	require.NoError(t, err)
	require.NotEmpty(t, layers)
	require.NoError(t, client.ImageService().Delete(ctx, image.Name(), images.SynchronousDelete()))
	_, err = client.ContentStore().Info(ctx, image.Target().Digest)
	failsWith(t, errdefs.IsNotFound, err)
	require.NoError(t, client.ContentStore().Walk(ctx, func(info content.Info) error {
		t.Errorf("left: %s", info.Digest)
		return nil
	}))
	removeSnapshotsIsDone(ctx, t, client)
}

func TestContainerRecords(t *testing.T) {
	client, ctx := begin(t)
	service := client.ContainerService()
	spec, err := typeurl.MarshalAny(&specs.Spec{Version: "1.0.0", Process: &specs.Process{Cwd: "/"}})
	require.NoError(t, err)
	record := containers.Container{
		ID: "one", Labels: map[string]string{"a": "b"}, Image: "example.com/none", Spec: spec,
		Runtime: containers.RuntimeInfo{Name: "io.containerd.runc.v2"}, Snapshotter: *snapshotter, SnapshotKey: "one",
	}
	created, err := service.Create(ctx, record)
	require.NoError(t, err)
	assert.WithinDuration(t, time.Now(), created.CreatedAt, time.Minute)
	_, err = service.Create(ctx, record)
	failsWith(t, errdefs.IsAlreadyExists, err)
	read, err := service.Get(ctx, "one")
	require.NoError(t, err)
	assert.Equal(t, record.Image, read.Image)
	assert.Equal(t, record.Runtime.Name, read.Runtime.Name)
	assert.Equal(t, spec.GetTypeUrl(), read.Spec.GetTypeUrl())
	assert.JSONEq(t, string(spec.GetValue()), string(read.Spec.GetValue()))
	for filter, count := range map[string]int{
		"": 1, "id==one": 1, "id~=two": 0, "labels.a==b": 1, "image==example.com/none": 1, "runtime.name==io.containerd.runc.v2": 1,
	} {
		found, err := service.List(ctx, filter)
		require.NoError(t, err)
		assert.Len(t, found, count, filter)
	}
	changed, err := service.Update(ctx, containers.Container{ID: "one", Labels: map[string]string{"c": "d"}}, "labels.c")
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"a": "b", "c": "d"}, changed.Labels)
	changed, err = service.Update(ctx, containers.Container{ID: "one", Image: "example.com/other"}, "image")
	require.NoError(t, err)
	assert.Equal(t, "example.com/other", changed.Image)
	assert.Equal(t, map[string]string{"a": "b", "c": "d"}, changed.Labels)

	_, err = service.Update(ctx, containers.Container{ID: "one", Snapshotter: "native"}, "snapshotter")
	failsWith(t, errdefs.IsInvalidArgument, err)
	_, err = service.Update(ctx, containers.Container{ID: "nobody", Image: "x"}, "image")
	failsWith(t, errdefs.IsNotFound, err)
	_, err = service.Get(ctx, "nobody")
	failsWith(t, errdefs.IsNotFound, err)
	failsWith(t, errdefs.IsNotFound, service.Delete(ctx, "nobody"))
	for _, bad := range []string{"", "../x", "a b", strings.Repeat("x", 77)} {
		wrong := record
		wrong.ID = bad
		_, err = service.Create(ctx, wrong)
		failsWith(t, errdefs.IsInvalidArgument, err)
	}
	wrong := record
	wrong.ID, wrong.Runtime.Name = "noruntime", ""
	_, err = service.Create(ctx, wrong)
	failsWith(t, errdefs.IsInvalidArgument, err)
	_, err = service.Get(fresh(t, client), "one")
	failsWith(t, errdefs.IsNotFound, err)
}

func TestServerNamesItself(t *testing.T) {
	client, ctx := begin(t)
	version, err := client.Version(ctx)
	require.NoError(t, err)
	assert.NotEmpty(t, version.Version)
	server, err := client.Server(ctx)
	require.NoError(t, err)
	assert.NotEmpty(t, server.UUID)
	serving, err := client.IsServing(ctx)
	require.NoError(t, err)
	assert.True(t, serving)
	plugins, err := client.IntrospectionService().Plugins(ctx, "type==io.containerd.snapshotter.v1", "id=="+*snapshotter)
	require.NoError(t, err)
	found := false
	for _, plugin := range plugins.Plugins {
		found = found || (plugin.Type == "io.containerd.snapshotter.v1" && plugin.ID == *snapshotter)
	}
	assert.True(t, found)
	_, err = client.GetSnapshotterSupportedPlatforms(ctx, *snapshotter)
	require.NoError(t, err)
}
