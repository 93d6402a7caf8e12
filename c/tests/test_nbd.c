/* SPDX-License-Identifier: Apache-2.0
 *
 * test_nbd.c - the NBD server, spoken to by a client that knows the bytes.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include "../nbd.h"
#include "check.h"

#define DISK (8u << 20)
#define OPT_MAGIC 0x49484156454f5054ull
#define REQUEST_MAGIC 0x25609513u
#define SIMPLE_MAGIC 0x67446698u
#define CHUNK_MAGIC 0x668e33efu

enum { READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS };

/* A server with a writable export "disk" and a read-only one "zeros". */
struct server {
	struct obd_nbd *nbd;
	struct obd_device *disk, *zeros;
	int data_fd, index_fd;
	struct sockaddr_un address;
};

static int listen_abstract(struct sockaddr_un *address)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK,
			0);
	socklen_t length = sizeof(*address);

	memset(address, 0, sizeof(*address));
	address->sun_family = AF_UNIX;
	/* Only the family: the kernel picks an abstract name. */
	CHECK(!bind(fd, (struct sockaddr *)address, sizeof(sa_family_t)));
	CHECK(!getsockname(fd, (struct sockaddr *)address, &length));
	CHECK(!listen(fd, 128));
	return fd;
}

static int memory_file(void)
{
	int fd = memfd_create("layer", MFD_CLOEXEC);

	CHECK(fd >= 0 && !ftruncate(fd, 4096));
	return fd;
}

static struct server start_server(void)
{
	struct server s = { 0 };
	struct obd_upper_report report;
	struct obd_index *index;
	struct obd_upper *upper;
	struct obd_view *view;

	CHECK_EQ(obd_index_new(NULL, 0, &index), 0);
	CHECK_EQ(obd_view_new(index, NULL, 0, DISK, &view), 0);
	s.data_fd = memory_file();
	s.index_fd = memory_file();
	CHECK_EQ(obd_upper_open(OBD_UPPER_LOG, dup(s.data_fd),
				dup(s.index_fd), DISK, &report, &upper), 0);
	CHECK_EQ(obd_device_new(view, upper, DISK, 0, 10000, &s.disk), 0);
	CHECK_EQ(obd_device_new(view, NULL, DISK, OBD_DEVICE_READONLY, 10000,
				&s.zeros), 0);
	obd_index_unref(index);
	obd_view_unref(view);
	obd_upper_unref(upper);
	CHECK_EQ(obd_nbd_new(listen_abstract(&s.address), &s.nbd), 0);
	CHECK_EQ(obd_nbd_add(s.nbd, "disk", "a writable disk", s.disk), 0);
	CHECK_EQ(obd_nbd_add(s.nbd, "disk", "", s.disk), -EEXIST);
	CHECK_EQ(obd_nbd_add(s.nbd, "zeros", "", s.zeros), 0);
	CHECK_EQ(obd_nbd_start(s.nbd), 0);
	return s;
}

static void stop_server(struct server *s)
{
	CHECK_EQ(obd_nbd_close(s->nbd, 2000), 0);
	obd_device_unref(s->disk);
	obd_device_unref(s->zeros);
	close(s->data_fd);
	close(s->index_fd);
}

/* ---- the client ----------------------------------------------------- */

static int dial(const struct server *s)
{
	struct timeval limit = { .tv_sec = 20 };
	int room = 8 << 20;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	socklen_t length = sizeof(sa_family_t) + 6;

	CHECK(!connect(fd, (const struct sockaddr *)&s->address, length));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	/* Who reads nothing must not wait to ask: each of many small sends
	 * takes a kilobyte. */
	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room)))
		setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
	return fd;
}

static void put(int fd, const void *p, size_t n)
{
	CHECK_EQ(send(fd, p, n, MSG_NOSIGNAL), n);
}

