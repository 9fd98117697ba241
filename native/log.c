/* The log: one line a message, on stderr or in the file of --log. Any thread. */
#include "internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "sys.h"

static int log_fd = STDERR_FILENO;

int zc_log_open(const char *path)
{
	int fd = ZC_SYSI("open", open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640));
	if (fd < 0)
		return fd;
	log_fd = fd;
	return 0;
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
