package contract

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/content/testsuite"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// suiteStore is what the suite calls for each of its tests: the server's store, and what gives it namespaces with a lease.
func suiteStore(t *testing.T) testsuite.StoreInitFn {
	return func(ctx context.Context, _ string) (context.Context, content.Store, func() error, error) {
		client := connect(t)
		store := proxy.NewContentStore(client.Conn())
		var used []string
		var number atomic.Int64
		run := strings.ToLower(rand.Text()[:8])
		wrap := func(ctx context.Context, shared bool) (context.Context, func(context.Context) error, error) {
			name := fmt.Sprintf("suite-%s-%d", run, number.Add(1))
			used = append(used, name)
			ctx = namespaces.WithNamespace(ctx, name)
			if shared {
				labels := map[string]string{"containerd.io/namespace.shareable": "true"}
				if err := client.NamespaceService().Create(ctx, name, labels); err != nil {
					return nil, nil, err
				}
			}
			return client.WithLease(ctx)
		}
		done := func() error {
			for _, name := range used {
				if err := remove(namespaces.WithNamespace(context.Background(), name), client, name); err != nil {
					return err
				}
			}
			return nil
		}
		return testsuite.SetContextWrapper(ctx, wrap), store, done, nil
	}
}

func TestContentSuite(t *testing.T) {
	testsuite.ContentSuite(t, "content", suiteStore(t))
	testsuite.ContentCrossNSSharedSuite(t, "shared", suiteStore(t))
}

func blob(size int) ([]byte, ocispec.Descriptor) {
	data := make([]byte, size)
	_, _ = rand.Read(data)
	return data, ocispec.Descriptor{
		MediaType: "application/octet-stream", Digest: digest.FromBytes(data), Size: int64(size),
	}
}

// keptBlob has a label that keeps it from garbage collection, which one server may do at any time.
var keptBlob = content.WithLabels(map[string]string{"containerd.io/gc.root": time.Now().Format(time.RFC3339)})

// store writes a blob that is kept.
func store(ctx context.Context, t testing.TB, into content.Store, size int) ([]byte, ocispec.Descriptor) {
	t.Helper()
	data, descriptor := blob(size)
	require.NoError(t, content.WriteBlob(ctx, into, rand.Text(), bytes.NewReader(data), descriptor, keptBlob))
	return data, descriptor
}

func TestContentIsReadWholeAndInParts(t *testing.T) {
	client, ctx := begin(t)
	cs := client.ContentStore()
	data, descriptor := store(ctx, t, cs, 9<<20+17) // more than one message
	whole, err := content.ReadBlob(ctx, cs, descriptor)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, whole))
	reader, err := cs.ReaderAt(ctx, descriptor)
	require.NoError(t, err)
	defer reader.Close()
	require.EqualValues(t, len(data), reader.Size())
	for _, at := range []int64{0, 1, 4 << 20, 8<<20 + 1, int64(len(data)) - 1} {
		part := make([]byte, min(70_000, int64(len(data))-at))
		n, err := reader.ReadAt(part, at)
		if err != io.EOF {
			require.NoError(t, err)
		}
		require.Equal(t, len(part), n)
		require.True(t, bytes.Equal(data[at:at+int64(n)], part))
	}
}