static bool get(int fd, void *p, size_t n)
{
	return n == 0 || recv(fd, p, n, MSG_WAITALL) == (ssize_t)n;
}

static bool closed(int fd)
{
	char c;

	return recv(fd, &c, 1, 0) <= 0;
}

static int hello(const struct server *s, uint32_t flags)
{
	uint8_t greeting[18], answer[4];
	int fd = dial(s);

	CHECK(get(fd, greeting, 18));
	CHECK(!memcmp(greeting, "NBDMAGICIHAVEOPT", 16));
	CHECK_EQ(be16(greeting + 16), 3);
	put32(answer, flags);
	put(fd, answer, 4);
	return fd;
}

static void option(int fd, uint32_t number, const void *data, uint32_t n)
{
	uint8_t head[16];

	put64(head, OPT_MAGIC);
	put32(head + 8, number);
	put32(head + 12, n);
	put(fd, head, 16);
	if (n)
		put(fd, data, n);
}

/* Reads one reply: its type; its data to buf, NUL behind it. */
static uint32_t reply(int fd, uint32_t number, uint8_t *buf, uint32_t *n)
{
	uint8_t head[20];

	CHECK(get(fd, head, 20));
	CHECK(be64(head) == 0x0003e889045565a9ull);
	CHECK_EQ(be32(head + 8), number);
	*n = be32(head + 16);
	CHECK(*n < 4096 && get(fd, buf, *n));
	buf[*n] = 0;
	return be32(head + 12);
}

static uint32_t only_reply(int fd, uint32_t number)
{
	uint8_t buf[4096];
	uint32_t n;

	return reply(fd, number, buf, &n);
}

static uint32_t named(uint8_t *buf, const char *name, const char *tail,
		      uint32_t tail_bytes)
{
	put32(buf, strlen(name));
	memcpy(buf + 4, name, strlen(name));
	memcpy(buf + 4 + strlen(name), tail, tail_bytes);
	return 4 + strlen(name) + tail_bytes;
}

static const char one_query[] = "\0\0\0\1\0\0\0\17base:allocation";

/* Chooses an export with GO; chunked: structured replies and block status. */
static int go(const struct server *s, const char *name, bool chunked)
{
	uint8_t buf[4096];
	uint32_t n, type;
	int fd = hello(s, 3);

	if (chunked) {
		option(fd, 8, NULL, 0);
		CHECK_EQ(only_reply(fd, 8), 1);
		option(fd, 10, buf, named(buf, name, one_query, 23));
		CHECK_EQ(reply(fd, 10, buf, &n), 4);
		CHECK(!strcmp((char *)buf + 4, "base:allocation"));
		CHECK_EQ(only_reply(fd, 10), 1);
	}
	option(fd, 7, buf, named(buf, name, "\0\0", 2));
	while ((type = reply(fd, 7, buf, &n)) == 3)
		;
	CHECK_EQ(type, 1);
	return fd;
}

static void request(int fd, uint16_t flags, uint16_t type, uint64_t handle,
		    uint64_t offset, uint32_t length)
{
	uint8_t r[28];

	put32(r, REQUEST_MAGIC);
	put16(r + 4, flags);
	put16(r + 6, type);
	put64(r + 8, handle);
	put64(r + 16, offset);
	put32(r + 24, length);
	put(fd, r, 28);
}

/* A simple reply's error; n bytes of data follow when there is none. */
static uint32_t simple(int fd, uint64_t handle, void *data, uint32_t n)
{
	uint8_t r[16];

	CHECK(get(fd, r, 16));
	CHECK_EQ(be32(r), SIMPLE_MAGIC);
	CHECK_EQ(be64(r + 8), handle);
	if (be32(r + 4) == 0 && n)
		CHECK(get(fd, data, n));
	return be32(r + 4);
}

/* ---- tests ---------------------------------------------------------- */

