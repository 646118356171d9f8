/* Tries to see or touch what a container must not: reach KEY=VALUE... prints a line for each try, "NAME reached" or "NAME errno".
 *
 * What is tried is data: the table at the end. The keys name what the test has put up on the host for the tries to find; see
 * test_reach.py. A try that works does no harm: files are opened and not written, pid 0 signals are sent, arguments are ones
 * that the kernel refuses after it has looked at who asks. Each runs in a process and session of its own, for 5 seconds at most.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <mqueue.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static char **keys;

static const char *key(const char *name)
{
	size_t length = strlen(name);
	for (char **one = keys; *one; one++)
		if (!strncmp(*one, name, length) && (*one)[length] == '=')
			return *one + length + 1;
	fprintf(stderr, "%s is not given\n", name);
	exit(2);
}

static pid_t victim(void) { return atoi(key("pid")); }

/* Whether an answer came from behind the check of who asks. */
static int passed(long answer)
{
	return answer >= 0 || (errno != EPERM && errno != EACCES && errno != ENOSYS && errno != EROFS);
}

static int opened(const char *path, int flags)
{
	int file = open(path, flags | O_NONBLOCK | O_NOCTTY);
	if (file >= 0)
		close(file);
	return file >= 0;
}

static int holds_bytes(const char *path)
{
	char buffer[64];
	int file = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
	if (file < 0)
		return 0;
	ssize_t count = read(file, buffer, sizeof buffer);
	close(file);
	return count > 0;
}

static int holds_entries(const char *path)
{
	DIR *folder = opendir(path);
	struct dirent *entry;
	int count = 0;
	while (folder && (entry = readdir(folder)))
		count += entry->d_name[0] != '.';
	return count > 0;
}

/* Whether any of a folder of /proc with the secret's path behind it is the secret. */
static int secret_below(const char *prefix)
{
	char path[8192];
	struct stat status;
	snprintf(path, sizeof path, "%s%s", prefix, key("secret"));
	return !stat(path, &status);
}

/* ---- the host's files */

static int file_by_path(void) { return secret_below(""); }
static int file_by_root_of_1(void) { return secret_below("/proc/1/root"); }
static int file_by_own_folder(void) { return secret_below("/proc/self/cwd/../../../../../../../.."); }
static int folder_of_state(void) { return !access(key("state"), F_OK); }
static int folder_of_store(void) { return !access(key("store"), F_OK); }

static int file_by_any_process(void)
{
	DIR *folder = opendir("/proc");
	struct dirent *entry;
	static const char *const ways[] = {"root", "cwd", "cwd/../../../../../../.."};
	while (folder && (entry = readdir(folder)))
		for (size_t way = 0; way < 3 && entry->d_name[0] <= '9'; way++) {
			char path[4096];
			snprintf(path, sizeof path, "/proc/%s/%s", entry->d_name, ways[way]);
			if (secret_below(path))
				return 1;
		}
	return 0;
}

static int file_by_descriptor(void)
{
	struct stat status;
	char path[8192];
	for (int number = 0; number < 1024; number++) {
		snprintf(path, sizeof path, "/proc/self/fd/%d", number);
		if (secret_below(path))
			return 1;
		for (int up = 0; up < 16; up++) {
			memset(path, 0, sizeof path);
			for (int step = 0; step < up; step++)
				strcat(path, "../");
			strcat(path, key("secret") + 1);
			if (!fstatat(number, path, &status, 0))
				return 1;
		}
	}
	return 0;
}

static int file_by_a_root_within(void)
{
	int top = open("/", O_RDONLY | O_DIRECTORY);
	mkdir("/tmp/within", 0755);
	if (chroot("/tmp/within") || fchdir(top))
		return 0;
	for (int up = 0; up < 64; up++)
		if (chdir(".."))
			return 0;
	return !chroot(".") && secret_below("");
}

static int file_by_handle(void)
{
	struct {
		struct file_handle handle;
		unsigned char bytes[128];
	} found = {.handle = {.handle_bytes = 8, .handle_type = 1}};
	unsigned inode = 2;
	memcpy(found.handle.f_handle, &inode, sizeof inode);
	int top = open("/", O_RDONLY | O_DIRECTORY);
	return passed(syscall(SYS_open_by_handle_at, top, &found.handle, O_RDONLY));
}

