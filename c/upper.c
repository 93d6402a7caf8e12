/* SPDX-License-Identifier: Apache-2.0
 *
 * upper.c - the writable layer: its life, its map in memory, and what both
 * kinds share.  upper_log.c and upper_sparse.c know the files.
 */
#include <fcntl.h>
#include <stdlib.h>

#include "core.h"

static struct obd_upper *upper_alloc(int kind, int data_fd, int index_fd,
				     uint64_t virtual_size)
{
	struct obd_upper *upper = calloc(1, sizeof(*upper));

	if (!upper)
		return NULL;
	upper->refs = 1;
	upper->kind = kind & ~OBD_UPPER_READONLY;
	upper->readonly = kind & OBD_UPPER_READONLY;
	upper->data_fd = data_fd;
	upper->index_fd = index_fd;
	upper->virtual_size = virtual_size;
	pthread_rwlock_init(&upper->maplock, NULL);
	pthread_rwlock_init(&upper->order, NULL);
	pthread_mutex_init(&upper->syncing, NULL);
	pthread_mutex_init(&upper->append, NULL);
	return upper;
}

/* All but the two descriptors. */
static void upper_free(struct obd_upper *upper)
{
	obd_source_unref(upper->data);
	if (upper->map)
		obd_map_free(upper->map);
	free(upper->scratch);
	pthread_rwlock_destroy(&upper->maplock);
	pthread_rwlock_destroy(&upper->order);
	pthread_mutex_destroy(&upper->syncing);
	pthread_mutex_destroy(&upper->append);
	free(upper);
}

static int upper_load(struct obd_upper *upper,
		      struct obd_upper_report *report)
{
	int err = obd_source_growing(upper->data_fd, &upper->data);

	if (err)
		return err;
	upper->map = obd_map_new();
	if (!upper->map)
		return -ENOMEM;
	return upper->kind == OBD_UPPER_LOG ? obd_log_load(upper, report) :
					      obd_sparse_load(upper, report);
}

int32_t obd_upper_open(int32_t kind, int32_t data_fd, int32_t index_fd,
		       uint64_t virtual_size,
		       struct obd_upper_report *report,
		       struct obd_upper **out)
{
	int32_t plain = kind & ~OBD_UPPER_READONLY;
	struct obd_upper *upper;
	int err;

	memset(report, 0, sizeof(*report));
	report->cut_record = UINT64_MAX;
	if (plain != OBD_UPPER_LOG && plain != OBD_UPPER_SPARSE)
		return -EINVAL;
	if (data_fd < 0 || (plain == OBD_UPPER_LOG) != (index_fd >= 0))
		return -EBADF;
	if (virtual_size > OBD_LBA_MASK * OBD_SECTOR)
		return -EINVAL;
	upper = upper_alloc(kind, data_fd, index_fd, virtual_size);
	if (!upper)
		return -ENOMEM;
	err = upper_load(upper, report);
	if (err) {
		upper_free(upper);
		return err;
	}
	*out = upper;
	return 0;
}

struct obd_upper *obd_upper_ref(struct obd_upper *upper)
{
	atomic_fetch_add_explicit(&upper->refs, 1, memory_order_relaxed);
	return upper;
}

void obd_upper_unref(struct obd_upper *upper)
{
	int data_fd, index_fd;

	if (!upper || atomic_fetch_sub_explicit(&upper->refs, 1,
						memory_order_acq_rel) != 1)
		return;
	data_fd = upper->data_fd;
	index_fd = upper->index_fd;
	upper_free(upper);
	obd_io_close(data_fd);
	if (index_fd >= 0)
		obd_io_close(index_fd);
}

int32_t obd_upper_busy(struct obd_upper *upper)
{
	return atomic_load_explicit(&upper->refs, memory_order_acquire) != 1;
}

/* ---- the map ----------------------------------------------------------- */

int obd_upper_map(struct obd_upper *upper, struct obd_record rec)
{
	int err;

	pthread_rwlock_wrlock(&upper->maplock);
	err = obd_map_insert(upper->map, rec);
	pthread_rwlock_unlock(&upper->maplock);
	return err;
}

uint32_t obd_upper_find(struct obd_upper *upper, uint64_t lba,
			uint64_t sectors, struct obd_record *out,
			uint32_t max)
{
	uint32_t n;

	pthread_rwlock_rdlock(&upper->maplock);
	n = obd_map_find(upper->map, lba, sectors, out, max);
	pthread_rwlock_unlock(&upper->maplock);
	return n;
}

int32_t obd_upper_snapshot(struct obd_upper *upper, struct obd_index **out)
{
	struct obd_record *records;
	uint64_t n;
	int err;

	pthread_rwlock_rdlock(&upper->maplock);
	n = obd_map_count(upper->map);
	records = malloc((n ? n : 1) * sizeof(*records));
	if (records)
		obd_map_dump(upper->map, records);
	pthread_rwlock_unlock(&upper->maplock);
	if (!records)
		return -ENOMEM;
	err = obd_index_adopt(records, n, out);
	if (err)
		free(records);
	return err;
}

int32_t obd_upper_source(struct obd_upper *upper, struct obd_source **out)
{
	int64_t size = obd_io_size(upper->data_fd);
	int fd, err;

	if (size < 0)
		return (int32_t)size;
	fd = fcntl(upper->data_fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	err = obd_source_file(fd, 0, (uint64_t)size, out);
	if (err)
		close(fd);
	return err;
}

/* ---- changes ----------------------------------------------------------- */

int obd_upper_change(struct obd_upper *upper, struct obd_request *req,
		     const struct obd_upper_ask *ask)
{
	if (!req->length ||
	    (req->op == OBD_EXTEND && upper->kind == OBD_UPPER_LOG))
		return 0;
	return upper->kind == OBD_UPPER_LOG ?
	       obd_log_change(upper, req) :
	       obd_sparse_change(upper, req, ask);
}

int obd_write_iov(int fd, const struct iovec *iov, uint32_t count,
		  uint64_t n, uint64_t at)
{
	int64_t got = obd_io_pwritev(fd, iov, (int)count, at);

	if (got < 0)
		return (int)got;
	return (uint64_t)got == n ? 0 : -EIO;
}

/* One flush at a time; who waited for one that covers his writes is done.
 * A failed sync is not tried again: the kernel has dropped the pages by
 * then and would call the next one a success. */
int32_t obd_upper_sync(struct obd_upper *upper)
{
	uint64_t target = atomic_load(&upper->changes);
	int err;

	if (upper->readonly)
		return 0;
	pthread_mutex_lock(&upper->syncing);
	err = atomic_load(&upper->broken);
	if (!err && atomic_load(&upper->synced) < target) {
		if (upper->kind == OBD_UPPER_LOG) {
			err = obd_log_sync(upper);
		} else {
			target = atomic_load(&upper->changes);
			err = obd_io_sync(upper->data_fd, 1);
			if (err)
				atomic_store(&upper->broken, err);
			else
				atomic_store(&upper->synced, target);
		}
	}
	pthread_mutex_unlock(&upper->syncing);
	return err;
}
