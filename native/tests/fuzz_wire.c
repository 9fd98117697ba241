/* Fuzz target: any bytes as a message, and as the parts that FUSE over io_uring gives.
 *
 * With a fuzzer: clang -fsanitize=fuzzer,address,undefined. Otherwise, with -DFUZZ_REPLAY, a
 * program that replays the files it is given.
 *
 * What is accepted is then read the way handlers read it, without a check of their own.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void require(bool cond)
{
	if (!cond)
		abort();
}

static void use_names(const struct zc_req *r)
{
	unsigned flags = zc_opinfo[r->hdr.opcode].flags;
	const char *end = r->arg + r->arg_len;

	if (flags & (ZC_F_NAME1 | ZC_F_NAME2))
		require(zc_req_name2(r) <= end);
	if (flags & ZC_F_NAME2)
		require(zc_req_name2(r) + strlen(zc_req_name2(r)) + 1 == end);
	if (r->hdr.opcode == FUSE_LOOKUP || r->hdr.opcode == FUSE_RENAME)
		require(!strchr(r->arg, '/') && strlen(r->arg) <= 255 && strcmp(r->arg, ".."));
}

static void use_data(const struct zc_req *r)
{
	unsigned sum = 0;

	for (size_t i = 0; i < r->arg_len; i++)
		sum += (unsigned char)r->arg[i];
	if (r->hdr.opcode == FUSE_BATCH_FORGET) {
		const struct fuse_batch_forget_in *in = r->in;
		require(r->arg_len == in->count * sizeof(struct fuse_forget_one));
	}
	volatile unsigned sink = sum;
	(void)sink;
}

static void use_groups(const struct zc_req *r)
{
	struct fuse_ext_header h;
	uint32_t count, group;

	for (const char *p = r->ext, *end = p + r->ext_len; p && p < end; p += h.size) {
		memcpy(&h, p, sizeof(h));
		if (h.type != FUSE_EXT_GROUPS)
			continue;
		memcpy(&count, p + sizeof(h), sizeof(count));
		for (uint32_t i = 0; i < count; i++)
			memcpy(&group, p + sizeof(h) + 4 + 4 * (size_t)i, sizeof(group));
	}
}

static void use(const struct zc_req *r)
{
	use_names(r);
	use_data(r);
	use_groups(r);
}

static void *copy_of(const void *p, size_t len)
{
	void *copy = calloc(1, len ? len : 1);

	require(copy != NULL);
	if (len)
		memcpy(copy, p, len);
	return copy;
}

static void as_message(const uint8_t *data, size_t len)
{
	void *msg = copy_of(data, len);
	struct zc_req r = {0};

	if (!zc_req_parse(msg, len, &r))
		use(&r);
	if (len >= sizeof(r.hdr)) {
		/* the length that the kernel would have written, so that the fuzzer gets past it */
		uint32_t own = (uint32_t)len;
		memcpy(msg, &own, sizeof(own));
		memset(&r, 0, sizeof(r));
		if (!zc_req_parse(msg, len, &r))
			use(&r);
	}
	free(msg);
}

static void as_parts(const uint8_t *data, size_t len)
{
	_Alignas(8) char op_in[128] = {0};
	struct zc_req r = {.in = op_in};

	if (len < sizeof(r.hdr) + sizeof(op_in))
		return;
	memcpy(&r.hdr, data, sizeof(r.hdr));
	memcpy(op_in, data + sizeof(r.hdr), sizeof(op_in));
	r.arg_len = len - sizeof(r.hdr) - sizeof(op_in);
	char *arg = copy_of(data + sizeof(r.hdr) + sizeof(op_in), r.arg_len);
	r.arg = arg;
	if (!zc_req_check(&r))
		use(&r);
	free(arg);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	as_message(data, len);
	as_parts(data, len);
	return 0;
}

#ifdef FUZZ_REPLAY
int main(int argc, char **argv)
{
	static uint8_t buf[1 << 20];

	for (int i = 1; i < argc; i++) {
		FILE *f = fopen(argv[i], "rb");
		if (!f) {
			perror(argv[i]);
			return 1;
		}
		size_t len = fread(buf, 1, sizeof(buf), f);
		fclose(f);
		LLVMFuzzerTestOneInput(buf, len);
	}
	return 0;
}
#endif
