/* SPDX-License-Identifier: Apache-2.0
 *
 * ring.c - a ring's memory and life: its table of commands, from the mapping
 * to the end of the last one.  ring.h says what guards what.
 */
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>

#include "ring.h"

#define MAILBOX_VERSION 2u
#define FLAG_OOOC 1u
#define FLAG_READ_LEN 2u
#define CHUNKS_MAX 4096u     /* ids have 16 bits */
#define IOVS_KEPT 64u        /* allocated once for most sizes of request */

/* ---- commands --------------------------------------------------------- */

struct command *ring_find(struct obd_ring *ring, uint32_t tag)
{
	if (tag / CHUNK >= ring->chunk_count)
		return NULL;
	return &ring->chunks[tag / CHUNK][tag % CHUNK];
}

int ring_grow(struct obd_ring *ring)
{
	struct command **chunks, *chunk;
	uint32_t i;

	if (ring->chunk_count == CHUNKS_MAX)
		return -ENOMEM;
	chunks = realloc(ring->chunks,
			 (ring->chunk_count + 1) * sizeof(*chunks));
	if (!chunks)
		return -ENOMEM;
	ring->chunks = chunks;
	chunk = calloc(CHUNK, sizeof(*chunk));
	if (!chunk)
		return -ENOMEM;
	chunks[ring->chunk_count] = chunk;
	for (i = 0; i < CHUNK; i++) {
		chunk[i].ring = ring;
		chunk[i].tag = ring->chunk_count * CHUNK + i;
		chunk[i].iov = chunk[i].inline_iov;
		chunk[i].iov_room = INLINE_IOVS;
		chunk[i].next = ring->free;
		ring->free = &chunk[i];
	}
	ring->chunk_count++;
	return 0;
}

int ring_room_for(struct command *cmd, uint32_t count)
{
	struct iovec *iov;

	if (count <= cmd->iov_room)
		return 0;
	if (count < IOVS_KEPT)
		count = IOVS_KEPT;
	iov = malloc(count * sizeof(*iov));
	if (!iov)
		return -ENOMEM;
	if (cmd->iov != cmd->inline_iov)
		free(cmd->iov);
	cmd->iov = iov;
	cmd->iov_room = count;
	return 0;
}

uint64_t ring_copy(struct command *cmd, void *buf, uint64_t n, uint64_t at,
		   bool out)
{
	uint64_t moved = 0, part;
	uint32_t i;

	for (i = 0; i < cmd->iov_count && moved < n; i++) {
		if (at >= cmd->iov[i].iov_len) {
			at -= cmd->iov[i].iov_len;
			continue;
		}
		part = cmd->iov[i].iov_len - at;
		if (part > n - moved)
			part = n - moved;
		if (out)
			memcpy((uint8_t *)cmd->iov[i].iov_base + at,
			       (uint8_t *)buf + moved, part);
		else
			memcpy((uint8_t *)buf + moved,
			       (uint8_t *)cmd->iov[i].iov_base + at, part);
		moved += part;
		at = 0;
	}
	return moved;
}

void ring_break(struct obd_ring *ring, uint32_t bad, uint32_t at,
		uint32_t value)
{
	ring->broken = true;
	ring->stats.bad = bad;
	ring->stats.bad_at = at;
	ring->stats.bad_value = value;
}

bool ring_is_ours(struct obd_ring *ring)
{
	uint32_t tail = load32(ring->map + 64);

	if (tail == ring->told)
		return true;
	ring_break(ring, OBD_RING_BAD_TAIL, ring->told, tail);
	return false;
}

/* ---- life ------------------------------------------------------------- */

static int check_mailbox(struct obd_ring *ring)
{
	uint16_t version, flags;
	uint32_t off = load32(ring->map + 4), size = load32(ring->map + 8);

	memcpy(&version, ring->map, 2);
	memcpy(&flags, ring->map + 2, 2);
	if (version != MAILBOX_VERSION)
		return -EPROTO;
	if (off < 68 || off % 8 || size < ENTRY_MIN || size % 8 ||
	    off > ring->map_size || size > ring->map_size - off)
		return -ERANGE;
	ring->area = ring->map + off;
	ring->area_size = size;
	ring->data_at = off + size;
	ring->out_of_order = flags & FLAG_OOOC;
	ring->tells_length = flags & FLAG_READ_LEN;
	ring->tail = ring->done = ring->told = load32(ring->map + 64);
	return ring->done < size && ring->done % 8 == 0 ? 0 : -ERANGE;
}