static int own_program_of_the_launcher(void)
{
	DIR *folder = opendir("/proc");
	struct dirent *entry;
	while (folder && (entry = readdir(folder))) {
		char path[512], target[4096] = "";
		snprintf(path, sizeof path, "/proc/%s/exe", entry->d_name);
		if (readlink(path, target, sizeof target - 1) > 0 && strstr(target, "lamella-launcher") && opened(path, O_RDONLY))
			return 1;
	}
	return 0;
}

/* ---- the host's processes */

static int signal_to_a_process(void) { return !kill(victim(), 0); }
static int signal_to_the_monitor(void) { return !kill(atoi(key("monitor")), 0); }
static int handle_of_a_process(void) { return syscall(SYS_pidfd_open, victim(), 0) >= 0; }
static int trace_of_a_process(void)
{
	if (ptrace(PTRACE_SEIZE, victim(), 0, 0))
		return 0;
	ptrace(PTRACE_DETACH, victim(), 0, 0);
	return 1;
}

static int memory_of_a_process(void)
{
	char byte;
	struct iovec ours = {&byte, 1}, theirs = {(void *)strtoul(key("address"), NULL, 16), 1};
	return process_vm_readv(victim(), &ours, 1, &theirs, 1, 0) == 1;
}

static int environment_of_a_process(void)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/environ", victim());
	return holds_bytes(path);
}

static int parent_outside(void)
{
	return getppid() == atoi(key("monitor")) || !kill(-1 * atoi(key("monitor")), 0);
}

static int priority_of_a_process(void) { return !setpriority(PRIO_PROCESS, victim(), 1); }
static int processors_of_a_process(void)
{
	cpu_set_t set;
	return sched_getaffinity(victim(), sizeof set, &set) >= 0;
}
static int limits_of_a_process(void) { return syscall(SYS_prlimit64, victim(), 7, NULL, NULL) == 0; }
static int less_likely_killed(void)
{
	int file = open("/proc/self/oom_score_adj", O_WRONLY);
	return file >= 0 && write(file, "-1000", 5) == 5;
}

/* ---- the kernel's settings */

static int sysctl_core_pattern(void) { return opened("/proc/sys/kernel/core_pattern", O_WRONLY); }
static int sysctl_modprobe(void) { return opened("/proc/sys/kernel/modprobe", O_WRONLY); }
static int sysctl_panic(void) { return opened("/proc/sys/kernel/panic", O_WRONLY); }
static int sysctl_hostname(void) { return opened("/proc/sys/kernel/hostname", O_WRONLY); }
static int sysctl_memory(void) { return opened("/proc/sys/vm/overcommit_memory", O_WRONLY); }
static int sysctl_files(void) { return opened("/proc/sys/fs/file-max", O_WRONLY); }
static int sysctl_network(void) { return opened("/proc/sys/net/ipv4/ip_forward", O_WRONLY); }
static int sysrq(void) { return opened("/proc/sysrq-trigger", O_WRONLY); }
static int bus_of_pci(void) { return opened("/proc/irq/default_smp_affinity", O_WRONLY); }
static int mode_of_a_setting(void) { return !chmod("/proc/irq/default_smp_affinity", 0644); }
static int uevent_helper(void) { return opened("/sys/kernel/uevent_helper", O_WRONLY); }
static int setting_of_sysfs(void) { return opened("/sys/kernel/mm/transparent_hugepage/enabled", O_WRONLY); }
static int mode_in_sysfs(void) { return !chmod("/sys/kernel/mm", 0755); }
static int binary_formats(void)
{
	mkdir("/tmp/formats", 0755);
	return opened("/proc/sys/fs/binfmt_misc/register", O_WRONLY) ||
	       !mount("binfmt_misc", "/tmp/formats", "binfmt_misc", 0, NULL);
}

/* ---- what the kernel tells */

