/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_ring.c - a TCMU ring whose memory is the input: mailbox, entries,
 * iovecs and CDBs.  Nothing outside of it may be touched, and the ring must
 * end.  Its first byte picks what TypeScript answers, and whether entries
 * change after they were taken.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../tcmu.h"

#define DISK (1u << 20)
#define MAP_BYTES 16384u     /* with a guard on either side */
#define AREA_AT 128u
#define AREA_BYTES 4096u

static uint8_t *map;
static int memory;
static struct obd_view *view;
static struct obd_upper *upper;

void *__real_mmap(void *at, size_t n, int prot, int flags, int fd, off_t off);
void *__wrap_mmap(void *at, size_t n, int prot, int flags, int fd, off_t off);

/* The ring's own mapping is a socket's: it gets the guarded memory. */
void *__wrap_mmap(void *at, size_t n, int prot, int flags, int fd, off_t off)
{
	if (fd >= 0 && n == MAP_BYTES && fd != memory)
		return map;
	return __real_mmap(at, n, prot, flags, fd, off);
}

static int memory_file(uint64_t size)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)size))
		abort();
	return fd;
}

/* The ring unmaps its memory: a new mapping for every input. */
static void map_memory(void)
{
	uint8_t *guard = __real_mmap(NULL, 3 * MAP_BYTES, PROT_NONE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (guard == MAP_FAILED)
		abort();
	map = __real_mmap(guard + MAP_BYTES, MAP_BYTES,
			  PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
			  memory, 0);
	if (map == MAP_FAILED)
		abort();
}

static void unmap_memory(void)
{
	munmap(map - MAP_BYTES, 3 * MAP_BYTES);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct obd_upper_report report;
	struct obd_index *index;

	(void)argc;
	(void)argv;
	memory = memory_file(MAP_BYTES);
	if (obd_engine_init(OBD_ABI, NULL) ||
	    obd_index_new(NULL, 0, &index) ||
	    obd_view_new(index, NULL, 0, DISK, &view) ||
	    obd_upper_open(OBD_UPPER_LOG, memory_file(4096),
			   memory_file(4096), DISK, &report, &upper))
		abort();
	return 0;
}

static void put32(uint32_t at, uint32_t v)
{
	memcpy(map + at, &v, sizeof(v));
}

/* What the input does not say: most mailboxes make sense. */
static void fill(const uint8_t *data, size_t size, uint8_t how)
{
	uint16_t version = 2;

	memset(map, 0, MAP_BYTES);
	memcpy(map, data, size < MAP_BYTES ? size : MAP_BYTES);
	memcpy(map, &version, sizeof(version));
	if (how & 1)
		return;
	put32(4, AREA_AT);
	put32(8, AREA_BYTES);
	put32(12, (map[12] | (uint32_t)map[13] << 8) % AREA_BYTES & ~7u);
	put32(64, (map[64] | (uint32_t)map[65] << 8) % AREA_BYTES & ~7u);
}

static void answer(struct obd_ring *ring, uint8_t how)
{
	struct obd_scsi_command commands[16];
	uint8_t list[600], sense[18] = { 0x70 };
	int32_t i, n;

	while ((n = obd_scsi_drain(commands, 16)) > 0)
		for (i = 0; i < n; i++) {
			obd_ring_data(ring, commands[i].tag, list,
				      sizeof(list), 0);
			if (how & 2)
				continue; /* the end of the ring answers */
			obd_ring_complete(ring, commands[i].tag,
					  how & 4 ? 2 : 0,
					  how & 4 ? sense : NULL, list,
					  sizeof(list));
		}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct obd_device *dev;
	struct obd_ring *ring;
	uint8_t how, zero[4] = { 0 };
	int pair[2];

	if (!size)
		return 0;
	how = *data;
	/* A ring that ends early closes its device. */
	if (obd_device_new(view, upper, DISK, 0, 1000, &dev))
		abort();
	map_memory();
	fill(data + 1, size - 1, how);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair))
		abort();
	if (obd_ring_new(pair[1], MAP_BYTES, dev, how & 8, 1, &ring)) {
		close(pair[1]);
		goto out;
	}
	if (how & 16) /* entries that change while they are used */
		memcpy(map + AREA_AT, data, size < AREA_BYTES ? size :
							       AREA_BYTES);
	answer(ring, how);
	if (write(pair[0], zero, sizeof(zero)) < 0)
		abort();
	answer(ring, how);
	obd_ring_close(ring, 0);
out:
	close(pair[0]);
	unmap_memory();
	obd_device_unref(dev);
	return 0;
}
