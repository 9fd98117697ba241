/* Where the lease socket of a mount is: part of libzcfs-client, not installed. */
#ifndef ZCFS_CLIENT_FIND_H
#define ZCFS_CLIENT_FIND_H

#include <sys/types.h>
#include <sys/un.h>

struct zcfs_place {
	char mountpoint[4096];
	uid_t owner; /* who mounted it */
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)]; /* of the socket */
};

/* The mount at `mountpoint`, and its socket. -ENODEV: no mount of zcfs; -EACCES: another user's;
 * -EOPNOTSUPP: its daemon has no pool; -ENOTCONN: it has no daemon. Sets the mount point and owner
 * whenever the mount was found. */
__attribute__((visibility("hidden"))) int zcfs_find(const char *mountpoint, struct zcfs_place *out);

#endif