static int memory_of_the_kernel(void) { return opened("/proc/kcore", O_RDONLY) && holds_bytes("/proc/kcore"); }
static int log_by_proc(void) { return opened("/proc/kmsg", O_RDONLY); }
static int log_by_device(void) { return opened("/dev/kmsg", O_RDONLY); }
static int log_by_call(void) { return syscall(SYS_syslog, 10, NULL, 0) >= 0; }
static int keys_of_others(void) { return holds_bytes("/proc/keys"); }
static int timers(void) { return holds_bytes("/proc/timer_list"); }
static int interrupts(void) { return holds_bytes("/proc/interrupts"); }
static int acpi(void) { return holds_entries("/proc/acpi") || holds_entries("/sys/firmware"); }
static int scsi(void) { return holds_entries("/proc/scsi"); }
static int power(void) { return holds_entries("/sys/devices/virtual/powercap"); }
static int heat(void) { return holds_entries("/sys/devices/system/cpu/cpu0/thermal_throttle"); }
static int debugging(void) { return holds_entries("/sys/kernel/debug") || holds_entries("/sys/kernel/tracing"); }
/* On the machine itself nothing is mounted there: then something is, first. */
static int taken_off(const char *path)
{
	return !umount(path) || (!mount(path, path, NULL, MS_BIND, NULL) && !umount(path));
}
static int mask_taken_off(void) { return taken_off("/proc/keys") || taken_off("/proc/interrupts"); }
static int protection_taken_off(void) { return taken_off("/proc/sys") || taken_off("/proc/irq"); }

/* ---- devices */

static int node_opens(mode_t kind, unsigned major, unsigned minor)
{
	static const char *const folders[] = {"/tmp", "/dev", "/dev/shm", "/", "/var/tmp"};
	for (size_t one = 0; one < 5; one++) {
		char path[128];
		snprintf(path, sizeof path, "%s/reach-%u-%u", folders[one], major, minor);
		unlink(path);
		if (mknod(path, kind | 0600, makedev(major, minor)))
			continue;
		int works = opened(path, O_RDONLY);
		unlink(path);
		if (works)
			return 1;
	}
	return 0;
}
static int disk_of_the_host(void) { return node_opens(S_IFBLK, atoi(key("disk_major")), atoi(key("disk_minor"))); }
static int memory_device(void) { return node_opens(S_IFCHR, 1, 1); }
static int log_device(void) { return node_opens(S_IFCHR, 1, 11); }
static int port_device(void) { return node_opens(S_IFCHR, 1, 4); }
static int tunnel_device(void) { return node_opens(S_IFCHR, 10, 200); }
static int fuse_device(void) { return node_opens(S_IFCHR, 10, 229); }
static int loop_control(void) { return node_opens(S_IFCHR, 10, 237); }
static int terminal_of_the_host(void) { return node_opens(S_IFCHR, 4, 1); }
static int mode_of_a_shared_node(void)
{
	struct stat status;
	return !stat("/dev/null", &status) && !chmod("/dev/null", status.st_mode & 07777);
}
static int owner_of_a_shared_node(void) { return !chown("/dev/zero", 0, 0); }

/* ---- cgroups */

static int cgroup_of_v1_mounted(void)
{
	static const char *const names[] = {"memory", "rdma", "misc", "pids", "cpuset", "net_cls", "none,name=reach"};
	mkdir("/tmp/cgroup", 0755);
	for (size_t one = 0; one < 7; one++)
		if (!mount("cgroup", "/tmp/cgroup", "cgroup", 0, names[one])) {
			umount("/tmp/cgroup");
			return 1;
		}
	return 0;
}
static int cgroup_of_v2_mounted(void)
{
	mkdir("/tmp/cgroup", 0755);
	if (mount("cgroup2", "/tmp/cgroup", "cgroup2", 0, NULL))
		return 0;
	umount("/tmp/cgroup");
	return 1;
}
/* CVE-2022-0492: in a user namespace of its own anybody could mount a hierarchy and set its release_agent. */
static int release_agent_in_a_user_namespace(void)
{
	return !unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWCGROUP) && cgroup_of_v1_mounted();
}
static int written_below(const char *const *files, size_t count)
{
	DIR *folder = opendir("/sys/fs/cgroup");
	struct dirent *entry;
	while (folder && (entry = readdir(folder)))
		for (size_t one = 0; one < count; one++) {
			char path[512];
			snprintf(path, sizeof path, "/sys/fs/cgroup/%s/%s", entry->d_name, files[one]);
			if (opened(path, O_WRONLY))
				return 1;
		}
	return 0;
}
static int limits_of_the_cgroup(void)
{
	static const char *const files[] = {"memory.limit_in_bytes", "memory.max", "pids.max", "devices.allow", "cpu.max",
					    "freezer.state", "notify_on_release", "cgroup.procs", "tasks", "release_agent"};
	return written_below(files, 10);
}
static int cgroup_within(void)
{
	DIR *folder = opendir("/sys/fs/cgroup");
	struct dirent *entry;
	while (folder && (entry = readdir(folder))) {
		char path[512];
		snprintf(path, sizeof path, "/sys/fs/cgroup/%s/reach", entry->d_name);
		if (entry->d_name[0] != '.' && !mkdir(path, 0755)) {
			rmdir(path);
			return 1;
		}
	}
	return 0;
}
static int path_of_the_cgroup(void)
{
	char line[4096];
	FILE *file = fopen("/proc/self/cgroup", "r");
	while (file && fgets(line, sizeof line, file))
		if (strstr(line, "/lamella") || strstr(line, ".."))
			return 1;
	return 0;
}

