package contract

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// output is what a process writes, by two streams that are read at once.
type output struct {
	sync.Mutex
	buffer bytes.Buffer
}

func (o *output) Write(data []byte) (int, error) {
	o.Lock()
	defer o.Unlock()
	return o.buffer.Write(data)
}

func (o *output) String() string {
	o.Lock()
	defer o.Unlock()
	return o.buffer.String()
}

// input is what a process reads; atEnd is called when the client has passed it on.
type input struct {
	io.Reader
	atEnd func()
}

func (i *input) Read(data []byte) (int, error) {
	count, err := i.Reader.Read(data)
	if err == io.EOF {
		i.atEnd()
	}
	return count, err
}

// container gives a container of the test image with a fresh snapshot, which is removed with the namespace.
func container(ctx context.Context, t testing.TB, client *containerd.Client, id string, args ...string) containerd.Container {
	t.Helper()
	image := pull(ctx, t, client)
	return another(ctx, t, client, image, id, args...)
}

func another(
	ctx context.Context, t testing.TB, client *containerd.Client, image containerd.Image, id string, args ...string,
) containerd.Container {
	t.Helper()
	made, err := client.NewContainer(
		ctx, id, containerd.WithSnapshotter(*snapshotter), containerd.WithNewSnapshot(id, image),
		containerd.WithImage(image), containerd.WithNewSpec(oci.WithImageConfig(image), oci.WithProcessArgs(args...)),
	)
	require.NoError(t, err)
	return made
}

// start gives a task that runs; its end comes over the channel.
func start(
	ctx context.Context, t testing.TB, of containerd.Container, stdin io.Reader, stdout, stderr io.Writer,
) (containerd.Task, <-chan containerd.ExitStatus) {
	t.Helper()
	streams := cio.NewCreator(cio.WithStreams(stdin, stdout, stderr), cio.WithFIFODir(t.TempDir()))
	task, err := of.NewTask(ctx, streams)
	require.NoError(t, err)
	ended, err := task.Wait(ctx)
	require.NoError(t, err)
	require.NoError(t, task.Start(ctx))
	return task, ended
}

// statusOf gives the exit status of a process that ends.
func statusOf(t testing.TB, ended <-chan containerd.ExitStatus) uint32 {
	t.Helper()
	select {
	case status := <-ended:
		code, at, err := status.Result()
		require.NoError(t, err)
		assert.WithinDuration(t, time.Now(), at, time.Minute)
		return code
	case <-time.After(time.Minute):
		t.Fatal("it does not end")
		return 0
	}
}

func TestTaskRunsWithItsStreams(t *testing.T) {
	client, ctx := begin(t)
	made := container(ctx, t, client, "one", "/bin/sh", "-c", "read line; echo got $line; echo err >&2; exit 3")
	var stdout, stderr output
	task, ended := start(ctx, t, made, strings.NewReader("words\n"), &stdout, &stderr)
	assert.Positive(t, task.Pid())
	assert.EqualValues(t, 3, statusOf(t, ended))
	task.IO().Wait()
	assert.Equal(t, "got words\n", stdout.String())
	assert.Equal(t, "err\n", stderr.String())
	status, err := task.Status(ctx)
	require.NoError(t, err)
	assert.Equal(t, containerd.Stopped, status.Status)
	assert.EqualValues(t, 3, status.ExitStatus)
	deleted, err := task.Delete(ctx)
	require.NoError(t, err)
	assert.EqualValues(t, 3, deleted.ExitCode())
	_, err = made.Task(ctx, nil)
	failsWith(t, errdefs.IsNotFound, err)
	require.NoError(t, made.Delete(ctx, containerd.WithSnapshotCleanup))
	_, err = client.SnapshotService(*snapshotter).Stat(ctx, "one")
	failsWith(t, errdefs.IsNotFound, err)
}

