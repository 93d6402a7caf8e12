/* SPDX-License-Identifier: Apache-2.0
 *
 * test_ring.c - a TCMU ring against a kernel made of a mapped file and a
 * socket: every command is answered once, whatever is in it.
 */
#include "parts.h"

#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "../tcmu.h"

#define AREA_AT 128u
#define AREA_BYTES 16384u
#define DATA_AT (AREA_AT + AREA_BYTES + 32)
#define MAP_BYTES (1u << 20)
#define DISK (8u << 20)

/* The library maps and polls one descriptor, as /dev/uioN; a socket cannot
 * be mapped, so mmap() below gives it the file's memory. */
static struct kernel {
	uint8_t *map;
	int fd, lib_fd, memory;
	uint32_t head;
	struct obd_device *dev;
	struct obd_ring *ring;
	uint16_t answers[65536];     /* how often each id was answered */
	uint8_t status[65536], sense[65536][18];
	uint32_t read_len[65536], uflags[65536];
	uint32_t seen;               /* the tail that was looked at last */
} k;

void *__real_mmap(void *at, size_t n, int prot, int flags, int fd, off_t off);
void *__wrap_mmap(void *at, size_t n, int prot, int flags, int fd, off_t off);
void *__wrap_mmap(void *at, size_t n, int prot, int flags, int fd, off_t off)
{
	if (fd >= 0 && fd == k.lib_fd)
		fd = k.memory;
	return __real_mmap(at, n, prot, flags, fd, off);
}

static _Atomic bool no_memory;

void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size)
{
	return no_memory ? NULL : __real_calloc(n, size);
}

static void put16(uint32_t at, uint16_t v)
{
	memcpy(k.map + at, &v, 2);
}

static void put32(uint32_t at, uint32_t v)
{
	memcpy(k.map + at, &v, 4);
}

static uint32_t get32(uint32_t at)
{
	return __atomic_load_n((uint32_t *)(void *)(k.map + at),
			       __ATOMIC_ACQUIRE);
}

static void kernel_new(uint32_t mailbox_flags, struct obd_device *dev,
		       uint32_t start)
{
	int pair[2];

	memset(&k, 0, sizeof(k));
	k.memory = memfd_create("ring", MFD_CLOEXEC);
	MUST(k.memory >= 0 && !ftruncate(k.memory, MAP_BYTES));
	k.lib_fd = -1;
	k.map = __real_mmap(NULL, MAP_BYTES, PROT_READ | PROT_WRITE,
			    MAP_SHARED, k.memory, 0);
	MUST(k.map != MAP_FAILED);
	MUST(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair));
	k.fd = pair[0];
	k.lib_fd = pair[1];
	put16(0, 2);
	put16(2, (uint16_t)mailbox_flags);
	put32(4, AREA_AT);
	put32(8, AREA_BYTES);
	k.head = k.seen = start;
	put32(12, start);
	put32(64, start);
	k.dev = dev;
}

static void kernel_start(uint32_t flags)
{
	CHECK_EQ(obd_ring_new(k.lib_fd, MAP_BYTES, k.dev, flags, 5, &k.ring),
		 0);
}

static void kernel_end(void)
{
	CHECK_EQ(obd_ring_close(k.ring, 1000), 0);
	CHECK_EQ(get32(64), k.head);
	obd_device_unref(k.dev);
	munmap(k.map, MAP_BYTES);
	close(k.memory);
	close(k.fd);
}

static uint32_t room_to_end(void)
{
	return AREA_BYTES - k.head;
}

static void move_head(uint32_t n)
{
	k.head = (k.head + n) % AREA_BYTES;
	__atomic_store_n((uint32_t *)(void *)(k.map + 12), k.head,
			 __ATOMIC_RELEASE);
}

static void kick(void)
{
	uint32_t one = 1;

	MUST(write(k.fd, &one, 4) == 4);
}

static void pad(uint32_t op, uint32_t n)
{
	memset(k.map + AREA_AT + k.head, 0, 8);
	put32(AREA_AT + k.head, n | op);
	move_head(n);
}

struct sent {
	uint16_t id;
	const uint8_t *cdb;
	uint32_t cdb_bytes;
	const uint32_t *iov;         /* pairs: offset in the data, length */
	uint32_t iovs;
	uint32_t extra;              /* bytes the entry is longer */
};

/* Puts a command on the ring, behind a pad when it does not fit. */
static void put_command(struct sent s)
{
	uint32_t at, n = 48 + 16 * s.iovs + (s.cdb_bytes + 7) / 8 * 8, i;
	uint64_t v;

	n += s.extra;
	if (n < 112)
		n = 112;
	if (n > room_to_end())
		pad(0, room_to_end());
	at = AREA_AT + k.head;
	memset(k.map + at, 0, n);
	put32(at, n | 1);
	put16(at + 4, s.id);
	put32(at + 8, s.iovs);
	v = at + 48 + 16 * s.iovs;
	memcpy(k.map + at + 24, &v, 8);
	for (i = 0; i < s.iovs; i++) {
		v = DATA_AT + s.iov[2 * i];
		memcpy(k.map + at + 48 + 16 * i, &v, 8);
		v = s.iov[2 * i + 1];
		memcpy(k.map + at + 56 + 16 * i, &v, 8);
	}
	memcpy(k.map + at + 48 + 16 * s.iovs, s.cdb, s.cdb_bytes);
	move_head(n);
}

