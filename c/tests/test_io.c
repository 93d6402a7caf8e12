/* SPDX-License-Identifier: Apache-2.0
 *
 * test_io.c - full transfers, names, sockets, and the seams of the tests:
 * the trace tells what happened in order, faults hit the call they name.
 */
#include "files.h"

#include <pthread.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>

static char dir[64];
static char paths[4][128];

/* A name in the test's own directory; each slot is reused. */
static const char *path(int slot, const char *name)
{
	snprintf(paths[slot], sizeof(paths[slot]), "%s/%s", dir, name);
	return paths[slot];
}

static void transfers_are_whole(void)
{
	uint8_t buf[100];
	int fd = file_with("0123456789", 10);

	CHECK_EQ(obd_io_pread(fd, buf, 10, 0), 10);
	CHECK_EQ(obd_io_pread(fd, buf, 100, 4), 6);
	CHECK(!memcmp(buf, "456789", 6));
	CHECK_EQ(obd_io_pread(fd, buf, 100, 10), 0);
	CHECK_EQ(obd_io_pread(-1, buf, 1, 0), -EBADF);
	CHECK_EQ(obd_io_pwrite(-1, buf, 1, 0), -EBADF);
	CHECK_EQ(obd_io_write(-1, buf, 1), -EBADF);
	CHECK_EQ(obd_io_read(-1, buf, 1), -EBADF);
	CHECK_EQ(obd_io_seek(fd, 3, SEEK_SET), 3);
	CHECK_EQ(obd_io_read(fd, buf, 100), 7);
	CHECK_EQ(obd_io_write(fd, "ab", 2), 2);
	CHECK_EQ(obd_io_size(fd), 12);
	close(fd);
}

/* More pieces than one system call takes, empty ones among them, and an
 * end of file in the middle. */
static void vectors_are_whole(void)
{
	enum { PIECES = 2500 };
	static struct iovec iov[PIECES];
	struct bytes in = make_bytes(PIECES * 3, RANDOM), out;
	uint8_t *back = malloc(in.n);
	int i, fd = new_file();
	uint64_t at = 0;

	for (i = 0; i < PIECES; i++) {
		iov[i].iov_base = in.p + at;
		iov[i].iov_len = i % 5;
		at += i % 5;
	}
	CHECK_EQ(obd_io_pwritev(fd, iov, PIECES, 7), at);
	out = bytes_of_fd(fd);
	CHECK_EQ(out.n, at + 7);
	CHECK(!memcmp(out.p + 7, in.p, at));
	for (i = 0; i < PIECES; i++)
		iov[i].iov_base = back + ((uint8_t *)iov[i].iov_base - in.p);
	CHECK_EQ(obd_io_preadv(fd, iov, PIECES, 7), at);
	CHECK(!memcmp(back, in.p, at));
	CHECK_EQ(obd_io_preadv(fd, iov, PIECES, 1007), at - 1000);
	CHECK_EQ(obd_io_preadv(-1, iov, 1, 0), -EBADF);
	CHECK_EQ(obd_io_pwritev(-1, iov, 1, 0), -EBADF);
	free(back);
	free(in.p);
	free(out.p);
	close(fd);
}

static void on_signal(int sig)
{
	(void)sig;
}

struct slow {
	int fd;
	pthread_t reader;
};

/* Writes a byte now and then, and interrupts the reader in between. */
static void *trickle(void *arg)
{
	struct slow *s = arg;
	int i;

	for (i = 0; i < 20; i++) {
		usleep(500);
		pthread_kill(s->reader, SIGUSR1);
		if (write(s->fd, "x", 1) != 1)
			break;
	}
	close(s->fd);
	return NULL;
}

static void a_signal_does_not_end_a_read(void)
{
	struct sigaction act = { .sa_handler = on_signal };
	struct slow s = { .reader = pthread_self() };
	pthread_t thread;
	uint8_t buf[100];
	int fds[2];

	sigaction(SIGUSR1, &act, NULL);
	CHECK(!pipe(fds));
	s.fd = fds[1];
	CHECK(!pthread_create(&thread, NULL, trickle, &s));
	CHECK_EQ(obd_io_read(fds[0], buf, sizeof(buf)), 20);
	pthread_join(thread, NULL);
	close(fds[0]);
}