static void unknown_client_flags_end_the_connection(void)
{
	struct server s = start_server();
	int fd = hello(&s, 4);

	CHECK(closed(fd));
	close(fd);
	stop_server(&s);
}

static void options_are_answered_one_by_one(void)
{
	struct server s = start_server();
	uint8_t buf[4096], big[64 << 10] = { 0 };
	uint32_t n;
	int fd = hello(&s, 3);

	option(fd, 5, NULL, 0); /* STARTTLS */
	CHECK_EQ(only_reply(fd, 5), 0x80000001u);
	option(fd, 99, big, 5000);
	CHECK_EQ(only_reply(fd, 99), 0x80000001u);
	option(fd, 99, big, sizeof(big));
	CHECK_EQ(only_reply(fd, 99), 0x80000009u);
	option(fd, 3, NULL, 0);
	CHECK_EQ(reply(fd, 3, buf, &n), 2);
	CHECK(be32(buf) == 4 && !strcmp((char *)buf + 4,
					"diska writable disk"));
	CHECK_EQ(reply(fd, 3, buf, &n), 2);
	CHECK(!strcmp((char *)buf + 4, "zeros"));
	CHECK_EQ(only_reply(fd, 3), 1);
	option(fd, 3, big, 1);
	CHECK_EQ(only_reply(fd, 3), 0x80000003u);
	option(fd, 10, buf, named(buf, "disk", one_query, 23));
	CHECK_EQ(only_reply(fd, 10), 0x80000003u); /* needs option 8 */
	option(fd, 8, big, 1);
	CHECK_EQ(only_reply(fd, 8), 0x80000003u);
	option(fd, 8, NULL, 0);
	CHECK_EQ(only_reply(fd, 8), 1);
	option(fd, 9, buf, named(buf, "disk", "\0\0\0\0", 4));
	CHECK_EQ(reply(fd, 9, buf, &n), 4);
	CHECK_EQ(only_reply(fd, 9), 1);
	option(fd, 9, buf, named(buf, "nope", "\0\0\0\0", 4));
	CHECK_EQ(only_reply(fd, 9), 0x80000006u);
	option(fd, 2, NULL, 0);
	CHECK_EQ(only_reply(fd, 2), 1);
	CHECK(closed(fd));
	close(fd);
	stop_server(&s);
}

static void lengths_that_disagree_are_invalid(void)
{
	static const char bad[][12] = { "", "\0\0\0\4dis", "\xff\xff\xff\xff",
					"\0\0\0\4disk\0\1" };
	static const uint32_t bytes[] = { 0, 7, 6, 10 };
	struct server s = start_server();
	int fd = hello(&s, 3);

	option(fd, 8, NULL, 0);
	CHECK_EQ(only_reply(fd, 8), 1);
	for (int i = 0; i < 4; i++) {
		option(fd, 6, bad[i], bytes[i]);
		CHECK_EQ(only_reply(fd, 6), 0x80000003u);
		option(fd, 10, bad[i], bytes[i]);
		CHECK_EQ(only_reply(fd, 10), 0x80000003u);
	}
	option(fd, 10, "\0\0\0\4disk\0\0\0\2\0\0\0\1x", 17);
	CHECK_EQ(only_reply(fd, 10), 0x80000003u);
	close(fd);
	stop_server(&s);
}

static void info_says_size_flags_and_blocks(void)
{
	struct server s = start_server();
	uint8_t buf[4096];
	uint32_t n;
	int fd = hello(&s, 3);

	option(fd, 6, buf, named(buf, "", "\0\2\0\1\0\2", 6));
	CHECK_EQ(reply(fd, 6, buf, &n), 3);
	CHECK(n == 12 && be16(buf) == 0 && be64(buf + 2) == DISK);
	CHECK_EQ(be16(buf + 10), 1 | 4 | 8 | 32 | 64);
	CHECK_EQ(reply(fd, 6, buf, &n), 3);
	CHECK(n == 14 && be16(buf) == 3 && be32(buf + 2) == 512);
	CHECK_EQ(reply(fd, 6, buf, &n), 3);
	CHECK(!strcmp((char *)buf + 2, "disk"));
	CHECK_EQ(reply(fd, 6, buf, &n), 3);
	CHECK(!strcmp((char *)buf + 2, "a writable disk"));
	CHECK_EQ(only_reply(fd, 6), 1);
	option(fd, 6, buf, named(buf, "nope", "\0\0", 2));
	CHECK_EQ(only_reply(fd, 6), 0x80000006u);
	close(fd);
	stop_server(&s);
}