func TestTaskIsKilledPausedAndMeasured(t *testing.T) {
	client, ctx := begin(t)
	made := container(ctx, t, client, "one", "/bin/sleep", "1000")
	task, ended := start(ctx, t, made, nil, io.Discard, io.Discard)
	is := func(want containerd.ProcessStatus) {
		t.Helper()
		status, err := task.Status(ctx)
		require.NoError(t, err)
		assert.Equal(t, want, status.Status)
	}
	is(containerd.Running)
	pids, err := task.Pids(ctx)
	require.NoError(t, err)
	require.Len(t, pids, 1)
	assert.Equal(t, task.Pid(), pids[0].Pid)
	metrics, err := task.Metrics(ctx)
	require.NoError(t, err)
	assert.Equal(t, "one", metrics.ID)
	assert.NotEmpty(t, metrics.Data.GetTypeUrl())
	limit := int64(1 << 30)
	require.NoError(t, task.Update(ctx, containerd.WithResources(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}})))
	require.NoError(t, task.Pause(ctx))
	is(containerd.Paused)
	require.NoError(t, task.Resume(ctx))
	is(containerd.Running)
	_, err = task.Delete(ctx)
	failsWith(t, errdefs.IsFailedPrecondition, err)
	require.NoError(t, task.Kill(ctx, kill))
	assert.EqualValues(t, 128+9, statusOf(t, ended))
	is(containerd.Stopped)
	failsWith(t, errdefs.IsNotFound, task.Kill(ctx, term))
	_, err = task.Delete(ctx)
	require.NoError(t, err)
}

func TestTaskThatWasCreatedAloneCanBeDeleted(t *testing.T) {
	client, ctx := begin(t)
	made := container(ctx, t, client, "one", "/bin/true")
	task, err := made.NewTask(ctx, cio.NullIO)
	require.NoError(t, err)
	status, err := task.Status(ctx)
	require.NoError(t, err)
	assert.Equal(t, containerd.Created, status.Status)
	_, err = made.NewTask(ctx, cio.NullIO)
	failsWith(t, errdefs.IsAlreadyExists, err)
	failsWith(t, errdefs.IsFailedPrecondition, made.Delete(ctx))
	_, err = task.Delete(ctx, containerd.WithProcessKill)
	require.NoError(t, err)
}

func TestExec(t *testing.T) {
	client, ctx := begin(t)
	made := container(ctx, t, client, "one", "/bin/sleep", "1000")
	task, _ := start(ctx, t, made, nil, io.Discard, io.Discard)
	spec, err := made.Spec(ctx)
	require.NoError(t, err)
	process := *spec.Process
	process.Args = []string{"/bin/sh", "-c", "cat; echo err >&2; exit 4"}
	var stdout, stderr output
	fed, passed := context.WithCancel(ctx)
	stdin := &input{strings.NewReader("fed"), passed}
	streams := cio.NewCreator(cio.WithStreams(stdin, &stdout, &stderr), cio.WithFIFODir(t.TempDir()))
	exec, err := task.Exec(ctx, "further", &process, streams)
	require.NoError(t, err)
	ended, err := exec.Wait(ctx)
	require.NoError(t, err)
	require.NoError(t, exec.Start(ctx))
	<-fed.Done() // containerd's shim that has not opened the FIFO yet loses what is in it, and its end
	require.NoError(t, exec.CloseIO(ctx, containerd.WithStdinCloser))
	assert.EqualValues(t, 4, statusOf(t, ended))
	exec.IO().Wait()
	assert.Equal(t, "fed", stdout.String())
	assert.Equal(t, "err\n", stderr.String())
	deleted, err := exec.Delete(ctx)
	require.NoError(t, err)
	assert.EqualValues(t, 4, deleted.ExitCode())

	process.Args = []string{"/bin/nosuchprogram"}
	absent, err := task.Exec(ctx, "absent", &process, cio.NullIO)
	require.NoError(t, err)
	require.Error(t, absent.Start(ctx))
	_, err = absent.Delete(ctx)
	require.NoError(t, err)

	process.Args = []string{"/bin/sleep", "1000"}
	long, err := task.Exec(ctx, "long", &process, cio.NullIO)
	require.NoError(t, err)
	ended, err = long.Wait(ctx)
	require.NoError(t, err)
	require.NoError(t, long.Start(ctx))
	_, err = task.Exec(ctx, "long", &process, cio.NullIO)
	failsWith(t, errdefs.IsAlreadyExists, err)
	loaded, err := task.LoadProcess(ctx, "long", nil)
	require.NoError(t, err)
	status, err := loaded.Status(ctx)
	require.NoError(t, err)
	assert.Equal(t, containerd.Running, status.Status)
	require.NoError(t, loaded.Kill(ctx, kill))
	assert.EqualValues(t, 128+9, statusOf(t, ended))
	_, err = long.Delete(ctx)
	require.NoError(t, err)
	_, err = task.LoadProcess(ctx, "long", nil)
	failsWith(t, errdefs.IsNotFound, err)
}

