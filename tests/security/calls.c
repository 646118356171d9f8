/* Makes system calls by number and prints what the kernel answered, one line each: calls ABI:NUMBER:ARG,ARG,...
 *
 * ABI is 64, x32 (the number with bit 30) or 32 (int 0x80, as programs of i386 do). Each call is made in a process of its own
 * without a terminal, so that one that works ends nothing else. The answer is the kernel's: below 0 an errno; "signal N"
 * for a call that killed its process. "calls status FIELD..." prints these fields of /proc/self/status instead.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static long call64(long number, const long *a)
{
	long answer;
	register long r10 __asm__("r10") = a[3], r8 __asm__("r8") = a[4], r9 __asm__("r9") = a[5];
	__asm__ volatile("syscall"
			 : "=a"(answer)
			 : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return answer;
}

static long call32(long number, const long *a)
{
	long answer;
	__asm__ volatile("int $0x80"
			 : "=a"(answer)
			 : "a"(number), "b"(a[0]), "c"(a[1]), "d"(a[2]), "S"(a[3]), "D"(a[4])
			 : "r8", "r9", "r10", "r11", "memory");
	return (int)answer;
}

static void status(int count, char **fields)
{
	char line[4096];
	FILE *file = fopen("/proc/self/status", "r");
	while (file && fgets(line, sizeof line, file))
		for (int i = 0; i < count; i++)
			if (!strncmp(line, fields[i], strlen(fields[i])))
				fputs(line, stdout);
}

int main(int count, char **arguments)
{
	if (count > 1 && !strcmp(arguments[1], "status")) {
		status(count - 2, arguments + 2);
		return 0;
	}
	long *answer = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (int i = 1; i < count; i++) {
		char *text = strchr(arguments[i], ':');
		long number = strtol(text + 1, &text, 0), values[6] = {0};
		for (int position = 0; position < 6 && *text && text[1]; position++)
			values[position] = (long)strtoul(text + 1, &text, 0);
		int how;
		pid_t child = fork();
		if (child == 0) {
			setsid();
			if (!strncmp(arguments[i], "32", 2))
				*answer = call32(number, values);
			else
				*answer = call64(number | (arguments[i][0] == 'x' ? 0x40000000 : 0), values);
			_exit(0);
		}
		waitpid(child, &how, 0);
		if (WIFSIGNALED(how))
			printf("signal %d\n", WTERMSIG(how));
		else
			printf("%ld\n", *answer);
		fflush(stdout);
	}
	return 0;
}