static void export_name_pads_unless_told(void)
{
	struct server s = start_server();
	uint8_t buf[134];

	for (int no_zeroes = 0; no_zeroes < 2; no_zeroes++) {
		int fd = hello(&s, no_zeroes ? 3 : 1);

		option(fd, 1, "zeros", 5);
		CHECK(get(fd, buf, no_zeroes ? 10 : 134));
		CHECK_EQ(be64(buf), DISK);
		CHECK_EQ(be16(buf + 8), 1 | 2 | 4 | 256);
		request(fd, 0, READ, 7, 0, 512);
		CHECK_EQ(simple(fd, 7, buf, 0), 0);
		close(fd);
	}
	int fd = hello(&s, 3);

	option(fd, 1, "nope", 4);
	CHECK(closed(fd));
	close(fd);
	stop_server(&s);
}

static void what_is_written_is_read(void)
{
	struct server s = start_server();
	static uint8_t a[1 << 20], b[1 << 20];
	int fd = go(&s, "disk", false);

	for (size_t i = 0; i < sizeof(a); i++)
		a[i] = (uint8_t)(i * 31 + (i >> 9));
	request(fd, 1, WRITE, 1, 512, sizeof(a));
	put(fd, a, sizeof(a));
	CHECK_EQ(simple(fd, 1, NULL, 0), 0);
	request(fd, 0, READ, 2, 512, sizeof(b));
	CHECK_EQ(simple(fd, 2, b, sizeof(b)), 0);
	CHECK(!memcmp(a, b, sizeof(a)));
	request(fd, 0, TRIM, 3, 512, 4096);
	CHECK_EQ(simple(fd, 3, NULL, 0), 0);
	request(fd, 2, ZEROES, 4, 8192, 1024);
	CHECK_EQ(simple(fd, 4, NULL, 0), 0);
	request(fd, 0, FLUSH, 5, 0, 0);
	CHECK_EQ(simple(fd, 5, NULL, 0), 0);
	memset(a, 0, 4096);
	memset(a + 8192 - 512, 0, 1024);
	request(fd, 0, READ, 6, 512, sizeof(b));
	CHECK_EQ(simple(fd, 6, b, sizeof(b)), 0);
	CHECK(!memcmp(a, b, sizeof(a)));
	request(fd, 0, DISC, 7, 0, 0);
	CHECK(closed(fd));
	close(fd);
	stop_server(&s);
}

