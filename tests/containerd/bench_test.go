package contract

import (
	"bytes"
	"crypto/rand"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/image-spec/identity"
	"github.com/stretchr/testify/require"
)

// What benches/serve.py runs. p50-ms is the median of the calls, which one client makes one after the other.

func median(b *testing.B, call func()) {
	costs := make([]time.Duration, 0, b.N)
	for b.Loop() {
		begun := time.Now()
		call()
		costs = append(costs, time.Since(begun))
	}
	slices.Sort(costs)
	b.ReportMetric(float64(costs[len(costs)/2].Nanoseconds())/1e6, "p50-ms")
}

func BenchmarkVersion(b *testing.B) {
	client, ctx := begin(b)
	median(b, func() {
		_, err := client.Version(ctx)
		require.NoError(b, err)
	})
}

// BenchmarkSnapshot prepares, asks for the mounts, and removes: three calls a round.
func BenchmarkSnapshot(b *testing.B) {
	client, ctx := begin(b)
	image := pull(ctx, b, client)
	layers, err := image.RootFS(ctx)
	require.NoError(b, err)
	parent, service := identity.ChainID(layers).String(), client.SnapshotService(*snapshotter)
	median(b, func() {
		_, err := service.Prepare(ctx, "bench", parent, kept)
		require.NoError(b, err)
		_, err = service.Mounts(ctx, "bench")
		require.NoError(b, err)
		require.NoError(b, service.Remove(ctx, "bench"))
	})
}

const benchSize = 256 << 20

func BenchmarkContentWrite(b *testing.B) {
	client, ctx := begin(b)
	store := client.ContentStore()
	b.SetBytes(benchSize)
	b.StopTimer()
	for range b.N {
		data, descriptor := blob(benchSize)
		b.StartTimer()
		require.NoError(b, content.WriteBlob(ctx, store, rand.Text(), bytes.NewReader(data), descriptor))
		b.StopTimer()
		require.NoError(b, store.Delete(ctx, descriptor.Digest))
	}
}

func BenchmarkContentRead(b *testing.B) {
	client, ctx := begin(b)
	_, descriptor := store(ctx, b, client.ContentStore(), benchSize)
	b.SetBytes(benchSize)
	buffer := make([]byte, 1<<20)
	for b.Loop() {
		reader, err := client.ContentStore().ReaderAt(ctx, descriptor)
		require.NoError(b, err)
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, content.NewReader(reader), buffer)
		require.NoError(b, err)
		require.EqualValues(b, benchSize, n)
		require.NoError(b, reader.Close())
	}
}
