/* SPDX-License-Identifier: Apache-2.0
 *
 * io.c - every system call of the library that touches a file, with the
 * seams through which tests see and disturb them: a trace, faults, delays.
 *
 * They are off unless asked for, and then cost one predictable branch a
 * call.  While a trace runs, calls that change a file are serialised, so
 * that the order in the trace is the order in which they happened: a sync
 * in it covers what stands above it and nothing else.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* fallocate, preadv2 */
#endif
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "internal.h"

#define IO_OPS 9
#define NO_OFFSET (-1ll)

static const char *const op_names[IO_OPS] = {
	"open", "pread", "pwrite", "sync", "truncate",
	"allocate", "link", "rename", "unlink",
};

/* True while a trace or a fault is set; read without the lock on every
 * call, all else below is under it. */
static _Atomic bool seams_on;
static pthread_mutex_t seams_lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
	uint32_t nth;    /* the call that fails first, counted down */
	uint32_t count;  /* how many fail, 0: none */
	int error;       /* negative */
	uint32_t set;    /* how often they were set: ends those that hang */
	pthread_t setter;
} faults[IO_OPS];
static pthread_cond_t seams_set = PTHREAD_COND_INITIALIZER;
static uint32_t delay_ms;
static FILE *trace_text, *trace_data;
static uint64_t trace_seq;

/* One call on its way through the seams. */
struct io_call {
	int op, fd;
	bool locked;
	uint64_t inode;      /* for operations on a path */
	int64_t at;
	uint64_t n;
	const struct iovec *iov; /* what pwrite wrote */
};

static bool io_off(void)
{
	return obd_likely(!atomic_load_explicit(&seams_on,
						memory_order_relaxed));
}

static uint64_t path_inode(const char *path)
{
	struct stat st;

	return path && !lstat(path, &st) ? st.st_ino : 0;
}

static uint64_t fd_inode(int fd)
{
	struct stat st;

	return fd >= 0 && !fstat(fd, &st) ? st.st_ino : 0;
}

/* Under the lock: waits until the op's faults are set anew. */
static int seam_hang(int op)
{
	uint32_t set = faults[op].set;

	while (faults[op].set == set)
		pthread_cond_wait(&seams_set, &seams_lock);
	return 0;
}

/* Under the lock.  The error to inject, or 0 for "go on". */
static int seam_fault(int op)
{
	bool hang = faults[op].error == -OBD_IO_HANG;

	if (!faults[op].count ||
	    (hang && pthread_equal(faults[op].setter, pthread_self())))
		return 0;
	if (faults[op].nth > 1) {
		faults[op].nth--;
		return 0;
	}
	faults[op].count--;
	return hang ? seam_hang(op) : faults[op].error;
}

/* Before the call.  Reads and streams are not held in order: a pipe may
 * wait for another thread of this process. */
static int io_enter(struct io_call *call, bool ordered)
{
	int err;

	pthread_mutex_lock(&seams_lock);
	err = seam_fault(call->op);
	call->locked = ordered && trace_text && !err;
	if (!call->locked)
		pthread_mutex_unlock(&seams_lock);
	return err;
}

static void trace_bytes(const struct iovec *iov, uint64_t n)
{
	uint64_t part;

	for (; n; n -= part, iov++) {
		part = n < iov->iov_len ? n : iov->iov_len;
		fwrite(iov->iov_base, 1, part, trace_data);
	}
	fflush(trace_data);
}

/* After the call: one line.  The data goes first, so that whoever reads a
 * line finds its bytes. */