func TestContentErrors(t *testing.T) {
	client, ctx := begin(t)
	cs := client.ContentStore()
	data, descriptor := store(ctx, t, cs, 1000)
	_, absent := blob(10)

	for name, test := range map[string]struct {
		is  func(error) bool
		try func() error
	}{
		"info of what is not there":   {errdefs.IsNotFound, func() error { _, err := cs.Info(ctx, absent.Digest); return err }},
		"info of no digest":           {errdefs.IsInvalidArgument, func() error { _, err := cs.Info(ctx, "sha256:../../x"); return err }},
		"delete of what is not there": {errdefs.IsNotFound, func() error { return cs.Delete(ctx, absent.Digest) }},
		"delete of no digest":         {errdefs.IsInvalidArgument, func() error { return cs.Delete(ctx, "nonsense") }},
		"read of what is not there":   {errdefs.IsNotFound, func() error { _, err := cs.ReaderAt(ctx, absent); return err }},
		"update of what is not there": {errdefs.IsNotFound, func() error {
			_, err := cs.Update(ctx, content.Info{Digest: absent.Digest, Labels: map[string]string{"a": "b"}}, "labels.a")
			return err
		}},
		"update of a size": {errdefs.IsInvalidArgument, func() error {
			_, err := cs.Update(ctx, content.Info{Digest: descriptor.Digest, Size: 3}, "size")
			return err
		}},
		"a label that is too long": {errdefs.IsInvalidArgument, func() error {
			labels := map[string]string{"a": strings.Repeat("x", 4096)}
			_, err := cs.Update(ctx, content.Info{Digest: descriptor.Digest, Labels: labels}, "labels.a")
			return err
		}},
		"status of no ingest": {errdefs.IsNotFound, func() error { _, err := cs.Status(ctx, "nobody"); return err }},
		"abort of no ingest":  {errdefs.IsNotFound, func() error { return cs.Abort(ctx, "nobody") }},
		"a writer without ref": {errdefs.IsInvalidArgument, func() error {
			_, err := cs.Writer(ctx, content.WithDescriptor(absent))
			return err
		}},
		"a writer for what is there": {errdefs.IsAlreadyExists, func() error {
			_, err := cs.Writer(ctx, content.WithRef("again"), content.WithDescriptor(descriptor))
			return err
		}},
		"another size than said": {errdefs.IsFailedPrecondition, func() error {
			writer, err := cs.Writer(ctx, content.WithRef("size"))
			require.NoError(t, err)
			defer writer.Close()
			_, err = writer.Write(data[:10])
			require.NoError(t, err)
			return writer.Commit(ctx, 11, "")
		}},
		"a filter that cannot be read": {errdefs.IsInvalidArgument, func() error {
			return cs.Walk(ctx, func(content.Info) error { return nil }, `labels."a`)
		}},
		"no namespace": {errdefs.IsFailedPrecondition, func() error {
			_, err := cs.Info(context.Background(), descriptor.Digest)
			return err
		}},
		"a namespace that is a path": {errdefs.IsInvalidArgument, func() error {
			_, err := cs.Info(namespaces.WithNamespace(context.Background(), "../x"), descriptor.Digest)
			return err
		}},
		"another namespace": {errdefs.IsNotFound, func() error {
			_, err := cs.Info(namespaces.WithNamespace(context.Background(), "go-elsewhere"), descriptor.Digest)
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

func TestContentWithAnotherDigestIsRefusedAndCanBeResumed(t *testing.T) {
	client, ctx := begin(t)
	cs := client.ContentStore()
	data, descriptor := blob(2000)
	writer, err := cs.Writer(ctx, content.WithRef("resumed"), content.WithDescriptor(descriptor))
	require.NoError(t, err)
	_, err = writer.Write(data[:1500])
	require.NoError(t, err)
	err = writer.Commit(ctx, 0, descriptor.Digest)
	require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
	require.NoError(t, writer.Close())

	status, err := cs.Status(ctx, "resumed")
	require.NoError(t, err)
	assert.EqualValues(t, 1500, status.Offset)
	assert.EqualValues(t, 2000, status.Total)

	again, err := cs.Writer(ctx, content.WithRef("resumed"), content.WithDescriptor(descriptor))
	require.NoError(t, err)
	status, err = again.Status()
	require.NoError(t, err)
	assert.EqualValues(t, 1500, status.Offset)
	_, err = again.Write(data[1500:])
	require.NoError(t, err)
	require.NoError(t, again.Commit(ctx, descriptor.Size, descriptor.Digest, keptBlob))
	require.NoError(t, again.Close())
	got, err := content.ReadBlob(ctx, cs, descriptor)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(data, got))
}

func TestContentWriterHasItsRefAlone(t *testing.T) {
	client, ctx := begin(t)
	cs := client.ContentStore()
	first, err := cs.Writer(ctx, content.WithRef("one"))
	require.NoError(t, err)
	_, err = first.Write([]byte("some"))
	require.NoError(t, err)
	_, err = connect(t).ContentStore().Writer(ctx, content.WithRef("one"))
	require.True(t, errdefs.IsUnavailable(err), "%v", err)

	elsewhere := fresh(t, client)
	other, err := cs.Writer(elsewhere, content.WithRef("one"))
	require.NoError(t, err)
	require.NoError(t, other.Close())
	statuses, err := cs.ListStatuses(ctx)
	require.NoError(t, err)
	require.Len(t, statuses, 1)
	assert.Equal(t, "one", statuses[0].Ref)
	require.NoError(t, first.Close())
}

func TestContentOfAClientThatDiesCanBeResumed(t *testing.T) {
	client, ctx := begin(t)
	data, descriptor := blob(100_000)
	dying, cancel := context.WithCancel(ctx)
	victim := connect(t)
	writer, err := victim.ContentStore().Writer(dying, content.WithRef("left"), content.WithDescriptor(descriptor))
	require.NoError(t, err)
	_, err = writer.Write(data[:60_000])
	require.NoError(t, err)
	cancel()
	victim.Close()

	cs := client.ContentStore()
	var again content.Writer
	eventually(t, "the ref is free again", func() bool {
		again, err = cs.Writer(ctx, content.WithRef("left"), content.WithDescriptor(descriptor))
		return err == nil
	})
	status, err := again.Status()
	require.NoError(t, err)
	require.EqualValues(t, 60_000, status.Offset)
	_, err = again.Write(data[60_000:])
	require.NoError(t, err)
	require.NoError(t, again.Commit(ctx, descriptor.Size, descriptor.Digest))
	require.NoError(t, again.Close())
}

func TestContentLabelsChangeByFieldMask(t *testing.T) {
	client, ctx := begin(t)
	cs := client.ContentStore()
	_, descriptor := store(ctx, t, cs, 10)
	update := func(labels map[string]string, paths ...string) map[string]string {
		info, err := cs.Update(ctx, content.Info{Digest: descriptor.Digest, Labels: labels}, paths...)
		require.NoError(t, err)
		read, err := cs.Info(ctx, descriptor.Digest)
		require.NoError(t, err)
		require.Equal(t, info.Labels, read.Labels)
		return info.Labels
	}
	root := "containerd.io/gc.root"
	assert.Equal(t, map[string]string{root: "1", "a": "b"}, update(map[string]string{root: "1", "a": "b"}))
	assert.Equal(t, map[string]string{root: "1", "a": "c"}, update(map[string]string{"a": "c", "x": "y"}, "labels.a"))
	assert.Equal(t, map[string]string{root: "1"}, update(map[string]string{"a": ""}, "labels.a"))
	assert.Equal(t, map[string]string{root: "2"}, update(map[string]string{root: "2"}, "labels"))
	for filter, count := range map[string]int{
		"": 1, `labels."containerd.io/gc.root"==2`: 1, `labels.a`: 0, "digest==" + descriptor.Digest.String(): 1,
		"digest~=^sha256:": 1, "digest~=^sha256:,labels.a": 0,
	} {
		found := 0
		require.NoError(t, cs.Walk(ctx, func(content.Info) error { found++; return nil }, filter))
		assert.Equal(t, count, found, filter)
	}
}