static void a_refused_request_leaves_the_connection_usable(void)
{
	static const struct {
		uint16_t flags, type;
		uint64_t offset;
		uint32_t length, error;
	} bad[] = {
		{ 0, READ, 1, 512, 22 },
		{ 0, READ, 0, 100, 22 },
		{ 0, READ, DISK, 512, 22 },
		{ 0, READ, ~511ull, 512, 22 },
		{ 0, WRITE, DISK - 512, 1024, 28 },
		{ 0, WRITE, 3, 512, 22 },
		{ 0, TRIM, DISK, 512, 28 },
		{ 0, CACHE, 0, 512, 22 },
		{ 16, ZEROES, 0, 512, 22 },
		{ 0, STATUS, 0, 512, 22 },
		{ 0, 77, 0, 512, 22 },
	};
	struct server s = start_server();
	uint8_t buf[1024] = { 0 };
	int fd = go(&s, "disk", false);

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		request(fd, bad[i].flags, bad[i].type, i, bad[i].offset,
			bad[i].length);
		if (bad[i].type == WRITE)
			put(fd, buf, bad[i].length);
		CHECK_EQ(simple(fd, i, NULL, 0), bad[i].error);
	}
	request(fd, 0, READ, 99, 0, 512);
	CHECK_EQ(simple(fd, 99, buf, 512), 0);
	close(fd);
	fd = go(&s, "zeros", false);
	request(fd, 0, WRITE, 1, 0, 512);
	put(fd, buf, 512);
	CHECK_EQ(simple(fd, 1, NULL, 0), 1);
	request(fd, 0, ZEROES, 2, 0, 512);
	CHECK_EQ(simple(fd, 2, NULL, 0), 1);
	request(fd, 0, FLUSH, 3, 0, 0);
	CHECK_EQ(simple(fd, 3, NULL, 0), 0);
	put(fd, buf, 28); /* no magic */
	CHECK(closed(fd));
	close(fd);
	stop_server(&s);
}

static void reads_and_status_come_in_chunks_when_asked(void)
{
	struct server s = start_server();
	uint8_t buf[8192] = { 1 }, r[20];
	int fd = go(&s, "disk", true);

	request(fd, 0, WRITE, 1, 4096, 4096);
	put(fd, buf, 4096);
	CHECK_EQ(simple(fd, 1, NULL, 0), 0);
	request(fd, 4, READ, 2, 4096, 4096);
	CHECK(get(fd, r, 20));
	CHECK(be32(r) == CHUNK_MAGIC && be16(r + 4) == 1 && be16(r + 6) == 1);
	CHECK(be64(r + 8) == 2 && be32(r + 16) == 8 + 4096);
	CHECK(get(fd, buf, 8 + 4096) && be64(buf) == 4096 && buf[8] == 1);
	request(fd, 0, STATUS, 3, 0, DISK);
	CHECK(get(fd, r, 20) && be16(r + 6) == 5 && be32(r + 16) == 4 + 24);
	CHECK(get(fd, buf, 28) && be32(buf) == 1);
	CHECK(be32(buf + 4) == 4096 && be32(buf + 8) == 3);
	CHECK(be32(buf + 12) == 4096 && be32(buf + 16) == 0);
	CHECK(be32(buf + 20) == DISK - 8192 && be32(buf + 24) == 3);
	request(fd, 8, STATUS, 4, 0, DISK);
	CHECK(get(fd, r, 20) && be32(r + 16) == 4 + 8 && get(fd, buf, 12));
	request(fd, 0, READ, 5, 1, 1);
	CHECK(get(fd, r, 20) && be16(r + 6) == 0x8001 && be32(r + 16) == 6);
	CHECK(get(fd, buf, 6) && be32(buf) == 22);
	close(fd);
	stop_server(&s);
}

static void bytes_may_come_one_at_a_time(void)
{
	struct server s = start_server();
	uint8_t all[4 + 16 + 10 + 28 + 512 + 28], buf[512];
	uint8_t *p = all;
	int fd = dial(&s);

	put32(p, 3);
	put64(p + 4, OPT_MAGIC);
	put32(p + 12, 1);
	put32(p + 16, 4);
	memcpy(p + 20, "disk", 4);
	p += 24;
	put32(p, REQUEST_MAGIC);
	put16(p + 4, 0);
	put16(p + 6, WRITE);
	put64(p + 8, 1);
	put64(p + 16, 512);
	put32(p + 24, 512);
	memset(p + 28, 0x5a, 512);
	memcpy(p + 540, p, 28);
	put16(p + 546, READ);
	p += 568;
	for (uint8_t *q = all; q < p - 28; q++)
		put(fd, q, 1);
	CHECK(get(fd, buf, 18 + 10));
	CHECK_EQ(simple(fd, 1, NULL, 0), 0);
	for (uint8_t *q = p - 28; q < p; q++)
		put(fd, q, 1);
	CHECK_EQ(simple(fd, 1, buf, 512), 0);
	CHECK_EQ(buf[511], 0x5a);
	/* And a client may go away after any of them. */
	for (size_t n = 0; n < (size_t)(p - all); n += n < 80 ? 1 : 37) {
		int other = dial(&s);

		put(other, all, n);
		close(other);
	}
	request(fd, 0, READ, 3, 0, 512);
	CHECK_EQ(simple(fd, 3, buf, 512), 0);
	close(fd);
	stop_server(&s);
}