static void io_leave(struct io_call *call, int64_t result)
{
	if (!call->locked)
		pthread_mutex_lock(&seams_lock);
	if (trace_text) {
		if (call->op == OBD_IO_PWRITE && result > 0)
			trace_bytes(call->iov, (uint64_t)result);
		if (!call->inode)
			call->inode = fd_inode(call->fd);
		fprintf(trace_text, "%llu %s %llu %lld %llu %lld\n",
			(unsigned long long)trace_seq++, op_names[call->op],
			(unsigned long long)call->inode,
			(long long)call->at, (unsigned long long)call->n,
			(long long)result);
		fflush(trace_text);
	}
	pthread_mutex_unlock(&seams_lock);
}

static void seams_update(void)
{
	bool on = trace_text != NULL || delay_ms;
	int i;

	for (i = 0; i < IO_OPS; i++)
		on |= faults[i].count != 0;
	atomic_store(&seams_on, on);
}

static void trace_close(void)
{
	if (trace_text)
		fclose(trace_text);
	if (trace_data)
		fclose(trace_data);
	trace_text = trace_data = NULL;
	trace_seq = 0;
}

int32_t obd_io_trace(const char *path)
{
	char name[PATH_MAX];
	int err = 0;

	if (path && (size_t)snprintf(name, sizeof(name), "%s.data", path) >=
		    sizeof(name))
		return -ENAMETOOLONG;
	pthread_mutex_lock(&seams_lock);
	trace_close();
	if (path) {
		trace_text = fopen(path, "we");
		trace_data = trace_text ? fopen(name, "we") : NULL;
		if (!trace_data) {
			err = -errno;
			trace_close();
		}
	}
	seams_update();
	pthread_mutex_unlock(&seams_lock);
	return err;
}

int32_t obd_io_fault(int32_t op, uint32_t nth, int32_t error, uint32_t count)
{
	if (op < 0 || op >= IO_OPS || (count && (!nth || !error)))
		return -EINVAL;
	pthread_mutex_lock(&seams_lock);
	faults[op].nth = nth;
	faults[op].count = count;
	faults[op].error = error < 0 ? error : -error;
	faults[op].set++;
	faults[op].setter = pthread_self();
	pthread_cond_broadcast(&seams_set);
	seams_update();
	pthread_mutex_unlock(&seams_lock);
	return 0;
}

int32_t obd_io_delay(uint32_t ms)
{
	pthread_mutex_lock(&seams_lock);
	delay_ms = ms;
	seams_update();
	pthread_mutex_unlock(&seams_lock);
	return 0;
}

/* "op:nth:errno[:count]".  Anything else is ignored: a test whose fault
 * does not happen fails by itself. */
static void fault_from_text(const char *text)
{
	unsigned int nth, error, count = 1;
	char op[16];
	int i;

	if (sscanf(text, "%15[a-z]:%u:%u:%u", op, &nth, &error, &count) < 3)
		return;
	for (i = 0; i < IO_OPS; i++)
		if (!strcmp(op, op_names[i]))
			obd_io_fault(i, nth, (int32_t)error, count);
}

void obd_io_init_from_env(void)
{
	const char *trace = getenv("OVERLAYBD_IO_TRACE");
	const char *fault = getenv("OVERLAYBD_IO_FAULT");
	const char *delay = getenv("OVERLAYBD_IO_DELAY");

	if (trace && *trace)
		obd_io_trace(trace);
	if (fault && *fault)
		fault_from_text(fault);
	if (delay && *delay)
		obd_io_delay((uint32_t)strtoul(delay, NULL, 10));
}

/* ---- opening and closing ------------------------------------------- */

static int32_t do_open(const char *path, int32_t flags, uint32_t mode)
{
	int fd;

	do
		fd = open(path, flags | O_CLOEXEC, mode);
	while (fd < 0 && errno == EINTR);
	return fd < 0 ? -errno : fd;
}

int32_t obd_io_open(const char *path, int32_t flags, uint32_t mode)
{
	struct io_call call = { .op = OBD_IO_OPEN, .at = NO_OFFSET };
	int32_t fd;

	if (io_off())
		return do_open(path, flags, mode);
	fd = io_enter(&call, true);
	if (!fd)
		fd = do_open(path, flags, mode);
	call.fd = fd;
	io_leave(&call, fd);
	return fd;
}