/* Takes what was answered off the ring, as the kernel does. */
static void take_answers(void)
{
	uint32_t tail = get32(64), at, op, n;
	uint16_t id;

	while (k.seen != tail) {
		at = AREA_AT + k.seen;
		op = get32(at) & 7;
		n = get32(at) & ~7u;
		MUST(n >= 8 && n <= AREA_BYTES - k.seen);
		memcpy(&id, k.map + at + 4, 2);
		if (op == 1) {
			k.answers[id]++;
			k.status[id] = k.map[at + 8];
			k.uflags[id] = k.map[at + 7];
			k.read_len[id] = get32(at + 12);
			memcpy(k.sense[id], k.map + at + 16, 18);
		}
		k.seen = (k.seen + n) % AREA_BYTES;
	}
}

/* Waits until the library has answered up to the head. */
static void all_answered(void)
{
	struct pollfd p = { k.fd, POLLIN, 0 };
	char buf[256];
	int i;

	for (i = 0; i < 500 && get32(64) != k.head; i++)
		if (poll(&p, 1, 20) > 0)
			(void)!read(k.fd, buf, sizeof(buf));
	CHECK_EQ(get32(64), k.head);
	take_answers();
}

/* One command alone; its status. */
static uint8_t run(const uint8_t *cdb, uint32_t cdb_bytes,
		   const uint32_t *iov, uint32_t iovs)
{
	static uint16_t id;

	id++;
	k.answers[id] = 0;
	put_command((struct sent){ id, cdb, cdb_bytes, iov, iovs, 0 });
	kick();
	all_answered();
	CHECK_EQ(k.answers[id], 1);
	memmove(k.sense[0], k.sense[id], 18);
	k.read_len[0] = k.read_len[id];
	k.uflags[0] = k.uflags[id];
	return k.status[id];
}

static uint32_t sense_code(void)
{
	CHECK_EQ(k.sense[0][0], 0x70);
	CHECK_EQ(k.sense[0][7], 10);
	return (uint32_t)k.sense[0][2] << 16 | k.sense[0][12] << 8 |
	       k.sense[0][13];
}

/* A 16-byte CDB. */
static const uint8_t *cdb16(uint8_t opcode, uint8_t byte1, uint64_t lba,
			    uint32_t count)
{
	static uint8_t cdb[16];
	int i;

	memset(cdb, 0, 16);
	cdb[0] = opcode;
	cdb[1] = byte1;
	for (i = 0; i < 8; i++)
		cdb[2 + i] = (uint8_t)(lba >> (56 - 8 * i));
	for (i = 0; i < 4; i++)
		cdb[10 + i] = (uint8_t)(count >> (24 - 8 * i));
	return cdb;
}

static struct obd_device *disk(bool writable)
{
	struct obd_upper_report report;
	struct obd_upper *upper = NULL;

	if (writable)
		MUST(!obd_upper_open(OBD_UPPER_LOG, layer_file(0),
				     layer_file(0), DISK, &report, &upper));
	return device_of(empty_view(DISK), upper, DISK, 60000);
}

#define OOOC 1u
#define READ_LEN 2u
static const uint32_t page[] = { 0, 4096 };

/* ---- reads and writes -------------------------------------------------- */

static void what_is_written_is_read(void)
{
	static const uint32_t odd[] = { 100, 700, 5000, 1, 9001, 3395 };
	uint8_t want[4096];
	uint32_t i;

	kernel_new(OOOC | READ_LEN, disk(true), 0);
	kernel_start(OBD_RING_WRITE_CACHE);
	for (i = 0; i < 4096; i++)
		want[i] = k.map[DATA_AT + i] = (uint8_t)(i * 7 + i / 256);
	CHECK_EQ(run(cdb16(0x8a, 0x08, 11, 8), 16, page, 1), SAM_GOOD);
	memset(k.map + DATA_AT, 0xaa, 20000);
	CHECK_EQ(run(cdb16(0x88, 0, 11, 8), 16, odd, 3), SAM_GOOD);
	CHECK(!memcmp(k.map + DATA_AT + 100, want, 700));
	CHECK(!memcmp(k.map + DATA_AT + 5000, want + 700, 1));
	CHECK(!memcmp(k.map + DATA_AT + 9001, want + 701, 3395));
	CHECK_EQ(k.map[DATA_AT + 99], 0xaa);
	CHECK_EQ(k.map[DATA_AT + 800], 0xaa);
	CHECK_EQ(k.uflags[0] & 2, 0);
	CHECK_EQ(run((uint8_t[10]){ 0x35 }, 10, NULL, 0), SAM_GOOD);
	kernel_end();
}

static void each_length_of_read_counts_its_own_way(void)
{
	static const uint32_t big[] = { 0, 256 * 512 };
	static const uint8_t read6[6] = { 0x08, 0, 0, 3, 0, 0 };
	static const uint8_t read10[10] = { 0x28, 0, 0, 0, 0, 3, 0, 1, 0, 0 };
	static const uint8_t read12[12] = { 0xa8, 0, 0, 0, 0, 3, 0, 0, 1, 0 };

	kernel_new(OOOC | READ_LEN, disk(false), 0);
	kernel_start(0);
	k.map[DATA_AT + 256 * 512 - 1] = 1;
	CHECK_EQ(run(read6, 6, big, 1), SAM_GOOD); /* 0 is 256 blocks */
	CHECK_EQ(k.map[DATA_AT + 256 * 512 - 1], 0);
	k.map[DATA_AT + 256 * 512 - 1] = 1;
	CHECK_EQ(run(read10, 10, big, 1), SAM_GOOD);
	CHECK_EQ(k.map[DATA_AT + 256 * 512 - 1], 0);
	k.map[DATA_AT + 256 * 512 - 1] = 1;
	CHECK_EQ(run(read12, 12, big, 1), SAM_GOOD);
	CHECK_EQ(k.map[DATA_AT + 256 * 512 - 1], 0);
	kernel_end();
}