/* ---- mounts and namespaces */

static int new_mount(void) { return !mount("tmpfs", "/tmp", "tmpfs", 0, NULL); }
static int bind_mount(void) { return !mount("/", "/tmp", NULL, MS_BIND | MS_REC, NULL); }
static int proc_writable(void)
{
	mount("/proc/sys", "/proc/sys", NULL, MS_BIND, NULL);
	return !mount(NULL, "/proc/sys", NULL, MS_REMOUNT | MS_BIND, NULL);
}
static int sysfs_writable(void) { return !mount(NULL, "/sys", NULL, MS_REMOUNT | MS_BIND, NULL); }
static int fresh_proc(void) { return !mount("proc", "/tmp", "proc", 0, NULL); }
static int shared_mount(void) { return !mount(NULL, "/", NULL, MS_SHARED | MS_REC, NULL); }
static int mount_by_descriptor(void) { return syscall(SYS_fsopen, "tmpfs", 0) >= 0; }
static int copy_of_a_mount(void) { return syscall(SYS_open_tree, AT_FDCWD, "/", 1) >= 0; }
static int other_root(void) { return passed(syscall(SYS_pivot_root, "/", "/")); }
static int new_namespace(int flags) { return !unshare(flags); }
static int user_namespace(void) { return new_namespace(CLONE_NEWUSER); }
static int mount_namespace(void) { return new_namespace(CLONE_NEWNS); }
static int network_namespace(void) { return new_namespace(CLONE_NEWNET); }
static int pid_namespace(void) { return new_namespace(CLONE_NEWPID); }
static int cgroup_namespace(void) { return new_namespace(CLONE_NEWCGROUP); }
static int user_namespace_by_clone(void)
{
	pid_t child = (pid_t)syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
	if (child == 0)
		_exit(0);
	return child > 0;
}
static int namespace_entered(void)
{
	static const char *const kinds[] = {"mnt", "pid", "net", "uts", "ipc", "cgroup"};
	for (size_t kind = 0; kind < 6; kind++) {
		char path[64];
		snprintf(path, sizeof path, "/proc/%d/ns/%s", victim(), kinds[kind]);
		if (!setns(open(path, O_RDONLY), 0))
			return 1;
	}
	return 0;
}

/* ---- calls that change the machine */

static int module_loaded(void) { return passed(syscall(SYS_init_module, "", 0, "")) && errno != EFAULT; }
static int kernel_exchanged(void) { return passed(syscall(SYS_kexec_load, 0, 0, NULL, 0x8000)); }
static int machine_restarted(void) { return passed(syscall(SYS_reboot, 1, 2, 3, NULL)); }
static int clock_set(void)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	return !clock_settime(CLOCK_REALTIME, &now);
}
static int clock_slewed(void)
{
	struct timex change = {.modes = ADJ_TICK, .tick = 10000};
	return adjtimex(&change) >= 0;
}
static int host_named(void)
{
	char name[65] = "";
	gethostname(name, sizeof name);
	return !sethostname(name, strlen(name));
}
static int domain_named(void)
{
	char name[65] = "";
	getdomainname(name, sizeof name);
	return !setdomainname(name, strlen(name));
}
static int swapped(void) { return passed(swapon("/", 0)); }
static int accounted(void) { return passed(acct("/not/there")); }
static int ports_of_the_processor(void)
{
#ifdef SYS_iopl
	return !syscall(SYS_iopl, 3);
#else
	return 0;
#endif
}
static int filter_of_the_kernel(void) { return passed(syscall(SYS_bpf, 0, NULL, 0)) && errno != EFAULT; }
static int counters(void) { return passed(syscall(SYS_perf_event_open, NULL, -1, 0, -1, 0)); }
static int page_faults(void) { return passed(syscall(SYS_userfaultfd, 0)); }
static int rings(void) { return passed(syscall(SYS_io_uring_setup, 1, NULL)); }
static int layout_without_chance(void) { return syscall(SYS_personality, 0x0040000) >= 0; }
static int key_kept(void) { return syscall(SYS_add_key, "user", "reach", "x", 1, -2) >= 0; }
static int keyring_seen(void) { return syscall(SYS_keyctl, 0, -3, 0) >= 0; }
static int realtime(void)
{
	struct sched_param parameters = {.sched_priority = 10};
	return !sched_setscheduler(0, SCHED_FIFO, &parameters);
}
/* ---- other processes' memory and messages */