static void nowait_reads_what_is_cached(void)
{
	uint8_t buf[10];
	int fd = obd_io_open(path(0, "cached"), O_RDWR | O_CREAT, 0600);
	int64_t got;

	CHECK(fd >= 0);
	CHECK_EQ(obd_io_pwrite(fd, "0123456789", 10, 0), 10);
	got = obd_io_pread_nowait(fd, buf, 10, 0);
	CHECK_MSG(got == 10 || got == -EOPNOTSUPP || got == -EAGAIN,
		  "%d", (int)got);
	CHECK_EQ(obd_io_pread_nowait(-1, buf, 10, 0), -EBADF);
	CHECK_EQ(obd_io_close(fd), 0);
}

static void names_come_last_and_replace_only_by_rename(void)
{
	int fd = obd_io_open(dir, O_TMPFILE | O_RDWR, 0600), other;

	if (fd == -EOPNOTSUPP) {
		printf("# skipped: no O_TMPFILE here\n");
		return;
	}
	CHECK(fd >= 0);
	CHECK_EQ(obd_io_link(fd, path(0, "a")), 0);
	CHECK_EQ(obd_io_link(fd, path(0, "a")), -EEXIST);
	CHECK_EQ(obd_io_link(fd, path(1, "none/a")), -ENOENT);
	CHECK_EQ(obd_io_rename(path(0, "a"), path(1, "b")), 0);
	CHECK_EQ(obd_io_rename(path(0, "a"), path(1, "b")), -ENOENT);
	other = obd_io_open(path(1, "b"), O_RDONLY, 0);
	CHECK(other >= 0);
	CHECK_EQ(obd_io_flock(other, LOCK_EX | LOCK_NB), 0);
	CHECK_EQ(obd_io_flock(fd, LOCK_EX | LOCK_NB), -EWOULDBLOCK);
	CHECK_EQ(obd_io_unlink(path(1, "b")), 0);
	CHECK_EQ(obd_io_unlink(path(1, "b")), -ENOENT);
	CHECK_EQ(obd_io_open(path(1, "b"), O_RDONLY, 0), -ENOENT);
	CHECK_EQ(obd_io_close(other), 0);
	CHECK_EQ(obd_io_close(fd), 0);
	CHECK_EQ(obd_io_close(fd), -EBADF);
}

static void sizes_and_holes(void)
{
	int fd = new_file();

	CHECK_EQ(obd_io_truncate(fd, 1 << 20), 0);
	CHECK_EQ(obd_io_truncate(fd, UINT64_MAX), -EFBIG);
	CHECK_EQ(obd_io_size(fd), 1 << 20);
	CHECK_EQ(obd_io_seek(fd, 0, 3), -ENXIO);
	CHECK_EQ(obd_io_pwrite(fd, "x", 1, 65536), 1);
	CHECK_EQ(obd_io_seek(fd, 0, 3), 65536);
	CHECK_EQ(obd_io_allocate(fd, 3, 65536, 4096), 0);
	CHECK_EQ(obd_io_seek(fd, 0, 3), -ENXIO);
	CHECK_EQ(obd_io_allocate(fd, 3, UINT64_MAX, 1), -EFBIG);
	CHECK_EQ(obd_io_sync(fd, 0), 0);
	CHECK_EQ(obd_io_sync(fd, 1), 0);
	CHECK_EQ(obd_io_size(-1), -EBADF);
	CHECK_EQ(obd_io_sync(-1, 1), -EBADF);
	close(fd);
	fd = open("/dev/null", O_RDONLY);
	CHECK_EQ(obd_io_size(fd), -EINVAL);
	close(fd);
}

static void addresses_are_parsed(void)
{
	static const char *const wrong[] = {
		"", "unix:", "tcp:", "tcp:localhost:1", "tcp:127.0.0.1",
		"tcp:127.0.0.1:", "tcp:127.0.0.1:65536", "tcp:127.0.0.1:1x",
		"tcp::1:80", "tcp:[::1:80", "tcp::80", "udp:127.0.0.1:1",
		"tcp:127.0.0.1:-1",
	};
	char name[200];
	unsigned int i;
	int fd;

	for (i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		CHECK_MSG(obd_io_listen(wrong[i], 1) == -EINVAL, "%s",
			  wrong[i]);
	memset(name, 'x', sizeof(name));
	memcpy(name, "unix:", 5);
	name[199] = 0;
	CHECK_EQ(obd_io_listen(name, 1), -ENAMETOOLONG);
	fd = obd_io_listen("tcp:127.0.0.1:0", 1);
	CHECK(fd >= 0 && obd_io_port(fd) > 0);
	close(fd);
	fd = obd_io_listen("tcp:[::1]:0", 1);
	CHECK(fd >= 0 ? obd_io_port(fd) > 0 :
			fd == -EAFNOSUPPORT || fd == -EADDRNOTAVAIL);
	close(fd);
}

static void a_unix_socket_listens(void)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	char name[200];
	int fd, client;

	snprintf(name, sizeof(name), "unix:%s", path(0, "sock"));
	fd = obd_io_listen(name, 5);
	CHECK(fd >= 0);
	CHECK_EQ(obd_io_port(fd), 0);
	CHECK_EQ(obd_io_listen(name, 5), -EADDRINUSE);
	client = socket(AF_UNIX, SOCK_STREAM, 0);
	strcpy(to.sun_path, path(0, "sock"));
	CHECK(!connect(client, (struct sockaddr *)&to, sizeof(to)));
	close(client);
	close(fd);
	CHECK_EQ(obd_io_unlink(path(0, "sock")), 0);
}