static void lengths_that_disagree_move_the_smaller(void)
{
	kernel_new(OOOC | READ_LEN, disk(true), 0);
	kernel_start(0);
	memset(k.map + DATA_AT, 0xbb, 8192);
	CHECK_EQ(run(cdb16(0x88, 0, 0, 2), 16, page, 1), SAM_GOOD);
	CHECK_EQ(k.map[DATA_AT + 1023], 0);
	CHECK_EQ(k.map[DATA_AT + 1024], 0xbb);
	CHECK_EQ(k.uflags[0] & 2, 2);
	CHECK_EQ(k.read_len[0], 1024);
	CHECK_EQ(run(cdb16(0x88, 0, 0, 16), 16, page, 1), SAM_GOOD);
	CHECK_EQ(k.map[DATA_AT + 4096], 0xbb);
	CHECK_EQ(run(cdb16(0x88, 0, 0, 0), 16, NULL, 0), SAM_GOOD);
	CHECK_EQ(run(cdb16(0x8a, 0, 0, 8), 16, (uint32_t[]){ 0, 100 }, 1),
		 SAM_CHECK_CONDITION);
	CHECK_EQ(sense_code(), SENSE_CDB_FIELD);
	kernel_end();
}

static void nothing_past_the_end_is_touched(void)
{
	uint64_t last = DISK / 512;

	kernel_new(OOOC, disk(true), 0);
	kernel_start(0);
	CHECK_EQ(run(cdb16(0x88, 0, last - 8, 8), 16, page, 1), SAM_GOOD);
	CHECK_EQ(run(cdb16(0x88, 0, last - 7, 8), 16, page, 1),
		 SAM_CHECK_CONDITION);
	CHECK_EQ(sense_code(), SENSE_RANGE);
	CHECK_EQ(run(cdb16(0x8a, 0, UINT64_MAX, 8), 16, page, 1),
		 SAM_CHECK_CONDITION);
	CHECK_EQ(sense_code(), SENSE_RANGE);
	CHECK_EQ(run(cdb16(0x93, 8, last, 1), 16, page, 1),
		 SAM_CHECK_CONDITION);
	CHECK_EQ(sense_code(), SENSE_RANGE);
	kernel_end();
}

static void a_read_only_disk_refuses_changes_and_needs_no_flush(void)
{
	static const uint8_t list[24] = { 0, 22, 0, 16, [8 + 11] = 4 };
	static const uint8_t unmap[10] = { 0x42, [8] = sizeof(list) };

	kernel_new(OOOC, disk(false), 0);
	kernel_start(OBD_RING_WRITE_CACHE);
	CHECK_EQ(run(cdb16(0x8a, 0, 0, 8), 16, page, 1), SAM_CHECK_CONDITION);
	CHECK_EQ(sense_code(), SENSE_READ_ONLY);
	CHECK_EQ(run(cdb16(0x93, 8, 0, 8), 16, page, 1), SAM_CHECK_CONDITION);
	CHECK_EQ(sense_code(), SENSE_READ_ONLY);
	memcpy(k.map + DATA_AT, list, sizeof(list));
	CHECK_EQ(run(unmap, 10, (uint32_t[]){ 0, sizeof(list) }, 1),
		 SAM_CHECK_CONDITION);
	CHECK_EQ(sense_code(), SENSE_READ_ONLY);
	CHECK_EQ(run(cdb16(0x91, 0, 0, 0), 16, NULL, 0), SAM_GOOD);
	kernel_end();
}

/* ---- ranges ------------------------------------------------------------ */

static void write_same_repeats_its_block(void)
{
	uint32_t i;

	kernel_new(OOOC, disk(true), 0);
	kernel_start(0);
	for (i = 0; i < 512; i++)
		k.map[DATA_AT + i] = (uint8_t)(i + 1);
	CHECK_EQ(run(cdb16(0x93, 0, 3, 300), 16, (uint32_t[]){ 0, 512 }, 1),
		 SAM_GOOD);
	CHECK_EQ(run(cdb16(0x88, 0, 302, 1), 16,
		     (uint32_t[]){ 4096, 512 }, 1), SAM_GOOD);
	CHECK(!memcmp(k.map + DATA_AT, k.map + DATA_AT + 4096, 512));
	CHECK_EQ(run(cdb16(0x93, 8, 3, 299), 16, (uint32_t[]){ 0, 512 }, 1),
		 SAM_GOOD);
	CHECK_EQ(run(cdb16(0x88, 0, 301, 2), 16,
		     (uint32_t[]){ 4096, 1024 }, 1), SAM_GOOD);
	CHECK_EQ(k.map[DATA_AT + 4096], 0);
	CHECK_EQ(k.map[DATA_AT + 4096 + 512], 1);
	CHECK_EQ(run(cdb16(0x93, 1, 302, 1), 16, NULL, 0), SAM_GOOD);
	CHECK_EQ(run(cdb16(0x88, 0, 302, 1), 16,
		     (uint32_t[]){ 4096, 512 }, 1), SAM_GOOD);
	CHECK_EQ(k.map[DATA_AT + 4096], 0);
	CHECK_EQ(run(cdb16(0x93, 0, 3, 0), 16, (uint32_t[]){ 0, 512 }, 1),
		 SAM_CHECK_CONDITION);
	CHECK_EQ(sense_code(), SENSE_CDB_FIELD);
	CHECK_EQ(run(cdb16(0x93, 0, 3, 1), 16, NULL, 0),
		 SAM_CHECK_CONDITION);
	CHECK_EQ(sense_code(), SENSE_CDB_FIELD);
	kernel_end();
}