int32_t obd_io_close(int32_t fd)
{
	/* The descriptor is gone even when the kernel says EINTR. */
	if (close(fd) && errno != EINTR)
		return -errno;
	return 0;
}

/* ---- reading -------------------------------------------------------- */

/* The libc's own pread() and preadv2() are cancellation points, and leave
 * and enter that state with locked instructions once there are threads. */
static int64_t do_pread(int fd, uint8_t *buf, uint64_t n, uint64_t at)
{
	uint64_t done = 0;
	long got;

	while (done < n) {
		got = syscall(SYS_pread64, fd, buf + done, n - done,
			      at + done);
		if (got == 0)
			break;
		if (got > 0)
			done += (uint64_t)got;
		else if (errno != EINTR)
			return -errno;
	}
	return (int64_t)done;
}

/* The ms that a read takes longer. */
static uint32_t seam_delay(void)
{
	uint32_t ms;

	pthread_mutex_lock(&seams_lock);
	ms = delay_ms;
	pthread_mutex_unlock(&seams_lock);
	return ms;
}

int64_t obd_io_pread(int32_t fd, void *buf, uint64_t n, uint64_t at)
{
	struct io_call call = { .op = OBD_IO_PREAD, .fd = fd,
				.at = (int64_t)at, .n = n };
	int64_t got;

	if (io_off())
		return do_pread(fd, buf, n, at);
	usleep(seam_delay() * 1000);
	got = io_enter(&call, false);
	if (!got)
		got = do_pread(fd, buf, n, at);
	io_leave(&call, got);
	return got;
}

static int64_t do_nowait(int fd, void *buf, uint64_t n, uint64_t at)
{
	struct iovec iov = { buf, n };
	long got;

	do /* the offset's high half is for 32-bit kernels alone */
		got = syscall(SYS_preadv2, fd, &iov, 1ul, at, 0ul,
			      RWF_NOWAIT);
	while (got < 0 && errno == EINTR);
	if (obd_likely(got >= 0))
		return got;
	return errno == ENOSYS ? -EOPNOTSUPP : -errno;
}

int64_t obd_io_pread_nowait(int fd, void *buf, uint64_t n, uint64_t at)
{
	struct io_call call = { .op = OBD_IO_PREAD, .fd = fd,
				.at = (int64_t)at, .n = n };
	int64_t got;

	if (io_off())
		return do_nowait(fd, buf, n, at);
	got = seam_delay() ? -EAGAIN : io_enter(&call, false);
	if (!got)
		got = do_nowait(fd, buf, n, at);
	io_leave(&call, got);
	return got;
}

int64_t obd_io_seen(int fd, uint64_t n, uint64_t at, int64_t got)
{
	struct io_call call = { .op = OBD_IO_PREAD, .fd = fd,
				.at = (int64_t)at, .n = n };
	int64_t fault;

	if (io_off())
		return got;
	usleep(seam_delay() * 1000);
	fault = io_enter(&call, false);
	if (fault)
		got = fault;
	io_leave(&call, got);
	return got;
}

#define DIRECT_ALIGN 4096u    /* what every disk is content with */
#define DIRECT_MAX 65536u

/* What the kernel says of it (Linux 6.1), 0: that there is none; 4096 where
 * it does not say. */
static uint32_t told_align(int fd)
{
#ifdef STATX_DIOALIGN
	struct statx stx;

	if (!statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) &&
	    stx.stx_mask & STATX_DIOALIGN)
		return stx.stx_dio_mem_align > DIRECT_ALIGN ? 0 :
		       stx.stx_dio_offset_align;
#else
	(void)fd;
#endif
	return DIRECT_ALIGN;
}