/* ---- seams ------------------------------------------------------------ */

static struct bytes file_bytes(const char *name)
{
	int fd = open(name, O_RDONLY);
	struct bytes b = bytes_of_fd(fd);

	close(fd);
	return b;
}

static uint64_t inode(int fd)
{
	struct stat st;

	fstat(fd, &st);
	return st.st_ino;
}

static void the_trace_tells_all_in_order(void)
{
	struct iovec iov[2] = { { "cd", 2 }, { "efg", 3 } };
	struct bytes text, data;
	unsigned long long i;
	char want[1024], buf[4];
	int fd;

	CHECK_EQ(obd_io_trace(path(2, "none/trace")), -ENOENT);
	CHECK_EQ(obd_io_trace(path(2, "trace")), 0);
	fd = obd_io_open(path(0, "traced"), O_RDWR | O_CREAT, 0600);
	CHECK_EQ(obd_io_pwrite(fd, "ab", 2, 10), 2);
	CHECK_EQ(obd_io_pwritev(fd, iov, 2, 100), 5);
	CHECK_EQ(obd_io_sync(fd, 1), 0);
	CHECK_EQ(obd_io_pread(fd, buf, 4, 103), 2);
	CHECK_EQ(obd_io_truncate(fd, 50), 0);
	CHECK_EQ(obd_io_allocate(fd, 3, 0, 4096), 0);
	CHECK_EQ(obd_io_link(fd, path(1, "linked")), 0);
	CHECK_EQ(obd_io_rename(path(1, "linked"), path(3, "renamed")), 0);
	CHECK_EQ(obd_io_unlink(path(3, "renamed")), 0);
	CHECK_EQ(obd_io_unlink(path(3, "renamed")), -ENOENT);
	CHECK_EQ(obd_io_trace(NULL), 0);
	CHECK_EQ(obd_io_pwrite(fd, "unseen", 6, 0), 6);
	i = inode(fd);
	snprintf(want, sizeof(want),
		 "0 open %llu -1 0 %d\n1 pwrite %llu 10 2 2\n"
		 "2 pwrite %llu 100 5 5\n3 sync %llu -1 0 0\n"
		 "4 pread %llu 103 4 2\n5 truncate %llu 50 0 0\n"
		 "6 allocate %llu 0 4096 0\n7 link %llu -1 0 0\n"
		 "8 rename %llu -1 0 0\n9 unlink %llu -1 0 0\n"
		 "10 unlink 0 -1 0 -2\n",
		 i, fd, i, i, i, i, i, i, i, i, i);
	text = file_bytes(path(2, "trace"));
	data = file_bytes(path(2, "trace.data"));
	text.p[text.n] = 0;
	CHECK_MSG(!strcmp((char *)text.p, want), "%s", text.p);
	CHECK_EQ(data.n, 7);
	CHECK(!memcmp(data.p, "abcdefg", 7));
	free(text.p);
	free(data.p);
	close(fd);
}