static void ring_free(struct obd_ring *ring)
{
	uint32_t i, j;

	for (i = 0; i < ring->chunk_count; i++) {
		for (j = 0; j < CHUNK; j++)
			if (ring->chunks[i][j].iov !=
			    ring->chunks[i][j].inline_iov)
				free(ring->chunks[i][j].iov);
		free(ring->chunks[i]);
	}
	free(ring->chunks);
	munmap(ring->map, ring->map_size);
	obd_device_unref(ring->dev);
	pthread_cond_destroy(&ring->idle);
	pthread_mutex_destroy(&ring->lock);
	free(ring);
}

static void init_locks(struct obd_ring *ring)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&ring->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&ring->idle, &attr);
	pthread_condattr_destroy(&attr);
}

int32_t obd_ring_new(int32_t uio_fd, uint64_t map_size,
		     struct obd_device *dev, uint32_t flags, uint64_t id,
		     struct obd_ring **out)
{
	struct obd_ring *ring;
	int err;

	if (map_size < 4096 || map_size > INT64_MAX)
		return -ERANGE;
	ring = calloc(1, sizeof(*ring));
	if (!ring)
		return -ENOMEM;
	ring->map = mmap(NULL, map_size, PROT_READ | PROT_WRITE, MAP_SHARED,
			 uio_fd, 0);
	if (ring->map == MAP_FAILED) {
		err = -errno;
		free(ring);
		return err;
	}
	ring->map_size = map_size;
	ring->dev = obd_device_ref(dev);
	ring->flags = flags;
	ring->id = id;
	ring->watched = true;
	ring->watch = (struct obd_watch){ .fn = ring_readable, .fd = uio_fd };
	init_locks(ring);
	err = check_mailbox(ring);
	if (!err) /* so that one can always be taken when none runs */
		err = ring_grow(ring);
	if (!err)
		err = obd_plane_add(&ring->watch, EPOLLIN);
	if (err) {
		ring_free(ring);
		return err;
	}
	/* What came before there was a watch wakes nobody. */
	pthread_mutex_lock(&ring->lock);
	ring_take_all(ring);
	ring_settle(ring);
	*out = ring;
	return 0;
}

static bool drained(struct obd_ring *ring)
{
	return ring->broken || (!ring->running &&
				load_head(ring) == ring->done);
}

static void wait_until(struct obd_ring *ring, uint64_t ms)
{
	struct timespec at = { (time_t)(ms / 1000),
			       (long)(ms % 1000) * 1000000 };

	pthread_cond_timedwait(&ring->idle, &ring->lock, &at);
}

int32_t obd_ring_close(struct obd_ring *ring, uint32_t grace_ms)
{
	uint64_t now = obd_now_ms(), end = now + grace_ms;
	bool watched;
	int fd;

	if (!ring)
		return 0;
	pthread_mutex_lock(&ring->lock);
	for (; now < end && !drained(ring); now = obd_now_ms())
		wait_until(ring, now + 20 < end ? now + 20 : end);
	watched = ring->watched;
	pthread_mutex_unlock(&ring->lock);
	if (watched)
		obd_plane_remove(&ring->watch);
	/* Nothing is taken off the ring any more; what runs must end. */
	pthread_mutex_lock(&ring->lock);
	ring->closed = true;
	ring_end_asked(ring);
	if (ring->running) {
		ring_settle(ring);
		obd_device_close(ring->dev, -ESHUTDOWN);
		pthread_mutex_lock(&ring->lock);
	}
	while (ring->running)
		wait_until(ring, obd_now_ms() + 1000);
	ring_settle(ring);
	fd = ring->watch.fd;
	ring_free(ring);
	close(fd);
	return 0;
}

/* ---- settings and figures --------------------------------------------- */

int32_t obd_ring_set(struct obd_ring *ring, uint32_t flags)
{
	pthread_mutex_lock(&ring->lock);
	ring->flags = flags;
	pthread_mutex_unlock(&ring->lock);
	return 0;
}

int32_t obd_ring_attention(struct obd_ring *ring, uint32_t asc_ascq)
{
	pthread_mutex_lock(&ring->lock);
	ring->attention = asc_ascq & 0xffff;
	pthread_mutex_unlock(&ring->lock);
	return 0;
}

int32_t obd_ring_stat(struct obd_ring *ring, struct obd_ring_stats *out)
{
	pthread_mutex_lock(&ring->lock);
	*out = ring->stats;
	ring_settle(ring);
	return 0;
}