int64_t obd_io_direct_align(int fd)
{
	uint32_t align = told_align(fd);
	int64_t got;
	void *buf;

	if (!align || align > DIRECT_MAX || align & (align - 1))
		return -EOPNOTSUPP;
	if (align < 512)
		align = 512;
	/* Some say nothing when it is opened, and refuse every read. */
	buf = aligned_alloc(DIRECT_MAX, DIRECT_MAX);
	if (!buf)
		return -ENOMEM;
	got = obd_io_pread(fd, buf, align, 0);
	free(buf);
	if (got == -EINVAL || got == -EOPNOTSUPP)
		return -EOPNOTSUPP;
	return align;
}

static int64_t do_read(int fd, uint8_t *buf, uint64_t n)
{
	uint64_t done = 0;
	ssize_t got;

	while (done < n) {
		got = read(fd, buf + done, n - done);
		if (got == 0)
			break;
		if (got > 0)
			done += (uint64_t)got;
		else if (errno != EINTR)
			return -errno;
	}
	return (int64_t)done;
}

int64_t obd_io_read(int fd, void *buf, uint64_t n)
{
	struct io_call call = { .op = OBD_IO_PREAD, .fd = fd,
				.at = NO_OFFSET, .n = n };
	int64_t got;

	if (io_off())
		return do_read(fd, buf, n);
	got = io_enter(&call, false);
	if (!got)
		got = do_read(fd, buf, n);
	io_leave(&call, got);
	return got;
}

/* ---- vectors -------------------------------------------------------- */

static uint64_t iov_bytes(const struct iovec *iov, int cnt)
{
	uint64_t n = 0;

	while (cnt-- > 0)
		n += iov++->iov_len;
	return n;
}

typedef ssize_t vector_fn(int fd, const struct iovec *iov, int cnt,
			  off_t at);
typedef int64_t plain_fn(int fd, uint8_t *buf, uint64_t n, uint64_t at);

/* The vector call as far as it gets, then the rest piece by piece. */
static int64_t do_vector(vector_fn *vector, plain_fn *plain, int fd,
			 const struct iovec *iov, int cnt, uint64_t at)
{
	uint64_t done = 0, seen = 0, skip;
	int64_t got;

	do
		got = vector(fd, iov, cnt < IOV_MAX ? cnt : IOV_MAX,
			     (off_t)at);
	while (got < 0 && errno == EINTR);
	if (got < 0)
		return -errno;
	done = (uint64_t)got;
	for (; cnt > 0; seen += iov->iov_len, iov++, cnt--) {
		skip = done - seen;
		if (skip >= iov->iov_len)
			continue;
		got = plain(fd, (uint8_t *)iov->iov_base + skip,
			    iov->iov_len - skip, at + done);
		if (got < 0)
			return got;
		done += (uint64_t)got;
		if ((uint64_t)got < iov->iov_len - skip)
			break;
	}
	return (int64_t)done;
}

int64_t obd_io_preadv(int fd, const struct iovec *iov, int cnt, uint64_t at)
{
	struct io_call call = { .op = OBD_IO_PREAD, .fd = fd,
				.at = (int64_t)at };
	int64_t got;

	if (io_off())
		return do_vector(preadv, do_pread, fd, iov, cnt, at);
	call.n = iov_bytes(iov, cnt);
	got = io_enter(&call, false);
	if (!got)
		got = do_vector(preadv, do_pread, fd, iov, cnt, at);
	io_leave(&call, got);
	return got;
}

/* ---- writing -------------------------------------------------------- */

static int64_t do_pwrite(int fd, uint8_t *buf, uint64_t n, uint64_t at)
{
	uint64_t done = 0;
	ssize_t put;

	while (done < n) {
		put = pwrite(fd, buf + done, n - done, (off_t)(at + done));
		if (put > 0)
			done += (uint64_t)put;
		else if (put == 0)
			return -EIO;
		else if (errno != EINTR)
			return -errno;
	}
	return (int64_t)done;
}