static void unmap_checks_every_range_before_the_first(void)
{
	uint8_t list[40] = { 0, 38, 0, 32 };
	const uint8_t cdb[10] = { 0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0 };

	kernel_new(OOOC, disk(true), 0);
	kernel_start(0);
	memset(k.map + DATA_AT, 9, 4096);
	CHECK_EQ(run(cdb16(0x8a, 0, 0, 8), 16, page, 1), SAM_GOOD);
	list[8 + 11] = 4;               /* 0, 4 blocks */
	list[24 + 5] = 1;               /* far behind the end */
	list[24 + 11] = 4;
	memcpy(k.map + DATA_AT, list, 40);
	CHECK_EQ(run(cdb, 10, (uint32_t[]){ 0, 40 }, 1),
		 SAM_CHECK_CONDITION);
	CHECK_EQ(sense_code(), SENSE_RANGE);
	CHECK_EQ(run(cdb16(0x88, 0, 0, 8), 16, page, 1), SAM_GOOD);
	CHECK_EQ(k.map[DATA_AT], 9);
	list[24 + 5] = 0;
	list[24 + 7] = 6;               /* 6, 2 blocks */
	list[24 + 11] = 2;
	memcpy(k.map + DATA_AT, list, 40);
	CHECK_EQ(run(cdb, 10, (uint32_t[]){ 0, 40 }, 1), SAM_GOOD);
	CHECK_EQ(run(cdb16(0x88, 0, 0, 8), 16, page, 1), SAM_GOOD);
	CHECK_EQ(k.map[DATA_AT], 0);
	CHECK_EQ(k.map[DATA_AT + 4 * 512], 9);
	CHECK_EQ(k.map[DATA_AT + 6 * 512], 0);
	memcpy(k.map + DATA_AT, list, 40);
	CHECK_EQ(run(cdb, 10, (uint32_t[]){ 0, 20 }, 1),
		 SAM_CHECK_CONDITION); /* the list is cut */
	CHECK_EQ(sense_code(), SENSE_LIST_LENGTH);
	CHECK_EQ(run((uint8_t[10]){ 0x42 }, 10, NULL, 0), SAM_GOOD);
	kernel_end();
}

/* A disk whose data is elsewhere, and that has parked requests. */
static struct obd_source *remote_disk(void)
{
	struct obd_upper_report report;
	struct obd_source *src;
	struct obd_upper *upper;
	int fd;

	src = remote_source(1, DISK, 65536, &fd);
	obd_source_ref(src);
	MUST(!obd_upper_open(OBD_UPPER_SPARSE, layer_file(4096 + DISK), -1,
			     DISK, &report, &upper));
	kernel_new(OOOC, device_of(flat_view(src), upper, DISK, 60000), 0);
	kernel_start(0);
	return src;
}

/* More than there are threads to wait with: what comes for them is taken all
 * the same, by every disk. */
static void changes_that_wait_for_data_hold_no_thread(void)
{
	struct obd_source *src = remote_disk();
	uint32_t i;

	for (i = 1; i <= 48; i++) /* none is a whole block of the host */
		put_command((struct sent){ (uint16_t)i,
			cdb16(0x93, i % 2 ? 8 : 0, 128 * i + 1, 2), 16,
			(uint32_t[]){ 0, 512 }, 1, 0 });
	kick();
	wait_parked(k.dev, 48);
	CHECK_EQ(obd_source_fill(src, 0, DISK / 65536, 0), 0);
	all_answered();
	for (i = 1; i <= 48; i++)
		CHECK_EQ(k.answers[i] << 8 | k.status[i], 1 << 8 | SAM_GOOD);
	kernel_end();
	obd_source_unref(src);
}

static uint32_t drained(struct obd_scsi_command *out, uint32_t want)
{
	uint32_t n = 0, i;

	for (i = 0; i < 500 && n < want; i++) {
		n += (uint32_t)obd_scsi_drain(out + n, want - n);
		if (n < want)
			usleep(2000);
	}
	return n;
}

/* As many writes as there can be to a disk that hangs: another disk reads
 * what was not there. */
static void writes_that_hang_stop_no_read_of_another_disk(void)
{
	struct obd_device *other;
	struct obd_source *src;
	struct reader r;
	uint32_t i;
	int fd;

	src = remote_source(2, DISK, 65536, &fd);
	obd_source_ref(src);
	other = device_of(flat_view(src), NULL, DISK, 10000);
	kernel_new(OOOC, disk(true), 0);
	kernel_start(0);
	CHECK_EQ(obd_io_fault(OBD_IO_PWRITE, 1, OBD_IO_HANG, 100), 0);
	for (i = 1; i <= 48; i++)
		put_command((struct sent){ (uint16_t)i,
			cdb16(0x8a, 0, 8 * i, 8), 16, page, 1, 0 });
	kick();
	sleep_ms(50);
	reader_start(&r, other, 0, 4096);
	wait_parked(other, 1);
	CHECK_EQ(obd_source_fill(src, 0, 1, 0), 0);
	CHECK_EQ(reader_join(&r), 0);
	free(r.buf);
	CHECK_EQ(k.answers[1], 0);
	CHECK_EQ(obd_io_fault(OBD_IO_PWRITE, 0, 0, 0), 0);
	all_answered();
	for (i = 1; i <= 48; i++)
		CHECK_EQ(k.answers[i] << 8 | k.status[i], 1 << 8 | SAM_GOOD);
	kernel_end();
	obd_device_unref(other);
	obd_source_unref(src);
	close(fd);
}