static void a_client_that_does_not_read_holds_up_only_itself(void)
{
	enum { COUNT = 400, BYTES = 1 << 20 };
	struct server s = start_server();
	static uint8_t data[BYTES];
	int slow = go(&s, "zeros", false), fast = go(&s, "zeros", false);

	for (int i = 0; i < COUNT; i++)
		request(slow, 0, READ, i, 0, BYTES);
	for (int i = 0; i < 100; i++) {
		request(fast, 0, READ, i, 0, 4096);
		CHECK_EQ(simple(fast, i, data, 4096), 0);
	}
	for (int i = 0; i < COUNT; i++)
		CHECK_EQ(simple(slow, i, data, BYTES), 0);
	close(slow);
	close(fast);
	stop_server(&s);
}

static void the_largest_requests_work(void)
{
	struct server s = start_server();
	uint8_t *data = calloc(1, NBD_MAX_REQUEST + 512);
	int fd = go(&s, "disk", false);

	request(fd, 0, WRITE, 1, 0, DISK);
	put(fd, data, DISK);
	CHECK_EQ(simple(fd, 1, NULL, 0), 0);
	request(fd, 0, WRITE, 2, 0, NBD_MAX_REQUEST + 512);
	put(fd, data, NBD_MAX_REQUEST + 512);
	CHECK_EQ(simple(fd, 2, NULL, 0), 28);
	close(fd);
	free(data);
	stop_server(&s);
}

static void many_connections_share_an_export(void)
{
	enum { COUNT = 64 };
	struct server s = start_server();
	uint8_t buf[512];
	int fds[COUNT];

	for (int i = 0; i < COUNT; i++) {
		fds[i] = go(&s, "disk", false);
		memset(buf, i + 1, sizeof(buf));
		request(fds[i], 0, WRITE, 1, i * 512, 512);
		put(fds[i], buf, 512);
	}
	CHECK_EQ(obd_nbd_connections(s.nbd), COUNT);
	for (int i = 0; i < COUNT; i++)
		CHECK_EQ(simple(fds[i], 1, NULL, 0), 0);
	for (int i = 0; i < COUNT; i++) {
		request(fds[i], 0, READ, 2, (COUNT - 1 - i) * 512, 512);
		CHECK_EQ(simple(fds[i], 2, buf, 512), 0);
		CHECK_EQ(buf[0], COUNT - i);
		close(fds[i]);
	}
	stop_server(&s);
}

static void the_last_disconnect_flushes(void)
{
	struct server s = start_server();
	uint8_t buf[512] = { 1 }, record[16];
	int fd = go(&s, "disk", false);

	request(fd, 0, WRITE, 1, 0, 512);
	put(fd, buf, 512);
	CHECK_EQ(simple(fd, 1, NULL, 0), 0);
	off_t before = lseek(s.index_fd, 0, SEEK_END);
	close(fd);
	for (int i = 0; i < 200 && lseek(s.index_fd, 0, SEEK_END) == before;
	     i++)
		nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
	CHECK_EQ(lseek(s.index_fd, 0, SEEK_END), before + 16);
	CHECK_EQ(pread(s.index_fd, record, 16, before), 16);
	CHECK(obd_le64(record) == OBD_INVALID_LBA);
	stop_server(&s);
}