int64_t obd_io_pwrite(int32_t fd, const void *buf, uint64_t n, uint64_t at)
{
	struct iovec iov = { (void *)(uintptr_t)buf, n };
	struct io_call call = { .op = OBD_IO_PWRITE, .fd = fd, .iov = &iov,
				.at = (int64_t)at, .n = n };
	int64_t put;

	if (io_off())
		return do_pwrite(fd, iov.iov_base, n, at);
	put = io_enter(&call, true);
	if (!put)
		put = do_pwrite(fd, iov.iov_base, n, at);
	io_leave(&call, put);
	return put;
}

int64_t obd_io_pwritev(int fd, const struct iovec *iov, int cnt, uint64_t at)
{
	struct io_call call = { .op = OBD_IO_PWRITE, .fd = fd, .iov = iov,
				.at = (int64_t)at };
	int64_t put;

	if (io_off())
		return do_vector(pwritev, do_pwrite, fd, iov, cnt, at);
	call.n = iov_bytes(iov, cnt);
	put = io_enter(&call, true);
	if (!put)
		put = do_vector(pwritev, do_pwrite, fd, iov, cnt, at);
	io_leave(&call, put);
	return put;
}

static int64_t do_write(int fd, const uint8_t *buf, uint64_t n)
{
	uint64_t done = 0;
	ssize_t put;

	while (done < n) {
		put = write(fd, buf + done, n - done);
		if (put > 0)
			done += (uint64_t)put;
		else if (put == 0)
			return -EIO;
		else if (errno != EINTR)
			return -errno;
	}
	return (int64_t)done;
}

int64_t obd_io_write(int32_t fd, const void *buf, uint64_t n)
{
	struct iovec iov = { (void *)(uintptr_t)buf, n };
	struct io_call call = { .op = OBD_IO_PWRITE, .fd = fd, .iov = &iov,
				.at = NO_OFFSET, .n = n };
	int64_t put;

	if (io_off())
		return do_write(fd, buf, n);
	put = io_enter(&call, false);
	if (!put)
		put = do_write(fd, buf, n);
	io_leave(&call, put);
	return put;
}

/* ---- sizes and syncs ------------------------------------------------ */

static int32_t do_sync(int fd, int32_t data_only)
{
	int rc;

	do
		rc = data_only ? fdatasync(fd) : fsync(fd);
	while (rc && errno == EINTR);
	return rc ? -errno : 0;
}

int32_t obd_io_sync(int32_t fd, int32_t data_only)
{
	struct io_call call = { .op = OBD_IO_SYNC, .fd = fd,
				.at = NO_OFFSET };
	int32_t rc;

	if (io_off())
		return do_sync(fd, data_only);
	rc = io_enter(&call, true);
	if (!rc)
		rc = do_sync(fd, data_only);
	io_leave(&call, rc);
	return rc;
}

static int32_t do_truncate(int fd, uint64_t size)
{
	int rc;

	if (size > INT64_MAX)
		return -EFBIG;
	do
		rc = ftruncate(fd, (off_t)size);
	while (rc && errno == EINTR);
	return rc ? -errno : 0;
}

int32_t obd_io_truncate(int32_t fd, uint64_t size)
{
	struct io_call call = { .op = OBD_IO_TRUNCATE, .fd = fd,
				.at = (int64_t)size };
	int32_t rc;

	if (io_off())
		return do_truncate(fd, size);
	rc = io_enter(&call, true);
	if (!rc)
		rc = do_truncate(fd, size);
	io_leave(&call, rc);
	return rc;
}

static int32_t do_allocate(int fd, int32_t mode, uint64_t at, uint64_t n)
{
	int rc;

	if (at > INT64_MAX || n > INT64_MAX - at)
		return -EFBIG;
	do
		rc = fallocate(fd, mode, (off_t)at, (off_t)n);
	while (rc && errno == EINTR);
	return rc ? -errno : 0;
}

