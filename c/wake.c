/* SPDX-License-Identifier: Apache-2.0
 *
 * wake.c - how JavaScript learns that a queue of the library has something
 * for it: a byte on a unix stream socket, which its event loop reads.
 */
#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "internal.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int listener = -1; /* under lock */

static int connect_unix(const char *path)
{
	struct sockaddr_un sa;
	int length = obd_unix_address(path, &sa);
	int fd, err;

	if (length < 0)
		return length;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&sa, (socklen_t)length)) {
		err = -errno;
		close(fd);
		return err;
	}
	return fd;
}

/* A full socket buffer means that it has bytes to read already. */
static void wake_locked(void)
{
	if (listener >= 0)
		send(listener, "w", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

void obd_wake(void)
{
	pthread_mutex_lock(&lock);
	wake_locked();
	pthread_mutex_unlock(&lock);
}

int32_t obd_wake_connect(const char *path)
{
	int fd = path ? connect_unix(path) : -1;

	if (path && fd < 0)
		return fd;
	pthread_mutex_lock(&lock);
	if (listener >= 0)
		close(listener);
	listener = fd;
	/* What came before the listener did. */
	wake_locked();
	pthread_mutex_unlock(&lock);
	return 0;
}