static void *load(void *arg)
{
	const struct server *s = arg;
	uint8_t r[28], buf[4096];
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (connect(fd, (const struct sockaddr *)&s->address,
		    sizeof(sa_family_t) + 6))
		return NULL;
	uint8_t start[24];

	put32(start, 3);
	put64(start + 4, OPT_MAGIC);
	put32(start + 12, 1);
	put32(start + 16, 4);
	memcpy(start + 20, "disk", 4);
	send(fd, start, 24, MSG_NOSIGNAL);
	put32(r, REQUEST_MAGIC);
	put32(r + 4, READ);
	put64(r + 8, 1);
	put64(r + 16, 0);
	put32(r + 24, 4096);
	while (send(fd, r, 28, MSG_NOSIGNAL) == 28 &&
	       recv(fd, buf, sizeof(buf), 0) > 0)
		;
	close(fd);
	return NULL;
}

static void closing_under_load_ends_every_connection(void)
{
	struct server s = start_server();
	pthread_t threads[8];

	for (int i = 0; i < 8; i++)
		pthread_create(&threads[i], NULL, load, &s);
	nanosleep(&(struct timespec){ .tv_nsec = 100000000 }, NULL);
	stop_server(&s);
	for (int i = 0; i < 8; i++)
		pthread_join(threads[i], NULL);
}

/* What OPT_LIST gives, names with a space behind each. */
static void list(const struct server *s, char *names)
{
	uint8_t buf[4096];
	uint32_t n;
	int fd = hello(s, 3);

	option(fd, 3, NULL, 0);
	*names = 0;
	while (reply(fd, 3, buf, &n) == 2) {
		buf[4 + be32(buf)] = 0;
		strcat(names, (char *)buf + 4);
		strcat(names, " ");
	}
	close(fd);
}

static void exports_come_and_go_while_serving(void)
{
	struct server s = start_server();
	char names[256];
	uint8_t buf[512];
	int on_disk, on_new;

	on_disk = go(&s, "disk", true);
	CHECK_EQ(obd_nbd_add(s.nbd, "new", "", s.zeros), 0);
	CHECK_EQ(obd_nbd_add(s.nbd, "new", "", s.zeros), -EEXIST);
	list(&s, names);
	CHECK(!strcmp(names, "disk zeros new "));
	on_new = go(&s, "new", true);
	CHECK_EQ(obd_nbd_users(s.nbd, "new"), 1);
	CHECK_EQ(obd_nbd_remove(s.nbd, "disk", 1000), 0);
	CHECK_EQ(obd_nbd_remove(s.nbd, "disk", 1000), -ENOENT);
	CHECK_EQ(obd_nbd_users(s.nbd, "disk"), -ENOENT);
	CHECK(closed(on_disk));
	list(&s, names);
	CHECK(!strcmp(names, "zeros new "));
	/* The oldest that is left is the default one. */
	close(go(&s, "", false));
	CHECK_EQ(obd_nbd_remove(s.nbd, "new", 1000), 0);
	CHECK(closed(on_new));
	CHECK_EQ(obd_nbd_add(s.nbd, "disk", "", s.disk), 0);
	on_disk = go(&s, "disk", false);
	request(on_disk, 0, READ, 1, 0, 512);
	CHECK_EQ(simple(on_disk, 1, buf, 512), 0);
	close(on_new);
	close(on_disk);
	CHECK_EQ(obd_nbd_remove(s.nbd, "disk", 1000), 0);
	CHECK_EQ(obd_nbd_remove(s.nbd, "zeros", 1000), 0);
	list(&s, names);
	CHECK_EQ(*names, 0);
	stop_server(&s);
}