func TestTerminal(t *testing.T) {
	client, ctx := begin(t)
	image := pull(ctx, t, client)
	made, err := client.NewContainer(
		ctx, "one", containerd.WithSnapshotter(*snapshotter), containerd.WithNewSnapshot("one", image),
		containerd.WithNewSpec(oci.WithImageConfig(image), oci.WithTTY,
			oci.WithProcessArgs("/bin/sh", "-c", "test -t 0 && test -t 1 && echo terminal; read line; echo $line")),
	)
	require.NoError(t, err)
	var shown output
	stdin, typed := io.Pipe()
	defer typed.Close()
	streams := cio.NewCreator(cio.WithStreams(stdin, &shown, nil), cio.WithTerminal, cio.WithFIFODir(t.TempDir()))
	task, err := made.NewTask(ctx, streams)
	require.NoError(t, err)
	ended, err := task.Wait(ctx)
	require.NoError(t, err)
	require.NoError(t, task.Start(ctx))
	require.NoError(t, task.Resize(ctx, 100, 40))
	eventually(t, "the terminal is there", func() bool { return strings.Contains(shown.String(), "terminal\r\n") })
	_, err = typed.Write([]byte("bye\n"))
	require.NoError(t, err)
	assert.Zero(t, statusOf(t, ended))
	eventually(t, "what was typed, and its echo", func() bool { return strings.Count(shown.String(), "bye\r\n") == 2 })
	_, err = task.Delete(ctx)
	require.NoError(t, err)
}

func TestTaskOutlivesItsClient(t *testing.T) {
	client, ctx := begin(t)
	image := pull(ctx, t, client)
	other := connect(t)
	made := another(ctx, t, other, image, "one", "/bin/sh", "-c", "trap 'exit 5' TERM; while :; do /bin/sleep 0.05; done")
	task, err := made.NewTask(ctx, cio.NullIO)
	require.NoError(t, err)
	require.NoError(t, task.Start(ctx))
	other.Close()
	found, err := client.LoadContainer(ctx, "one")
	require.NoError(t, err)
	again, err := found.Task(ctx, nil)
	require.NoError(t, err)
	assert.Equal(t, task.Pid(), again.Pid())
	ended, err := again.Wait(ctx)
	require.NoError(t, err)
	var status containerd.ExitStatus
	eventually(t, "it ends, once its trap is set", func() bool {
		_ = again.Kill(ctx, term)
		select {
		case status = <-ended:
			return true
		case <-time.After(100 * time.Millisecond):
			return false
		}
	})
	assert.EqualValues(t, 5, status.ExitCode())
}

func TestTaskErrors(t *testing.T) {
	client, ctx := begin(t)
	made := container(ctx, t, client, "one", "/bin/nosuchprogram")
	_, err := made.Task(ctx, nil)
	failsWith(t, errdefs.IsNotFound, err)
	task, err := made.NewTask(ctx, cio.NullIO)
	if err == nil {
		err = task.Start(ctx)
	}
	require.Error(t, err)
	assert.Contains(t, err.Error(), "nosuchprogram")
	_, err = client.LoadContainer(ctx, "nobody")
	failsWith(t, errdefs.IsNotFound, err)
}

const ready = "/test/ready"

// subscribe gives the events that a filter lets through in the test's namespace, from now on. A subscription has no answer that
// says it has begun: it has when it hears of what is published again and again, which comes here some times more.
func subscribe(ctx context.Context, t *testing.T, client *containerd.Client, filter string) (<-chan *events.Envelope, <-chan error) {
	t.Helper()
	listening, stop := context.WithCancel(ctx)
	t.Cleanup(stop)
	within := `namespace==` + namespaceOf(ctx)
	service := client.EventService()
	told, failed := service.Subscribe(listening, within+`,`+filter, within+`,topic=="`+ready+`"`)
	for {
		require.NoError(t, service.Publish(ctx, ready, &eventsapi.ImageDelete{Name: "ready"}))
		select {
		case <-told:
			return told, failed
		case err := <-failed:
			t.Fatal(err)
		case <-time.After(20 * time.Millisecond):
			require.NoError(t, ctx.Err())
		}
	}
}