static void who_compares_is_asked_when_the_data_is_there(void)
{
	struct obd_source *src = remote_disk();
	struct obd_scsi_command c[4];
	uint8_t caw[16], data[512];
	uint32_t i;

	memcpy(caw, cdb16(0x89, 0, 300, 0), 16);
	caw[13] = 1;
	memset(k.map + DATA_AT, 7, 1024);
	put_command((struct sent){ 1, cdb16(0x8f, 2, 100, 2), 16,
				   (uint32_t[]){ 0, 1024 }, 1, 0 });
	put_command((struct sent){ 2, caw, 16, (uint32_t[]){ 0, 1024 }, 1,
				   0 });
	kick();
	wait_parked(k.dev, 2);
	/* Nothing to wait for: no comparison, past the end, no block. */
	put_command((struct sent){ 3, cdb16(0x8f, 0, 500, 2), 16, NULL, 0,
				   0 });
	put_command((struct sent){ 4, cdb16(0x8f, 2, DISK / 512, 2), 16, NULL,
				   0, 0 });
	put_command((struct sent){ 5, cdb16(0x8f, 6, 700, 0), 16, NULL, 0,
				   0 });
	kick();
	CHECK_EQ(drained(c, 3), 3);
	CHECK_EQ(stats_of(k.dev).parked, 2);
	for (i = 0; i < 3; i++)
		CHECK_EQ(obd_ring_complete(k.ring, c[i].tag, 0, NULL, NULL,
					   0), 0);
	/* Ended, to be tried again. */
	CHECK_EQ(obd_device_abandon(k.dev, -ESHUTDOWN), 0);
	all_answered();
	CHECK_EQ(k.status[1], SAM_BUSY);
	CHECK_EQ(k.status[2], SAM_BUSY);
	put_command((struct sent){ 6, caw, 16, (uint32_t[]){ 0, 1024 }, 1,
				   0 });
	kick();
	wait_parked(k.dev, 3);
	CHECK_EQ(obd_source_fill(src, 150, 1, -EIO), -EINVAL);
	CHECK_EQ(obd_source_fill(src, 2, 1, -EIO), 0);
	all_answered();
	CHECK_EQ(k.status[6], SAM_CHECK_CONDITION);
	memmove(k.sense[0], k.sense[6], 18);
	CHECK_EQ(sense_code(), SENSE_READ_ERROR);
	put_command((struct sent){ 7, caw, 16, (uint32_t[]){ 0, 1024 }, 1,
				   0 });
	kick();
	wait_parked(k.dev, 4);
	CHECK_EQ(obd_source_fill(src, 2, 1, 0), 0);
	CHECK_EQ(drained(c, 1), 1);
	CHECK_EQ(c[0].cdb[0], 0x89);
	CHECK_EQ(c[0].length, 1024);
	CHECK_EQ(obd_ring_data(k.ring, c[0].tag, data, 512, 512), 512);
	CHECK(all_bytes(data, 7, 512));
	CHECK_EQ(obd_ring_complete(k.ring, c[0].tag, 0, NULL, NULL, 0), 0);
	all_answered();
	/* What waits when the ring ends is not asked any more. */
	put_command((struct sent){ 8, cdb16(0x8f, 2, 1000, 2), 16,
				   (uint32_t[]){ 0, 1024 }, 1, 0 });
	kick();
	wait_parked(k.dev, 5);
	CHECK_EQ(obd_ring_close(k.ring, 20), 0);
	take_answers();
	CHECK_EQ(k.answers[8] << 8 | k.status[8], 1 << 8 | SAM_BUSY);
	k.ring = NULL;
	kernel_end();
	obd_source_unref(src);
}

/* ---- the ring ---------------------------------------------------------- */

static void unknown_groups_and_entries_never_stay(void)
{
	static const uint8_t odd[] = { 0x60, 0x7f, 0xc0, 0xff };
	struct obd_ring_stats stats;
	uint8_t cdb[16] = { 0 };
	size_t i;

	kernel_new(OOOC, disk(false), 0);
	kernel_start(0);
	for (i = 0; i < sizeof(odd); i++) {
		cdb[0] = odd[i];
		CHECK_EQ(run(cdb, 16, page, 1), SAM_CHECK_CONDITION);
		CHECK_EQ(sense_code(), SENSE_OPCODE);
	}
	pad(5, 24); /* unknown, and nothing comes after it */
	kick();
	all_answered();
	pad(2, 40); /* a task management entry */
	pad(0, 16);
	kick();
	all_answered();
	CHECK_EQ(obd_ring_stat(k.ring, &stats), 0);
	CHECK_EQ(stats.refused, sizeof(odd) + 1);
	CHECK_EQ(stats.depth, 0);
	kernel_end();
}

static void the_ring_wraps_at_any_place(void)
{
	uint32_t start;
	int i;

	for (start = 0; start < 400; start += 8) {
		kernel_new(OOOC, disk(false), AREA_BYTES - 8 - start);
		kernel_start(0);
		for (i = 0; i < 12; i++)
			CHECK_EQ(run(cdb16(0x88, 0, (uint64_t)i, 8), 16,
				     page, 1), SAM_GOOD);
		kernel_end();
	}
}

