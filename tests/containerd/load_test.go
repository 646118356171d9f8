package contract

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/stretchr/testify/require"
)

const loadClients, loadNamespaces = 64, 8

// TestLoad lets 64 clients, eight in each namespace, pull, prepare, remove and list at once, each against what it knows to be so.
//
// In half of the namespaces the client pulls; in the others the server does, into an image of each client's own, which goes again
// with all that it alone had: what is collected there is pulled by the others at the same moment.
func TestLoad(t *testing.T) {
	if *loadTime == 0 || *reference == "" {
		t.Skip("needs -load and -image")
	}
	first, ctx := begin(t)
	pulled := pull(ctx, t, first)
	layers, err := pulled.RootFS(ctx)
	require.NoError(t, err)
	known := facts{pulled.Target().Digest, identity.ChainID(layers).String()}

	names := make([]string, loadNamespaces)
	for i := range names {
		names[i] = namespaceOf(fresh(t, first))
	}
	until := time.Now().Add(*loadTime)
	var rounds, wrong atomic.Int64
	var group sync.WaitGroup
	for i := range loadClients {
		name := names[i%loadNamespaces]
		group.Go(func() {
			client, err := containerd.New(*address)
			if err != nil {
				t.Error(err)
				return
			}
			defer client.Close()
			one := worker{client, fmt.Sprintf("client-%d", i), known, i%2 == 0}
			for time.Now().Before(until) && wrong.Load() < 20 {
				ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), name), 5*time.Minute)
				if err := one.round(ctx); err != nil {
					wrong.Add(1)
					t.Errorf("%s in %s: %v", one.name, name, err)
				}
				cancel()
				rounds.Add(1)
			}
		})
	}
	group.Wait()
	t.Logf("%d rounds of %d clients, %d wrong", rounds.Load(), loadClients, wrong.Load())
}

// facts is what every pull has to come to.
type facts struct {
	target digest.Digest
	chain  string
}

// worker is one client of many.
type worker struct {
	client *containerd.Client
	name   string
	known  facts
	itself bool // whether it pulls itself
}

func (w worker) round(ctx context.Context) error {
	ctx, release, err := w.client.WithLease(ctx)
	if err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	work := func() error {
		name, err := w.pull(ctx)
		if err != nil {
			return fmt.Errorf("pull: %w", err)
		}
		if err := w.snapshots(ctx); err != nil {
			return err
		}
		if err := w.blobs(ctx); err != nil {
			return err
		}
		if w.itself {
			return nil
		}
		return w.forget(ctx, name)
	}
	return errors.Join(work(), release(context.WithoutCancel(ctx)))
}

func (w worker) pull(ctx context.Context) (string, error) {
	name := *reference
	if w.itself {
		unpack := []containerd.RemoteOpt{plainHTTP(), containerd.WithPullUnpack, containerd.WithPullSnapshotter(*snapshotter)}
		if _, err := w.client.Pull(ctx, name, unpack...); err != nil {
			return "", err
		}
	} else {
		name = "example.com/" + w.name + ":latest"
		source, err := registry.NewOCIRegistry(ctx, *reference, registry.WithDefaultScheme("http"))
		if err != nil {
			return "", err
		}
		into := image.NewStore(name, image.WithUnpack(platforms.DefaultSpec(), *snapshotter))
		if err := w.client.Transfer(ctx, source, into); err != nil {
			return "", err
		}
	}
	got, err := w.client.ImageService().Get(ctx, name)
	if err != nil {
		return "", err
	}
	if got.Target.Digest != w.known.target {
		return "", fmt.Errorf("%s is %s", name, got.Target.Digest)
	}
	all, err := w.client.ImageService().List(ctx, "name=="+name)
	if err != nil {
		return "", err
	}
	if len(all) != 1 {
		return "", fmt.Errorf("%d images of one name", len(all))
	}
	return name, nil
}

func (w worker) snapshots(ctx context.Context) error {
	service := w.client.SnapshotService(*snapshotter)
	key := w.name + "-" + rand.Text()
	mounts, err := service.Prepare(ctx, key, w.known.chain)
	if err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	again, err := service.Mounts(ctx, key)
	if err != nil {
		return fmt.Errorf("mounts: %w", err)
	}
	if len(mounts) != 1 || len(again) != 1 || !slices.Equal(mounts[0].Options, again[0].Options) {
		return fmt.Errorf("mounts: %v and %v", mounts, again)
	}
	if _, err := service.Prepare(ctx, key, w.known.chain); !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("prepared twice: %v", err)
	}
	found := false
	if err := service.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Name == key {
			found = info.Parent == w.known.chain && info.Kind == snapshots.KindActive
		}
		return nil
	}); err != nil {
		return fmt.Errorf("list: %w", err)
	}
	if !found {
		return errors.New("list: the snapshot is not there, or another")
	}
	if err := service.Remove(ctx, key); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	if _, err := service.Stat(ctx, key); !errdefs.IsNotFound(err) {
		return fmt.Errorf("removed, but: %v", err)
	}
	return nil
}

func (w worker) blobs(ctx context.Context) error {
	store := w.client.ContentStore()
	data, descriptor := blob(100_000)
	writer, err := content.OpenWriter(ctx, store, content.WithRef(w.name), content.WithDescriptor(descriptor))
	if err != nil {
		return fmt.Errorf("write: %w", err)
	}
	defer writer.Close()
	if _, err := writer.Write(data); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if err := writer.Commit(ctx, descriptor.Size, descriptor.Digest); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	got, err := content.ReadBlob(ctx, store, descriptor)
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if !slices.Equal(got, data) {
		return errors.New("read: other bytes")
	}
	if err := store.Delete(ctx, descriptor.Digest); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	if _, err := store.Info(ctx, descriptor.Digest); !errdefs.IsNotFound(err) {
		return fmt.Errorf("deleted, but: %v", err)
	}
	return nil
}

func (w worker) forget(ctx context.Context, name string) error {
	if err := w.client.ImageService().Delete(ctx, name, images.SynchronousDelete()); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	if _, err := w.client.ImageService().Get(ctx, name); !errdefs.IsNotFound(err) {
		return fmt.Errorf("deleted, but: %v", err)
	}
	return nil
}