int32_t obd_io_allocate(int32_t fd, int32_t mode, uint64_t at, uint64_t n)
{
	struct io_call call = { .op = OBD_IO_ALLOCATE, .fd = fd,
				.at = (int64_t)at, .n = n };
	int32_t rc;

	if (io_off())
		return do_allocate(fd, mode, at, n);
	rc = io_enter(&call, true);
	if (!rc)
		rc = do_allocate(fd, mode, at, n);
	io_leave(&call, rc);
	return rc;
}

int64_t obd_io_seek(int32_t fd, uint64_t at, int32_t whence)
{
	off_t pos = lseek(fd, (off_t)at, whence);

	return pos < 0 ? -errno : pos;
}

int64_t obd_io_size(int32_t fd)
{
	struct stat st;
	uint64_t size;

	if (fstat(fd, &st))
		return -errno;
	if (S_ISREG(st.st_mode))
		return st.st_size;
	if (!S_ISBLK(st.st_mode))
		return -EINVAL;
	if (ioctl(fd, BLKGETSIZE64, &size))
		return -errno;
	return (int64_t)size;
}

int32_t obd_io_flock(int32_t fd, int32_t operation)
{
	int rc;

	do
		rc = flock(fd, operation);
	while (rc && errno == EINTR);
	return rc ? -errno : 0;
}

/* ---- names ---------------------------------------------------------- */

static int32_t do_link(int fd, const char *path)
{
	char self[32];

	snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
	if (!linkat(AT_FDCWD, self, AT_FDCWD, path, AT_SYMLINK_FOLLOW))
		return 0;
	if (errno != ENOENT || !access("/proc/self/fd", F_OK))
		return -errno;
	/* Without /proc there is a privileged way. */
	if (!linkat(fd, "", AT_FDCWD, path, AT_EMPTY_PATH))
		return 0;
	return -errno;
}

int32_t obd_io_link(int32_t fd, const char *path)
{
	struct io_call call = { .op = OBD_IO_LINK, .fd = fd,
				.at = NO_OFFSET };
	int32_t rc;

	if (io_off())
		return do_link(fd, path);
	rc = io_enter(&call, true);
	if (!rc)
		rc = do_link(fd, path);
	io_leave(&call, rc);
	return rc;
}

int32_t obd_io_rename(const char *from, const char *to)
{
	struct io_call call = { .op = OBD_IO_RENAME, .fd = -1,
				.at = NO_OFFSET };
	int32_t rc;

	if (io_off())
		return rename(from, to) ? -errno : 0;
	call.inode = path_inode(from);
	rc = io_enter(&call, true);
	if (!rc && rename(from, to))
		rc = -errno;
	io_leave(&call, rc);
	return rc;
}

int32_t obd_io_unlink(const char *path)
{
	struct io_call call = { .op = OBD_IO_UNLINK, .fd = -1,
				.at = NO_OFFSET };
	int32_t rc;

	if (io_off())
		return unlink(path) ? -errno : 0;
	call.inode = path_inode(path);
	rc = io_enter(&call, true);
	if (!rc && unlink(path))
		rc = -errno;
	io_leave(&call, rc);
	return rc;
}

/* ---- limits --------------------------------------------------------- */

int64_t obd_io_nofile(uint64_t hard)
{
	struct rlimit now, want;

	if (getrlimit(RLIMIT_NOFILE, &now))
		return -errno;
	want.rlim_max = now.rlim_max < hard ? hard : now.rlim_max;
	want.rlim_cur = want.rlim_max;
	if (!setrlimit(RLIMIT_NOFILE, &want))
		return (int64_t)want.rlim_cur;
	now.rlim_cur = now.rlim_max; /* only root may raise that */
	return setrlimit(RLIMIT_NOFILE, &now) ? -errno :
						(int64_t)now.rlim_cur;
}
