/* The public interface (zcfs.h): thin, and nothing that the data plane itself needs.
 *
 * Owns nothing; any thread.
 */
#include "zcfs.h"

#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "sys.h"

const char *zc_version(void)
{
	return ZC_VERSION;
}

const char *zc_opcode_name(uint32_t opcode)
{
	return opcode < FUSE_OPCODE_END ? zc_opinfo[opcode].name : NULL;
}

static void describe(const struct zc_req *r, const char *start, struct zc_message *m)
{
	unsigned flags = zc_opinfo[r->hdr.opcode].flags;
	const char *p = r->arg;

	memset(m, 0, sizeof(*m));
	m->opcode = r->hdr.opcode;
	m->names = flags & ZC_F_NAME2 ? 2 : flags & ZC_F_NAME1 ? 1 : 0;
	m->fixed_size = (size_t)(r->arg - (const char *)r->in);
	for (uint32_t i = 0; i < m->names; i++) {
		m->name_at[i] = (size_t)(p - start);
		m->name_len[i] = strlen(p);
		p += m->name_len[i] + 1;
	}
	m->data_at = (size_t)(p - start);
	m->data_len = r->arg_len - (size_t)(p - r->arg);
	m->ext_at = m->data_at + m->data_len;
	m->ext_len = r->ext_len;
}

int zc_message_parse(const void *message, size_t len, struct zc_message *out)
{
	struct zc_req r = {0};
	char *copy = malloc(len ? len : 1); /* the parser wants it aligned */

	if (!copy)
		return -ENOMEM;
	memcpy(copy, message, len);
	int err = zc_req_parse(copy, len, &r);
	if (!err)
		describe(&r, copy, out);
	free(copy);
	return err;
}

int zc_faults_arm(const char *call, int nth, int error, int always)
{
#ifdef ZC_FAULT_INJECTION
	zc_fault_arm(call, nth, error, always);
	return 0;
#else
	(void)call, (void)nth, (void)error, (void)always;
	return -ENOTSUP;
#endif
}

int zc_faults_seen(void)
{
#ifdef ZC_FAULT_INJECTION
	return zc_fault_seen();
#else
	return -ENOTSUP;
#endif
}