/* Removed with requests under way: each is answered, the rest go on. */
static void an_export_is_removed_under_load(void)
{
	struct server s = start_server();
	pthread_t threads[8];
	uint8_t buf[512];
	int fd = go(&s, "zeros", false);

	for (int i = 0; i < 8; i++)
		pthread_create(&threads[i], NULL, load, &s);
	nanosleep(&(struct timespec){ .tv_nsec = 100000000 }, NULL);
	for (int i = 0; i < 20; i++) {
		CHECK_EQ(obd_nbd_remove(s.nbd, "disk", 2000), 0);
		CHECK_EQ(obd_nbd_add(s.nbd, "disk", "", s.disk), 0);
		request(fd, 0, READ, i, 0, 512);
		CHECK_EQ(simple(fd, i, buf, 512), 0);
	}
	for (int i = 0; i < 8; i++)
		pthread_join(threads[i], NULL);
	/* The server learns a little later that a client has left. */
	for (int i = 0; i < 500 && obd_nbd_connections(s.nbd) > 1; i++)
		nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
	CHECK_EQ(obd_nbd_connections(s.nbd), 1);
	close(fd);
	stop_server(&s);
}

/* A context that was asked for of an export that is gone is nobody's. */
static void a_context_does_not_outlive_its_export(void)
{
	struct server s = start_server();
	uint8_t buf[4096];
	uint32_t n;
	int fd = hello(&s, 3);

	option(fd, 8, NULL, 0);
	CHECK_EQ(only_reply(fd, 8), 1);
	option(fd, 10, buf, named(buf, "disk", one_query, 23));
	CHECK_EQ(reply(fd, 10, buf, &n), 4);
	CHECK_EQ(only_reply(fd, 10), 1);
	CHECK_EQ(obd_nbd_remove(s.nbd, "disk", 1000), 0);
	option(fd, 7, buf, named(buf, "disk", "\0\0", 2));
	CHECK(only_reply(fd, 7) == 0x80000006u);
	option(fd, 7, buf, named(buf, "zeros", "\0\0", 2));
	while (reply(fd, 7, buf, &n) == 3)
		;
	close(fd);
	stop_server(&s);
}

/* A client that only asks, a thousand times, has to take its answers. */
static void lists_that_are_not_read_stop_the_server_reading(void)
{
	struct server s = start_server();
	int fd = hello(&s, 3);
	char names[256];

	for (int i = 0; i < 900; i++)
		option(fd, 3, NULL, 0);
	list(&s, names);
	CHECK(!strcmp(names, "disk zeros "));
	for (int i = 0; i < 900 * 3; i++) {
		uint8_t buf[4096];
		uint32_t n;

		reply(fd, 3, buf, &n);
	}
	close(fd);
	stop_server(&s);
}

/* The last test: nothing of the others is left. */
static void nothing_is_left_open(void)
{
	CHECK_EQ(obd_engine_stop(), 0);
}

int main(void)
{
	if (obd_engine_init(OBD_ABI, NULL))
		return 1;
	RUN(unknown_client_flags_end_the_connection);
	RUN(options_are_answered_one_by_one);
	RUN(lengths_that_disagree_are_invalid);
	RUN(info_says_size_flags_and_blocks);
	RUN(export_name_pads_unless_told);
	RUN(what_is_written_is_read);
	RUN(a_refused_request_leaves_the_connection_usable);
	RUN(reads_and_status_come_in_chunks_when_asked);
	RUN(bytes_may_come_one_at_a_time);
	RUN(a_client_that_does_not_read_holds_up_only_itself);
	RUN(the_largest_requests_work);
	RUN(many_connections_share_an_export);
	RUN(the_last_disconnect_flushes);
	RUN(closing_under_load_ends_every_connection);
	RUN(exports_come_and_go_while_serving);
	RUN(an_export_is_removed_under_load);
	RUN(a_context_does_not_outlive_its_export);
	RUN(lists_that_are_not_read_stop_the_server_reading);
	RUN(nothing_is_left_open);
	return check_done();
}
