/* SPDX-License-Identifier: Apache-2.0
 *
 * socket.c - addresses of sockets, listening, a datagram to a supervisor.
 * No state, no locks: any thread.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "internal.h"

union any_address {
	struct sockaddr any;
	struct sockaddr_un un;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
};

int obd_unix_address(const char *text, struct sockaddr_un *out)
{
	size_t n = strlen(text);

	if (n < 2)
		return -EINVAL;
	if (n >= sizeof(out->sun_path))
		return -ENAMETOOLONG;
	memset(out, 0, sizeof(*out));
	out->sun_family = AF_UNIX;
	memcpy(out->sun_path, text, n);
	if (*text != '@')
		return sizeof(*out);
	out->sun_path[0] = 0;
	return (int)(offsetof(struct sockaddr_un, sun_path) + n);
}

int32_t obd_io_notify(const char *path, const char *text)
{
	struct sockaddr_un sa;
	int length = obd_unix_address(path, &sa);
	int fd, err = 0;

	if (length < 0)
		return length;
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (sendto(fd, text, strlen(text), MSG_NOSIGNAL,
		   (struct sockaddr *)&sa, (socklen_t)length) < 0)
		err = -errno;
	close(fd);
	return err;
}

static int parse_tcp(const char *text, union any_address *out)
{
	const char *colon = strrchr(text, ':');
	char host[INET6_ADDRSTRLEN + 2], *end;
	unsigned long port;
	size_t n;

	if (!colon || colon[1] < '0' || colon[1] > '9')
		return -EINVAL;
	port = strtoul(colon + 1, &end, 10);
	n = (size_t)(colon - text);
	if (*end || port > 65535 || n >= sizeof(host) || !n)
		return -EINVAL;
	memcpy(host, text, n);
	host[n] = 0;
	if (host[0] == '[' && host[n - 1] == ']') {
		host[n - 1] = 0;
		out->in6.sin6_family = AF_INET6;
		out->in6.sin6_port = htons((uint16_t)port);
		if (inet_pton(AF_INET6, host + 1, &out->in6.sin6_addr) != 1)
			return -EINVAL;
		return sizeof(out->in6);
	}
	out->in.sin_family = AF_INET;
	out->in.sin_port = htons((uint16_t)port);
	if (inet_pton(AF_INET, host, &out->in.sin_addr) != 1)
		return -EINVAL;
	return sizeof(out->in);
}

int32_t obd_io_listen(const char *address, int32_t backlog)
{
	union any_address to = { 0 };
	int len = -EINVAL, fd, one = 1, err;

	if (!strncmp(address, "unix:", 5))
		len = obd_unix_address(address + 5, &to.un);
	else if (!strncmp(address, "tcp:", 4))
		len = parse_tcp(address + 4, &to);
	if (len < 0)
		return len;
	fd = socket(to.any.sa_family,
		    SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (to.any.sa_family != AF_UNIX)
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (!bind(fd, &to.any, (socklen_t)len) && !listen(fd, backlog))
		return fd;
	err = -errno;
	close(fd);
	return err;
}

int32_t obd_io_port(int32_t fd)
{
	union any_address at = { 0 };
	socklen_t len = sizeof(at);

	if (getsockname(fd, &at.any, &len))
		return -errno;
	if (at.any.sa_family == AF_INET)
		return ntohs(at.in.sin_port);
	if (at.any.sa_family == AF_INET6)
		return ntohs(at.in6.sin6_port);
	return 0;
}
