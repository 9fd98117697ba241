/* The log: one line a message on descriptor 2, which may be a file. Any thread. */
#include "internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int log_fd = STDERR_FILENO;

void zc_log_to(int fd)
{
	int old = log_fd;
	log_fd = fd;
	if (old > STDERR_FILENO)
		close(old);
}

int zc_log_fd(void)
{
	return log_fd;
}

void zc_log(const char *fmt, ...)
{
	char line[1024] = "zcfsd: ";
	size_t start = strlen(line);
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(line + start, sizeof(line) - start - 1, fmt, ap);
	va_end(ap);
	if (n < 0)
		return;
	size_t len = start + (size_t)n;
	if (len > sizeof(line) - 2)
		len = sizeof(line) - 2;
	line[len++] = '\n';
	if (write(log_fd, line, len) < 0)
		return; /* nowhere to complain */
}