static void iovecs_outside_the_data_are_an_error_and_not_a_crash(void)
{
	uint32_t at;
	uint64_t v;
	int i;

	kernel_new(OOOC, disk(true), 0);
	kernel_start(0);
	for (i = 0; i < 5; i++) {
		put_command((struct sent){ 7, cdb16(0x88, 0, 0, 8), 16, page,
					   1, 0 });
		at = AREA_AT + (k.head ? k.head : AREA_BYTES) - 112;
		v = i == 0 ? 0 : i == 1 ? UINT64_MAX - 100 : DATA_AT;
		if (i < 2)
			memcpy(k.map + at + 48, &v, 8);
		v = UINT64_MAX - 10;
		if (i == 2)
			memcpy(k.map + at + 56, &v, 8);
		if (i == 3)
			put32(at + 8, 1u << 28); /* iovecs past the entry */
		v = UINT64_MAX - 1;
		if (i == 4)
			memcpy(k.map + at + 24, &v, 8); /* the CDB */
		kick();
		all_answered();
		CHECK_EQ(k.status[7], SAM_CHECK_CONDITION);
		memcpy(k.sense[0], k.sense[7], 18);
		CHECK_EQ(sense_code(), SENSE_INTERNAL);
	}
	CHECK_EQ(k.answers[7], 5);
	kernel_end();
}

static void many_iovecs_and_commands_at_once(void)
{
	uint32_t iov[2 * 260], i;

	kernel_new(OOOC, disk(true), 0);
	kernel_start(0);
	for (i = 0; i < 260; i++) {
		iov[2 * i] = i * 1000 + 3;
		iov[2 * i + 1] = 512;
		memset(k.map + DATA_AT + i * 1000 + 3, (int)i, 512);
	}
	CHECK_EQ(run(cdb16(0x8a, 0, 100, 260), 16, iov, 260), SAM_GOOD);
	CHECK_EQ(run(cdb16(0x88, 0, 250, 1), 16, page, 1), SAM_GOOD);
	CHECK_EQ(k.map[DATA_AT], 150);
	for (i = 100; i < 130; i++) /* no answer is awaited in between */
		put_command((struct sent){ (uint16_t)i,
					   cdb16(0x88, 0, i, 1), 16,
					   (uint32_t[]){ i * 512, 512 }, 1,
					   0 });
	kick();
	all_answered();
	for (i = 100; i < 130; i++) {
		CHECK_EQ(k.answers[i], 1);
		CHECK_EQ(k.map[DATA_AT + i * 512], i - 100);
	}
	kernel_end();
}

/* ---- what TypeScript answers ------------------------------------------- */

/* Those that run may run for ever: no answer of theirs, and no kick. */
static void what_there_was_no_memory_for_is_tried_again(void)
{
	static const uint8_t asked[6];
	struct obd_scsi_command got[20];
	struct obd_ring_stats stats;
	uint16_t i;

	kernel_new(OOOC, disk(false), 0);
	kernel_start(0);
	no_memory = true;
	for (i = 1; i <= 18; i++)
		put_command((struct sent){ i, asked, 6, NULL, 0, 0 });
	kick();
	CHECK_EQ(drained(got, 16), 16);
	CHECK_EQ(obd_ring_stat(k.ring, &stats), 0);
	CHECK_EQ(stats.commands, 16);
	CHECK_EQ(obd_scsi_drain(got + 16, 4), 0);
	no_memory = false;
	CHECK_EQ(obd_ring_stat(k.ring, &stats), 0);
	CHECK_EQ(drained(got + 16, 2), 2);
	for (i = 0; i < 18; i++)
		CHECK_EQ(obd_ring_complete(k.ring, got[i].tag, SAM_GOOD, NULL,
					   NULL, 0), 0);
	all_answered();
	kernel_end();
}

static void answers_come_out_of_order(uint32_t flags)
{
	static const uint8_t inquiry[6] = { 0x12, 0, 0, 0, 36, 0 };
	struct obd_scsi_command c[3];
	uint8_t sense[18], got[64];
	uint32_t i;

	kernel_new(flags | READ_LEN, disk(false), 0);
	kernel_start(0);
	for (i = 0; i < 3; i++)
		put_command((struct sent){ (uint16_t)(50 + i), inquiry, 6,
					   (uint32_t[]){ i * 100, 64 }, 1,
					   i * 16 });
	memset(k.map + DATA_AT, 0x55, 300);
	kick();
	CHECK_EQ(drained(c, 3), 3);
	CHECK_EQ(c[1].ring, 5);
	CHECK_EQ(c[1].length, 64);
	CHECK_EQ(c[1].cdb_length, 6);
	CHECK_EQ(c[1].cdb[0], 0x12);
	CHECK_EQ(c[1].cdb[4], 36);
	CHECK_EQ(obd_ring_data(k.ring, c[1].tag, got, 64, 60), 4);
	CHECK_EQ(got[3], 0x55);
	CHECK_EQ(get32(64), 0);
	CHECK_EQ(obd_ring_complete(k.ring, c[2].tag, 0, NULL, "third", 5), 0);
	CHECK_EQ(obd_ring_complete(k.ring, c[2].tag, 0, NULL, "again", 5),
		 -ENOENT);
	scsi_sense(SENSE_CDB_FIELD, sense);
	CHECK_EQ(obd_ring_complete(k.ring, c[1].tag, 2, sense, NULL, 0), 0);
	memset(sense, 0xee, 18);
	CHECK_EQ(obd_ring_complete(k.ring, c[0].tag, 0, NULL, "first", 5), 0);
	CHECK_EQ(obd_ring_complete(k.ring, 70000, 0, NULL, NULL, 0), -ENOENT);
	all_answered();
	for (i = 50; i < 53; i++)
		CHECK_EQ(k.answers[i], 1);
	CHECK_EQ(k.status[51], 2);
	memcpy(k.sense[0], k.sense[51], 18);
	CHECK_EQ(sense_code(), SENSE_CDB_FIELD);
	CHECK(!memcmp(k.map + DATA_AT, "firstU", 6));
	CHECK(!memcmp(k.map + DATA_AT + 200, "thirdU", 6));
	CHECK_EQ(k.uflags[52], 2);
	CHECK_EQ(k.read_len[52], 5);
	kernel_end();
}