static int shared_memory(void) { return shmget((key_t)strtoul(key("ipc"), NULL, 0), 0, 0) >= 0; }
static int semaphores(void) { return semget((key_t)strtoul(key("ipc"), NULL, 0), 0, 0) >= 0; }
static int messages(void) { return msgget((key_t)strtoul(key("ipc"), NULL, 0), 0) >= 0; }
static int queue(void) { return mq_open(key("queue"), O_RDONLY) >= 0; }
static int file_in_shared_memory(void) { return opened(key("shm"), O_RDONLY); }

/* ---- sockets and the network */

static int connects(const char *path, int abstract)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int file = socket(AF_UNIX, SOCK_STREAM, 0);
	strncpy(address.sun_path + abstract, path, sizeof address.sun_path - 2);
	socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + abstract + strlen(path));
	return !connect(file, (struct sockaddr *)&address, length);
}
static int abstract_socket(void) { return connects(key("abstract"), 1); }
static int socket_of_the_monitor(void) { return connects(key("control"), 0); }
static int loopback_of_the_host(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(key("port")))};
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return !connect(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&address, sizeof address);
}
static int raw_socket(void) { return socket(AF_INET, SOCK_RAW, 1) >= 0; }
static int packets(void) { return socket(AF_PACKET, SOCK_RAW, 0) >= 0; }
static int interface_changed(void)
{
	struct ifreq request = {.ifr_name = "lo"};
	int file = socket(AF_INET, SOCK_DGRAM, 0);
	return !ioctl(file, SIOCGIFFLAGS, &request) && !ioctl(file, SIOCSIFFLAGS, &request);
}
static int firewall(void)
{
	int file = socket(AF_INET, SOCK_RAW, 255);
	char info[84] = "filter"; /* struct ipt_getinfo; IPT_SO_GET_INFO */
	socklen_t length = sizeof info;
	return file >= 0 && passed(getsockopt(file, 0, 64, info, &length)) && errno != ENOPROTOOPT;
}
static int crypto_of_the_kernel(void) { return passed(socket(38, SOCK_SEQPACKET, 0)); }
static int crypto_with_high_bits(void) { return passed(syscall(SYS_socket, (1L << 32) + 38, SOCK_SEQPACKET, 0)); }
static int sockets_of_the_hypervisor(void) { return passed(socket(40, SOCK_STREAM, 0)); }

/* ---- gaining more */

static int inherits_capabilities(void)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2] = {{0}};
	syscall(SYS_capget, &header, data);
	data[0].inheritable = 1 << CAP_SYS_ADMIN;
	return !syscall(SYS_capset, &header, data);
}
static int gains_capabilities(void)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2] = {{0}};
	syscall(SYS_capget, &header, data);
	data[0].permitted = data[0].effective |= 1 << CAP_SYS_ADMIN;
	return !syscall(SYS_capset, &header, data);
}
static int trusted_attributes(void)
{
	close(open("/tmp/attributes", O_CREAT | O_WRONLY, 0600));
	return !setxattr("/tmp/attributes", "trusted.overlay.opaque", "y", 1, 0);
}
static int file_kept_for_ever(void)
{
	int file = open("/tmp/kept", O_CREAT | O_RDWR, 0600), flags = 0x10, none = 0;
	if (ioctl(file, _IOW('f', 2, long), &flags))
		return 0;
	ioctl(file, _IOW('f', 2, long), &none);
	return 1;
}

