/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_nbd.c - negotiation and requests from outside: the input is what one
 * client sends to a server with a writable and a read-only export.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "../internal.h"

#define DISK (1u << 20)

static struct sockaddr_un address;

static int memory_file(void)
{
	int fd = memfd_create("layer", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, 4096))
		abort();
	return fd;
}

static int listen_abstract(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
	socklen_t length = sizeof(address);

	address.sun_family = AF_UNIX;
	if (bind(fd, (struct sockaddr *)&address, sizeof(sa_family_t)) ||
	    getsockname(fd, (struct sockaddr *)&address, &length) ||
	    listen(fd, 8))
		abort();
	return fd;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct obd_upper_report report;
	struct obd_device *disk, *zeros;
	struct obd_index *index;
	struct obd_upper *upper;
	struct obd_view *view;
	struct obd_nbd *nbd;

	(void)argc;
	(void)argv;
	if (obd_engine_init(OBD_ABI, NULL) ||
	    obd_index_new(NULL, 0, &index) ||
	    obd_view_new(index, NULL, 0, DISK, &view) ||
	    obd_upper_open(OBD_UPPER_LOG, memory_file(), memory_file(), DISK,
			   &report, &upper) ||
	    obd_device_new(view, upper, DISK, 0, 1000, &disk) ||
	    obd_device_new(view, NULL, DISK, OBD_DEVICE_READONLY, 1000,
			   &zeros) ||
	    obd_nbd_new(listen_abstract(), &nbd) ||
	    obd_nbd_add(nbd, "disk", "writable", disk) ||
	    obd_nbd_add(nbd, "zeros", "", zeros) || obd_nbd_start(nbd))
		abort();
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	char answer[4096];

	if (size > 1 << 16 ||
	    connect(fd, (struct sockaddr *)&address, sizeof(sa_family_t) + 6))
		goto out;
	/* Fits the socket's buffer, so that nobody waits for nobody. */
	if (send(fd, data, size, MSG_NOSIGNAL) < 0)
		goto out;
	shutdown(fd, SHUT_WR);
	while (recv(fd, answer, sizeof(answer), 0) > 0)
		;
out:
	close(fd);
	return 0;
}