static void answers_may_come_out_of_order(void)
{
	answers_come_out_of_order(OOOC);
}

static void an_old_kernel_gets_them_in_order(void)
{
	answers_come_out_of_order(0);
}

static void the_next_command_tells_that_the_disk_has_grown(void)
{
	struct obd_scsi_command c[1];

	kernel_new(OOOC, disk(true), 0);
	kernel_start(0);
	CHECK_EQ(obd_device_resize(k.dev, 2 * DISK), 0);
	CHECK_EQ(obd_ring_attention(k.ring, 0x2a09), 0);
	put_command((struct sent){ 9, (uint8_t[6]){ 0x12 }, 6, NULL, 0, 0 });
	kick();
	CHECK_EQ(drained(c, 1), 1); /* INQUIRY never tells */
	CHECK_EQ(obd_ring_complete(k.ring, c[0].tag, 0, NULL, NULL, 0), 0);
	all_answered();
	CHECK_EQ(run(cdb16(0x88, 0, 0, 8), 16, page, 1), SAM_CHECK_CONDITION);
	CHECK_EQ(sense_code(), 0x062a09);
	CHECK_EQ(run(cdb16(0x88, 0, DISK / 512, 8), 16, page, 1), SAM_GOOD);
	kernel_end();
}

/* ---- the end ----------------------------------------------------------- */

static void what_is_left_at_the_end_is_busy(void)
{
	struct obd_scsi_command c[2];

	kernel_new(OOOC, disk(false), 0);
	kernel_start(0);
	put_command((struct sent){ 20, (uint8_t[6]){ 0 }, 6, NULL, 0, 0 });
	put_command((struct sent){ 21, (uint8_t[6]){ 0 }, 6, NULL, 0, 0 });
	kick();
	CHECK_EQ(drained(c, 1), 1); /* one is known, one still queued */
	CHECK_EQ(obd_ring_close(k.ring, 50), 0);
	take_answers();
	CHECK_EQ(k.answers[20], 1);
	CHECK_EQ(k.answers[21], 1);
	CHECK_EQ(k.status[20], SAM_BUSY);
	CHECK_EQ(k.status[21], SAM_BUSY);
	CHECK_EQ(obd_scsi_drain(c, 2), 0);
	k.ring = NULL;
	kernel_end();
}

static void what_there_was_no_memory_for_is_left_at_the_end(void)
{
	static const uint8_t asked[6];
	struct obd_ring_stats stats;
	uint16_t i;

	kernel_new(OOOC, disk(false), 0);
	kernel_start(0);
	no_memory = true;
	for (i = 1; i <= 18; i++)
		put_command((struct sent){ i, asked, 6, NULL, 0, 0 });
	kick();
	for (i = 0; i < 500; i++) {
		CHECK_EQ(obd_ring_stat(k.ring, &stats), 0);
		if (stats.commands == 16)
			break;
		usleep(10000);
	}
	no_memory = false;
	CHECK_EQ(obd_ring_close(k.ring, 0), 0);
	take_answers();
	for (i = 1; i <= 18; i++)
		CHECK_EQ(k.answers[i], i <= 16);
	k.ring = NULL;
	k.head = get32(64);
	kernel_end();
}

/* Waits until the ring says so. */
static void broken_by(uint64_t bad, uint64_t at, uint64_t value)
{
	struct obd_ring_stats stats;
	int i;

	for (i = 0; i < 500; i++) {
		CHECK_EQ(obd_ring_stat(k.ring, &stats), 0);
		if (stats.bad)
			break;
		usleep(10000);
	}
	CHECK_EQ(stats.bad, bad);
	CHECK_EQ(stats.bad_at, at);
	CHECK_EQ(stats.bad_value, value);
}

static void broken_end(void)
{
	obd_device_unref(k.dev);
	munmap(k.map, MAP_BYTES);
	close(k.memory);
	close(k.fd);
}

/* The kernel's head in the middle of an entry: without this the worker
 * would go round the ring for ever.  In order, so that one answer waits for
 * another that never comes. */
static void a_ring_that_makes_no_sense_ends(void)
{
	static const uint8_t asked[6], sync[10] = { 0x35 };

	kernel_new(0, disk(true), 0);
	kernel_start(0);
	put_command((struct sent){ 1, asked, 6, NULL, 0, 0 });
	put_command((struct sent){ 2, sync, 10, NULL, 0, 0 });
	pad(0, 64);
	k.head -= 32;
	move_head(0);
	kick();
	broken_by(OBD_RING_BAD_ENTRY, 2 * 112, 64);
	CHECK_EQ(obd_ring_close(k.ring, 100), 0);
	CHECK(get32(64) <= 2 * 112 + 16);
	broken_end();
}