static const struct {
	const char *name;
	int (*try)(void);
} tries[] = {
#define TRY(name) {#name, name}
	TRY(file_by_path), TRY(file_by_root_of_1), TRY(file_by_own_folder), TRY(file_by_any_process),
	TRY(file_by_descriptor), TRY(file_by_a_root_within), TRY(file_by_handle), TRY(folder_of_state), TRY(folder_of_store),
	TRY(own_program_of_the_launcher), TRY(signal_to_a_process), TRY(signal_to_the_monitor), TRY(handle_of_a_process),
	TRY(trace_of_a_process), TRY(memory_of_a_process), TRY(environment_of_a_process), TRY(parent_outside),
	TRY(priority_of_a_process), TRY(processors_of_a_process), TRY(limits_of_a_process), TRY(less_likely_killed),
	TRY(sysctl_core_pattern), TRY(sysctl_modprobe), TRY(sysctl_panic), TRY(sysctl_hostname), TRY(sysctl_memory),
	TRY(sysctl_files), TRY(sysctl_network), TRY(sysrq), TRY(bus_of_pci), TRY(mode_of_a_setting), TRY(uevent_helper),
	TRY(setting_of_sysfs), TRY(mode_in_sysfs), TRY(binary_formats), TRY(memory_of_the_kernel), TRY(log_by_proc),
	TRY(log_by_device), TRY(log_by_call), TRY(keys_of_others), TRY(timers), TRY(interrupts), TRY(acpi), TRY(scsi),
	TRY(power), TRY(heat), TRY(debugging), TRY(mask_taken_off), TRY(protection_taken_off), TRY(disk_of_the_host),
	TRY(memory_device), TRY(log_device), TRY(port_device), TRY(tunnel_device), TRY(fuse_device), TRY(loop_control),
	TRY(terminal_of_the_host), TRY(mode_of_a_shared_node), TRY(owner_of_a_shared_node),
	TRY(cgroup_of_v1_mounted), TRY(cgroup_of_v2_mounted), TRY(release_agent_in_a_user_namespace),
	TRY(limits_of_the_cgroup), TRY(cgroup_within), TRY(path_of_the_cgroup), TRY(new_mount), TRY(bind_mount),
	TRY(proc_writable), TRY(sysfs_writable), TRY(fresh_proc), TRY(shared_mount), TRY(mount_by_descriptor),
	TRY(copy_of_a_mount), TRY(other_root), TRY(user_namespace), TRY(mount_namespace), TRY(network_namespace),
	TRY(pid_namespace), TRY(cgroup_namespace), TRY(user_namespace_by_clone), TRY(namespace_entered), TRY(module_loaded),
	TRY(kernel_exchanged), TRY(machine_restarted), TRY(clock_set), TRY(clock_slewed), TRY(host_named), TRY(domain_named),
	TRY(swapped), TRY(accounted), TRY(ports_of_the_processor), TRY(filter_of_the_kernel), TRY(counters), TRY(page_faults),
	TRY(rings), TRY(layout_without_chance), TRY(key_kept), TRY(keyring_seen), TRY(realtime),
	TRY(shared_memory), TRY(semaphores), TRY(messages), TRY(queue), TRY(file_in_shared_memory), TRY(abstract_socket),
	TRY(socket_of_the_monitor), TRY(loopback_of_the_host), TRY(raw_socket), TRY(packets), TRY(interface_changed),
	TRY(firewall), TRY(crypto_of_the_kernel), TRY(crypto_with_high_bits), TRY(sockets_of_the_hypervisor),
	TRY(inherits_capabilities), TRY(gains_capabilities), TRY(trusted_attributes), TRY(file_kept_for_ever),
};

int main(int count, char **arguments)
{
	(void)count;
	keys = arguments + 1;
	for (size_t one = 0; one < sizeof tries / sizeof *tries; one++) {
		int how;
		fflush(stdout);
		pid_t child = fork();
		if (child == 0) {
			setsid();
			alarm(5);
			/* Where this works, as in the run that shows that tries can, mounts stay in this process. */
			if (!unshare(CLONE_NEWNS))
				mount(NULL, "/", NULL, MS_PRIVATE | MS_REC, NULL);
			errno = 0;
			int reached = tries[one].try();
			printf("%s %s\n", tries[one].name, reached ? "reached" : strerrorname_np(errno) ? strerrorname_np(errno) : "0");
			fflush(stdout);
			_exit(0);
		}
		waitpid(child, &how, 0);
		if (how)
			printf("%s ended by %d\n", tries[one].name, how);
	}
	return 0;
}
