// Package contract drives a server of containerd's API with containerd's own Go client.
//
// The server is one that listens already: containerd itself, or lamella serve. Tests need root, since snapshots are mounted on
// this machine. Each has namespaces of its own, which are empty and removed at its end; a server that keeps one of them from
// going is a failure, too.
package contract

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

var (
	address     = flag.String("address", "", "the server's socket")
	reference   = flag.String("image", "", "an image with /bin/sh in a registry that is reached over plain HTTP")
	repository  = flag.String("push", "", "a repository there that may be written")
	snapshotter = flag.String("snapshotter", "overlayfs", "which snapshotter is tested")
	loadTime    = flag.Duration("load", 0, "how long TestLoad goes on; 0 skips it")
)

func TestMain(m *testing.M) {
	flag.Parse()
	if *address == "" {
		fmt.Fprintln(os.Stderr, "-address is missing")
		os.Exit(2)
	}
	os.Exit(m.Run())
}

// connect gives a client, which is closed with the test.
func connect(t testing.TB) *containerd.Client {
	t.Helper()
	client, err := containerd.New(*address)
	require.NoError(t, err)
	t.Cleanup(func() { client.Close() })
	return client
}

// begin gives a client and a context in a fresh namespace, which is emptied and removed with the test.
func begin(t testing.TB) (*containerd.Client, context.Context) {
	t.Helper()
	client := connect(t)
	return client, fresh(t, client)
}

// fresh gives a context in a namespace that nobody has used, which is emptied and removed with the test.
func fresh(t testing.TB, client *containerd.Client) context.Context {
	t.Helper()
	name := "go-" + strings.ToLower(rand.Text()[:12])
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), name), 2*time.Minute)
	t.Cleanup(func() {
		cancel()
		ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), name), time.Minute)
		defer cancel()
		require.NoError(t, remove(ctx, client, name))
	})
	return ctx
}

// remove empties a namespace, and removes it.
func remove(ctx context.Context, client *containerd.Client, name string) error {
	steps := []func(context.Context, *containerd.Client) error{
		removeContainers, removeImages, removeLeases, removeIngests, removeSnapshots, removeContent,
	}
	for _, step := range steps {
		if err := step(ctx, client); err != nil {
			return err
		}
	}
	return ignoreMissing(client.NamespaceService().Delete(ctx, name))
}

func removeContainers(ctx context.Context, client *containerd.Client) error {
	found, err := client.Containers(ctx)
	for _, container := range found {
		if task, err := container.Task(ctx, nil); err == nil {
			if _, err := task.Delete(ctx, containerd.WithProcessKill); err != nil {
				return err
			}
		}
		if err := container.Delete(ctx); err != nil {
			return err
		}
	}
	return err
}

func removeImages(ctx context.Context, client *containerd.Client) error {
	found, err := client.ImageService().List(ctx)
	for _, image := range found {
		if err := client.ImageService().Delete(ctx, image.Name); err != nil {
			return err
		}
	}
	return err
}

func removeLeases(ctx context.Context, client *containerd.Client) error {
	found, err := client.LeasesService().List(ctx)
	for _, lease := range found {
		if err := client.LeasesService().Delete(ctx, lease); err != nil {
			return err
		}
	}
	return err
}

func removeIngests(ctx context.Context, client *containerd.Client) error {
	found, err := client.ContentStore().ListStatuses(ctx)
	for _, status := range found {
		// A write that its client gave up a moment ago may not have ended yet: containerd finds its folder not empty.
		deadline := time.Now().Add(time.Minute)
		for {
			err := ignoreMissing(client.ContentStore().Abort(ctx, status.Ref))
			if err == nil {
				break
			}
			if ctx.Err() != nil || time.Now().After(deadline) {
				return err
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	return err
}

func removeContent(ctx context.Context, client *containerd.Client) error {
	return client.ContentStore().Walk(ctx, func(info content.Info) error {
		return ignoreMissing(client.ContentStore().Delete(ctx, info.Digest))
	})
}

// removeSnapshots removes all snapshots of a namespace, children first.
func removeSnapshots(ctx context.Context, client *containerd.Client) error {
	service := client.SnapshotService(*snapshotter)
	var failed error
	for ctx.Err() == nil {
		parents, all := map[string]bool{}, []string{}
		if err := service.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			parents[info.Parent] = true
			all = append(all, info.Name)
			return nil
		}); err != nil || len(all) == 0 {
			return err
		}
		for _, key := range all {
			if !parents[key] {
				failed = ignoreMissing(service.Remove(ctx, key))
			}
		}
		if failed != nil { // containerd saw a child for a minute that it was collecting
			if err := collectGarbage(ctx, client); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("snapshots do not go: %w", failed)
}

// collectGarbage lets the server do it: it does before a synchronous delete returns.
func collectGarbage(ctx context.Context, client *containerd.Client) error {
	lease, err := client.LeasesService().Create(ctx, leases.WithRandomID())
	if err != nil {
		return err
	}
	return client.LeasesService().Delete(ctx, lease, leases.SynchronousDelete)
}

func ignoreMissing(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// plainHTTP makes a client's pull and push use plain HTTP.
func plainHTTP() containerd.RemoteOpt {
	return containerd.WithResolver(docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(
		docker.WithPlainHTTP(docker.MatchAllHosts),
	)}))
}

// pull gives the test image, unpacked: pulled by the client, which writes content and lets the server apply it.
func pull(ctx context.Context, t testing.TB, client *containerd.Client) containerd.Image {
	t.Helper()
	if *reference == "" {
		t.Skip("needs -image")
	}
	image, err := client.Pull(
		ctx, *reference, plainHTTP(), containerd.WithPullUnpack, containerd.WithPullSnapshotter(*snapshotter),
	)
	require.NoError(t, err)
	return image
}

// target gives what an image points at, as the server says.
func target(ctx context.Context, t testing.TB, client *containerd.Client, name string) images.Image {
	t.Helper()
	image, err := client.ImageService().Get(ctx, name)
	require.NoError(t, err)
	return image
}

// eventually waits until something is so.
func eventually(t testing.TB, what string, so func() bool) {
	t.Helper()
	require.Eventually(t, so, time.Minute, 20*time.Millisecond, what)
}

const kill, term = syscall.SIGKILL, syscall.SIGTERM

func namespaceOf(ctx context.Context) string {
	name, _ := namespaces.Namespace(ctx)
	return name
}