func TestEventsTellOfALife(t *testing.T) {
	client, ctx := begin(t)
	image := pull(ctx, t, client)
	name := namespaceOf(ctx)
	told, failed := subscribe(ctx, t, client, `topic~="^/(tasks|containers|snapshot)/"`)
	made := another(ctx, t, client, image, "one", "/bin/true")
	task, ended := start(ctx, t, made, nil, io.Discard, io.Discard)
	assert.Zero(t, statusOf(t, ended))
	var topics []string
	until := func(last string) {
		for !slices.Contains(topics, last) {
			select {
			case event := <-told:
				if event.Topic == ready {
					continue
				}
				topics = append(topics, event.Topic)
				assert.Equal(t, name, event.Namespace)
				decoded, err := typeurl.UnmarshalAny(event.Event)
				require.NoError(t, err, event.Topic)
				switch event := decoded.(type) {
				case *eventsapi.TaskStart:
					assert.Equal(t, "one", event.ContainerID)
					assert.Equal(t, task.Pid(), event.Pid)
				case *eventsapi.TaskExit:
					assert.Equal(t, "one", event.ContainerID)
					assert.Zero(t, event.ExitStatus)
				case *eventsapi.ContainerCreate:
					assert.Equal(t, "one", event.ID)
					assert.Equal(t, image.Name(), event.Image)
				}
			case err := <-failed:
				t.Fatal(err, topics)
			case <-time.After(time.Minute):
				t.Fatal(topics)
			}
		}
	}
	until("/tasks/exit")
	_, err := task.Delete(ctx)
	require.NoError(t, err)
	require.NoError(t, made.Delete(ctx, containerd.WithSnapshotCleanup))
	until("/containers/delete")
	// containerd's shim may be gone before it has told of the deletion.
	assert.Equal(t, []string{
		"/snapshot/prepare", "/containers/create", "/tasks/create", "/tasks/start", "/tasks/exit", "/snapshot/remove",
		"/containers/delete",
	}, slices.DeleteFunc(topics, func(topic string) bool { return topic == "/tasks/delete" }))
}

func TestEventsOfOthersAreForwarded(t *testing.T) {
	client, ctx := begin(t)
	service := client.EventService()
	told, failed := subscribe(ctx, t, client, `topic=="/own/topic"`)
	failsWith(t, errdefs.IsInvalidArgument, service.Publish(ctx, "no/slash", &eventsapi.ImageDelete{Name: "x"}))
	require.NoError(t, service.Publish(ctx, "/other/topic", &eventsapi.ImageDelete{Name: "other"}))
	require.NoError(t, service.Publish(ctx, "/own/topic", &eventsapi.ImageDelete{Name: "first"}))
	body, err := typeurl.MarshalAny(&eventsapi.ImageDelete{Name: "second"})
	require.NoError(t, err)
	moment := time.Unix(1_700_000_000, 0).UTC()
	require.NoError(t, service.Forward(ctx, &events.Envelope{
		Timestamp: moment, Namespace: namespaceOf(ctx), Topic: "/own/topic", Event: body,
	}))
	for wanted := []string{"first", "second"}; len(wanted) > 0; {
		select {
		case event := <-told:
			if event.Topic == ready {
				continue
			}
			want := wanted[0]
			wanted = wanted[1:]
			decoded, err := typeurl.UnmarshalAny(event.Event)
			require.NoError(t, err)
			assert.Equal(t, want, decoded.(*eventsapi.ImageDelete).Name)
			if want == "second" {
				assert.True(t, event.Timestamp.Equal(moment))
			}
		case err := <-failed:
			t.Fatal(err)
		case <-time.After(time.Minute):
			t.Fatal("no event")
		}
	}
}

func TestSpecIsKeptAsItWas(t *testing.T) {
	client, ctx := begin(t)
	made := container(ctx, t, client, "one", "/bin/true")
	info, err := made.Info(ctx)
	require.NoError(t, err)
	var spec specs.Spec
	require.NoError(t, json.Unmarshal(info.Spec.GetValue(), &spec))
	assert.Equal(t, []string{"/bin/true"}, spec.Process.Args)
	require.NoError(t, made.Update(ctx, containerd.UpdateContainerOpts(containerd.WithAdditionalContainerLabels(map[string]string{"a": "b"}))))
	labels, err := made.Labels(ctx)
	require.NoError(t, err)
	assert.Equal(t, "b", labels["a"])
}