/* reset_ring, by somebody else: what lies ahead was there before. */
static void a_ring_that_was_reset_brings_no_old_commands(void)
{
	struct obd_ring_stats stats;
	uint8_t buf[4096];
	uint32_t n;

	kernel_new(OOOC, disk(true), 0);
	kernel_start(0);
	memset(k.map + DATA_AT, 1, 4096);
	CHECK_EQ(run(cdb16(0x8a, 0, 0, 8), 16, page, 1), SAM_GOOD);
	/* A lap later the first write's entry stands where it stood. */
	n = k.head;
	pad(0, AREA_BYTES - n);
	kick();
	all_answered();
	memset(k.map + DATA_AT, 2, 4096);
	CHECK_EQ(run(cdb16(0x8a, 0, 0, 8), 16, page, 1), SAM_GOOD);
	CHECK_EQ(k.head, n);
	CHECK_EQ(obd_ring_stat(k.ring, &stats), 0);
	memset(k.map + DATA_AT, 3, 4096);
	put32(AREA_AT + n, 112 | 1);
	memcpy(k.map + AREA_AT + n + 4, k.map + AREA_AT + 4, 108);
	k.head = k.seen = 0;
	put32(12, 0);
	put32(64, 0);
	kick();
	broken_by(OBD_RING_BAD_TAIL, n, 0);
	CHECK_EQ(get32(64), 0);
	CHECK_EQ(obd_ring_stat(k.ring, &stats), 0);
	CHECK_EQ(stats.commands, 2);
	CHECK_EQ(obd_ring_close(k.ring, 100), 0);
	CHECK_EQ(obd_device_read(k.dev, buf, 4096, 0), 0);
	CHECK(all_bytes(buf, 2, 4096));
	broken_end();
}

/* The answer of what ran meanwhile is nobody's. */
static void a_ring_that_was_reset_is_answered_nothing(void)
{
	struct obd_scsi_command c[1];

	kernel_new(OOOC, disk(true), 0);
	kernel_start(0);
	pad(0, 64);
	kick();
	all_answered();
	put_command((struct sent){ 9, (uint8_t[6]){ 0x12 }, 6, NULL, 0, 0 });
	kick();
	CHECK_EQ(drained(c, 1), 1);
	k.head = k.seen = 0;
	put32(12, 0);
	put32(64, 0);
	CHECK_EQ(obd_ring_complete(k.ring, c[0].tag, 0, NULL, NULL, 0), 0);
	broken_by(OBD_RING_BAD_TAIL, 64, 0);
	CHECK_EQ(get32(64), 0);
	CHECK_EQ(obd_ring_close(k.ring, 100), 0);
	broken_end();
}

static void what_makes_no_sense_is_told(void)
{
	kernel_new(OOOC, disk(false), 0);
	kernel_start(0);
	put32(12, AREA_BYTES + 8);
	kick();
	broken_by(OBD_RING_BAD_HEAD, 0, AREA_BYTES + 8);
	CHECK_EQ(obd_ring_close(k.ring, 100), 0);
	broken_end();

	kernel_new(OOOC, disk(false), 0);
	kernel_start(0);
	put32(AREA_AT, 40 | 1); /* too short for a command */
	move_head(40);
	kick();
	broken_by(OBD_RING_BAD_ENTRY, 0, 40 | 1);
	CHECK_EQ(obd_ring_close(k.ring, 100), 0);
	broken_end();
}

static void a_mailbox_that_makes_no_sense_is_refused(void)
{
	struct obd_ring *ring;

	kernel_new(OOOC, disk(false), 0);
	put16(0, 1);
	CHECK_EQ(obd_ring_new(k.lib_fd, MAP_BYTES, k.dev, 0, 1, &ring),
		 -EPROTO);
	put16(0, 2);
	put32(8, MAP_BYTES);
	CHECK_EQ(obd_ring_new(k.lib_fd, MAP_BYTES, k.dev, 0, 1, &ring),
		 -ERANGE);
	put32(8, AREA_BYTES);
	put32(4, UINT32_MAX - 7);
	CHECK_EQ(obd_ring_new(k.lib_fd, MAP_BYTES, k.dev, 0, 1, &ring),
		 -ERANGE);
	put32(4, AREA_AT);
	put32(64, AREA_BYTES);
	CHECK_EQ(obd_ring_new(k.lib_fd, MAP_BYTES, k.dev, 0, 1, &ring),
		 -ERANGE);
	close(k.lib_fd);
	k.ring = NULL;
	put32(64, 0);
	kernel_end();
}

int main(void)
{
	parts_start();
	RUN(what_is_written_is_read);
	RUN(each_length_of_read_counts_its_own_way);
	RUN(lengths_that_disagree_move_the_smaller);
	RUN(nothing_past_the_end_is_touched);
	RUN(a_read_only_disk_refuses_changes_and_needs_no_flush);
	RUN(write_same_repeats_its_block);
	RUN(unmap_checks_every_range_before_the_first);
	RUN(changes_that_wait_for_data_hold_no_thread);
	RUN(writes_that_hang_stop_no_read_of_another_disk);
	RUN(who_compares_is_asked_when_the_data_is_there);
	RUN(unknown_groups_and_entries_never_stay);
	RUN(the_ring_wraps_at_any_place);
	RUN(iovecs_outside_the_data_are_an_error_and_not_a_crash);
	RUN(many_iovecs_and_commands_at_once);
	RUN(what_there_was_no_memory_for_is_tried_again);
	RUN(answers_may_come_out_of_order);
	RUN(an_old_kernel_gets_them_in_order);
	RUN(the_next_command_tells_that_the_disk_has_grown);
	RUN(what_is_left_at_the_end_is_busy);
	RUN(what_there_was_no_memory_for_is_left_at_the_end);
	RUN(a_ring_that_makes_no_sense_ends);
	RUN(a_ring_that_was_reset_brings_no_old_commands);
	RUN(a_ring_that_was_reset_is_answered_nothing);
	RUN(what_makes_no_sense_is_told);
	RUN(a_mailbox_that_makes_no_sense_is_refused);
	return check_done();
}