static void faults_hit_the_call_they_name(void)
{
	int fd = new_file(), i;

	CHECK_EQ(obd_io_fault(OBD_IO_PWRITE, 3, ENOSPC, 2), 0);
	for (i = 1; i <= 6; i++)
		CHECK_EQ(obd_io_pwrite(fd, "x", 1, 0),
			 i == 3 || i == 4 ? -ENOSPC : 1);
	CHECK_EQ(obd_io_fault(OBD_IO_SYNC, 1, -EIO, 1), 0);
	CHECK_EQ(obd_io_pwrite(fd, "x", 1, 0), 1);
	CHECK_EQ(obd_io_sync(fd, 1), -EIO);
	CHECK_EQ(obd_io_sync(fd, 1), 0);
	CHECK_EQ(obd_io_fault(OBD_IO_OPEN, 1, EMFILE, 1), 0);
	CHECK_EQ(obd_io_open("/dev/null", O_RDONLY, 0), -EMFILE);
	CHECK_EQ(obd_io_fault(OBD_IO_TRUNCATE, 1, EIO, 5), 0);
	CHECK_EQ(obd_io_truncate(fd, 9), -EIO);
	CHECK_EQ(obd_io_fault(OBD_IO_TRUNCATE, 1, EIO, 0), 0);
	CHECK_EQ(obd_io_truncate(fd, 9), 0);
	CHECK_EQ(obd_io_fault(-1, 1, EIO, 1), -EINVAL);
	CHECK_EQ(obd_io_fault(9, 1, EIO, 1), -EINVAL);
	CHECK_EQ(obd_io_fault(OBD_IO_SYNC, 0, EIO, 1), -EINVAL);
	CHECK_EQ(obd_io_fault(OBD_IO_SYNC, 1, 0, 1), -EINVAL);
	close(fd);
}

static void the_environment_sets_the_seams(void)
{
	struct bytes text;
	int fd = new_file();

	setenv("OVERLAYBD_IO_TRACE", path(2, "trace"), 1);
	setenv("OVERLAYBD_IO_FAULT", "pwrite:2:28:2", 1);
	CHECK_EQ(obd_engine_init(OBD_ABI + 1, NULL), -EPROTO);
	CHECK_EQ(obd_engine_init(OBD_ABI, NULL), 0);
	CHECK_EQ(obd_io_pwrite(fd, "x", 1, 0), 1);
	CHECK_EQ(obd_io_pwrite(fd, "x", 1, 0), -ENOSPC);
	CHECK_EQ(obd_io_pwrite(fd, "x", 1, 0), -ENOSPC);
	CHECK_EQ(obd_io_pwrite(fd, "x", 1, 0), 1);
	CHECK_EQ(obd_engine_init(OBD_ABI, "/nonexistent"), 0);
	text = file_bytes(path(2, "trace"));
	CHECK(text.n > 20);
	CHECK_EQ(obd_io_trace(NULL), 0);
	CHECK_EQ(obd_io_fault(OBD_IO_PWRITE, 1, 1, 0), 0);
	CHECK(!strncmp(obd_engine_describe(), "crc=", 4));
	CHECK_EQ(obd_engine_stop(), 0);
	free(text.p);
	close(fd);
}

static void remove_directory(void)
{
	static const char *const names[] = {
		"cached", "traced", "trace", "trace.data",
	};
	int i;

	for (i = 0; i < 4; i++)
		unlink(path(0, names[i]));
	CHECK(!rmdir(dir));
}

static void a_notification_is_one_datagram(void)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	char name[64], got[32];
	int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
	size_t n;

	snprintf(name, sizeof(name), "@obd-test-notify-%d", (int)getpid());
	n = strlen(name);
	memcpy(sa.sun_path + 1, name + 1, n - 1);
	CHECK(fd >= 0);
	CHECK_EQ(obd_io_notify(name, "READY=1"), -ECONNREFUSED);
	CHECK(!bind(fd, (struct sockaddr *)&sa,
		   (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n)));
	CHECK_EQ(obd_io_notify(name, "READY=1"), 0);
	CHECK_EQ(recv(fd, got, sizeof(got), MSG_DONTWAIT), 7);
	CHECK(!memcmp(got, "READY=1", 7));
	CHECK_EQ(obd_io_notify("@", ""), -EINVAL);
	close(fd);
}

int main(void)
{
	const char *tmp = getenv("TMPDIR");

	snprintf(dir, sizeof(dir), "%s/obd-io-XXXXXX", tmp ? tmp : "/tmp");
	if (!mkdtemp(dir))
		return 1;
	RUN(a_notification_is_one_datagram);
	RUN(transfers_are_whole);
	RUN(vectors_are_whole);
	RUN(a_signal_does_not_end_a_read);
	RUN(nowait_reads_what_is_cached);
	RUN(names_come_last_and_replace_only_by_rename);
	RUN(sizes_and_holes);
	RUN(addresses_are_parsed);
	RUN(a_unix_socket_listens);
	RUN(the_trace_tells_all_in_order);
	RUN(faults_hit_the_call_they_name);
	RUN(the_environment_sets_the_seams);
	RUN(remove_directory);
	return check_done();
}
