/* SPDX-License-Identifier: Apache-2.0
 *
 * ring.c - the command ring of one TCMU device (spec tcmu 4, 5).
 *
 * The ring's watch belongs to one worker, which alone takes commands off
 * it; they end on any thread.  ring->lock guards everything but the mapped
 * memory that a command's iovecs name.  In the command area
 *
 *   done <= tail <= the kernel's cmd_head     (modulo its size)
 *
 * where [done, tail) was copied out and is not answered yet.  Entries there
 * are only containers: with out-of-order completion an answer goes into the
 * oldest one, under the id of the command that it answers.
 */
#include <pthread.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>

#include "tcmu.h"

#define MAILBOX_VERSION 2u
#define FLAG_OOOC 1u
#define FLAG_READ_LEN 2u
#define OP_PAD 0u
#define OP_CMD 1u
#define OP_TMR 2u
#define UFLAG_UNKNOWN 1u
#define UFLAG_READ_LEN 2u
#define ENTRY_MIN 112u       /* of a command: the answer's own size */
#define IOVS_AT 48u
#define CHUNK 16u            /* commands allocated at once */
#define CHUNKS_MAX 4096u     /* ids have 16 bits */
#define INLINE_IOVS 12u
#define IOVS_KEPT 64u        /* allocated once for most sizes of request */
#define PATTERN_BYTES (64u << 10)

enum state { IDLE, RUNNING, QUEUED, ASKED, FINISHED };

struct command {
	struct obd_request req;
	struct obd_task task;        /* WRITE SAME, UNMAP */
	struct obd_ring *ring;
	struct command *next;        /* idle, or queued for TypeScript */
	_Atomic enum state state;
	uint32_t tag;                /* its place in the ring's table */
	uint32_t entry;              /* where it stood in the command area */
	uint16_t id;
	uint8_t raw[16];
	struct scsi_cdb cdb;
	uint64_t length;             /* bytes of all iovecs */
	uint64_t moved;              /* of them, towards the initiator */
	bool moved_less;             /* and that is worth telling */
	uint32_t status, sense;
	const void *own_sense;       /* from TypeScript; NULL: sense */
	uint32_t iov_count, iov_room;
	struct iovec *iov, inline_iov[INLINE_IOVS];
};

struct obd_ring {
	struct obd_watch watch;
	pthread_mutex_t lock;
	pthread_cond_t idle;         /* nothing is running any more */
	uint8_t *map, *area;
	uint64_t map_size;
	uint32_t area_size, data_at;
	uint32_t tail, done;         /* see above */
	bool out_of_order, tells_length;
	bool broken;                 /* an entry made no sense */
	bool starved;                /* no memory for the next command */
	bool watched, changed;       /* changed: answers not published yet */
	uint32_t flags;
	uint64_t id;
	struct obd_device *dev;
	uint32_t attention;          /* asc << 8 | ascq; 0: none */
	uint32_t running, asked;     /* commands there */
	struct command **chunks;
	uint32_t chunk_count;
	struct command *free;
	struct obd_ring_stats stats;
};

/* Commands of all rings that wait for obd_scsi_drain().  Its lock is taken
 * after a ring's. */
static struct {
	pthread_mutex_t lock;
	struct command *head, **tail;
} asking = { .lock = PTHREAD_MUTEX_INITIALIZER, .tail = &asking.head };

/* ---- mapped memory ---------------------------------------------------- */

static uint32_t load32(const uint8_t *p)
{
	return __atomic_load_n((const uint32_t *)(const void *)p,
			       __ATOMIC_RELAXED);
}

/* What the kernel wrote before it moved its head is visible after. */
static uint32_t load_head(const struct obd_ring *ring)
{
	return __atomic_load_n((const uint32_t *)(const void *)
			       (ring->map + 12), __ATOMIC_ACQUIRE);
}

static void store_tail(struct obd_ring *ring)
{
	__atomic_store_n((uint32_t *)(void *)(ring->map + 64), ring->done,
			 __ATOMIC_RELEASE);
}

/* Length of the entry at `at`; 0: it cannot be one. */
static uint32_t entry_length(const struct obd_ring *ring, uint32_t at)
{
	uint32_t length = load32(ring->area + at) & ~7u;

	return length <= ring->area_size - at ? length : 0;
}

/* The same of one that must end at `end` or before, which lies ahead. */
static uint32_t length_within(const struct obd_ring *ring, uint32_t at,
			      uint32_t end)
{
	uint32_t length = entry_length(ring, at);

	return length >= 8 && (end < at || length <= end - at) ? length : 0;
}

static uint32_t entry_op(const struct obd_ring *ring, uint32_t at)
{
	return load32(ring->area + at) & 7u;
}

static uint32_t after(const struct obd_ring *ring, uint32_t at,
		      uint32_t length)
{
	at += length;
	return at == ring->area_size ? 0 : at;
}

/* ---- commands --------------------------------------------------------- */

static struct command *find(struct obd_ring *ring, uint32_t tag)
{
	if (tag / CHUNK >= ring->chunk_count)
		return NULL;
	return &ring->chunks[tag / CHUNK][tag % CHUNK];
}

static int grow(struct obd_ring *ring)
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

static int room_for(struct command *cmd, uint32_t count)
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

/* Copies between the iovecs from byte `at` and buf. Bytes moved. */
static uint64_t copy(struct command *cmd, void *buf, uint64_t n, uint64_t at,
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

/* ---- answers ---------------------------------------------------------- */

static void write_answer(struct obd_ring *ring, struct command *cmd,
			 uint32_t at)
{
	bool less = ring->tells_length && cmd->moved_less;
	uint8_t *entry = ring->area + at;
	uint32_t length = (uint32_t)cmd->moved;

	memcpy(entry + 4, &cmd->id, sizeof(cmd->id));
	entry[7] = less ? UFLAG_READ_LEN : 0;
	memset(entry + 8, 0, ENTRY_MIN - 8);
	entry[8] = (uint8_t)cmd->status;
	if (less)
		memcpy(entry + 12, &length, sizeof(length));
	if (cmd->own_sense)
		memcpy(entry + 16, cmd->own_sense, SCSI_SENSE_BYTES);
	else if (cmd->status == SAM_CHECK_CONDITION)
		scsi_sense(cmd->sense, entry + 16);
}

static void release(struct obd_ring *ring, struct command *cmd)
{
	cmd->state = IDLE;
	cmd->next = ring->free;
	ring->free = cmd;
	ring->stats.depth--;
	if (!--ring->running)
		pthread_cond_broadcast(&ring->idle);
}

/* Entries that want no answer are consumed when nothing before them does. */
static void pass_over(struct obd_ring *ring)
{
	uint32_t length;

	while (!ring->broken && ring->done != ring->tail &&
	       entry_op(ring, ring->done) != OP_CMD) {
		length = length_within(ring, ring->done, ring->tail);
		ring->broken = !length;
		ring->done = after(ring, ring->done, length);
		ring->changed = true;
	}
}

/* Entries keep their lengths; should one not, no answer is written. */
static void consume(struct obd_ring *ring, struct command *cmd)
{
	uint32_t length = length_within(ring, ring->done, ring->tail);

	ring->broken |= length < ENTRY_MIN;
	if (!ring->broken) {
		write_answer(ring, cmd, ring->done);
		ring->done = after(ring, ring->done, length);
		ring->changed = true;
	}
	release(ring, cmd);
	pass_over(ring);
}

/* The finished command that stood at `at`. */
static struct command *finished_at(struct obd_ring *ring, uint32_t at)
{
	struct command *cmd;
	uint32_t tag;

	for (tag = 0; (cmd = find(ring, tag)); tag++)
		if (cmd->state == FINISHED && cmd->entry == at)
			return cmd;
	return NULL;
}

/* status, sense and the rest are set; the lock is held. */
static void finish(struct obd_ring *ring, struct command *cmd)
{
	pass_over(ring);
	if (ring->out_of_order) {
		consume(ring, cmd);
		return;
	}
	cmd->state = FINISHED;
	if (cmd->own_sense) { /* not the caller's for ever */
		cmd->sense = (uint32_t)(((const uint8_t *)cmd->own_sense)[2]
					<< 16 |
			     ((const uint8_t *)cmd->own_sense)[12] << 8 |
			     ((const uint8_t *)cmd->own_sense)[13]);
		cmd->own_sense = NULL;
	}
	while (ring->done != ring->tail &&
	       (cmd = finished_at(ring, ring->done)))
		consume(ring, cmd);
}

static void finish_with(struct obd_ring *ring, struct command *cmd, int err)
{
	cmd->status = scsi_status(cmd->cdb.kind, err, &cmd->sense);
	finish(ring, cmd);
}

static void refuse(struct obd_ring *ring, struct command *cmd, uint32_t sense)
{
	cmd->status = SAM_CHECK_CONDITION;
	cmd->sense = sense;
	finish(ring, cmd);
}

static void take_all(struct obd_ring *ring);

/* In a broken ring nothing is answered: what waits for its turn ends. */
static void release_finished(struct obd_ring *ring)
{
	struct command *cmd;
	uint32_t tag;

	for (tag = 0; (cmd = find(ring, tag)); tag++)
		if (cmd->state == FINISHED)
			release(ring, cmd);
}

/* Ends every turn: one store and one write for all answers of it.  What
 * there was no memory for is taken once a command has ended. */
static void settle(struct obd_ring *ring)
{
	uint32_t zero = 0;

	if (ring->starved && ring->free) {
		ring->starved = false;
		take_all(ring);
	}
	if (ring->broken)
		release_finished(ring);

	if (ring->changed) {
		store_tail(ring);
		ring->changed = false;
		ring->stats.kicks++;
		/* Fails only for a device that is gone. */
		(void)!write(ring->watch.fd, &zero, sizeof(zero));
	}
	pthread_mutex_unlock(&ring->lock);
}

/* ---- reads, writes, flushes ------------------------------------------- */

static void request_done(struct obd_request *req)
{
	struct command *cmd = req->owner;
	struct obd_ring *ring = cmd->ring;

	pthread_mutex_lock(&ring->lock);
	finish_with(ring, cmd, req->err);
	settle(ring);
}

static void submit(struct obd_ring *ring, struct command *cmd, int op,
		   uint64_t bytes)
{
	bool fua = cmd->cdb.fua && ring->flags & OBD_RING_WRITE_CACHE;

	cmd->req = (struct obd_request){
		.dev = ring->dev,
		.done = request_done,
		.owner = cmd,
		.offset = op == OBD_FLUSH ? 0 : cmd->cdb.lba * OBD_SECTOR,
		.length = (uint32_t)bytes,
		.op = (uint16_t)op,
		.flags = op == OBD_WRITE && fua ? OBD_REQ_FUA : 0,
		.iov = cmd->iov,
		.iov_count = op == OBD_FLUSH ? 0 : cmd->iov_count,
	};
	if (obd_request_submit(&cmd->req))
		finish_with(ring, cmd, cmd->req.err);
}

/* Leaves the first n bytes of the data area. */
static void cut_iovs(struct command *cmd, uint64_t n)
{
	uint32_t i;

	for (i = 0; i < cmd->iov_count && n; i++) {
		if (cmd->iov[i].iov_len > n)
			cmd->iov[i].iov_len = n;
		n -= cmd->iov[i].iov_len;
	}
	cmd->iov_count = i;
}

/* What both the CDB and the iovecs have room for is moved. */
static void transfer(struct obd_ring *ring, struct command *cmd)
{
	uint64_t n = cmd->cdb.count * OBD_SECTOR;

	if (n > cmd->length)
		n = cmd->length;
	if (n % OBD_SECTOR || n > UINT32_MAX) {
		refuse(ring, cmd, SENSE_CDB_FIELD);
		return;
	}
	if (cmd->cdb.kind == SCSI_READ) {
		cmd->moved = n;
		cmd->moved_less = n < cmd->length;
	}
	cut_iovs(cmd, n);
	if (n)
		submit(ring, cmd, cmd->cdb.kind == SCSI_READ ? OBD_READ :
							       OBD_WRITE, n);
	else
		finish_with(ring, cmd, 0);
}

/* ---- ranges: on a helper thread --------------------------------------- */

static bool all_zero(const uint8_t *p, size_t n)
{
	return !*p && !memcmp(p, p + 1, n - 1);
}

static int write_pattern(struct obd_device *dev, const uint8_t *block,
			 uint64_t at, uint64_t bytes)
{
	uint8_t *buf = malloc(PATTERN_BYTES);
	uint64_t n;
	int err = 0;

	if (!buf)
		return -ENOMEM;
	for (n = 0; n < PATTERN_BYTES; n += OBD_SECTOR)
		memcpy(buf + n, block, OBD_SECTOR);
	for (; !err && bytes; bytes -= n, at += n) {
		n = bytes < PATTERN_BYTES ? bytes : PATTERN_BYTES;
		err = obd_device_write(dev, buf, n, at);
	}
	free(buf);
	return err;
}

static int write_same(struct command *cmd)
{
	uint64_t at = cmd->cdb.lba * OBD_SECTOR;
	uint64_t bytes = cmd->cdb.count * OBD_SECTOR;
	struct obd_device *dev = cmd->ring->dev;
	uint8_t block[OBD_SECTOR] = { 0 };

	if (cmd->cdb.unmap)
		return obd_device_discard(dev, at, bytes);
	if (!cmd->cdb.no_data)
		copy(cmd, block, sizeof(block), 0, false);
	if (all_zero(block, sizeof(block)))
		return obd_device_zero(dev, at, bytes);
	return write_pattern(dev, block, at, bytes);
}

/* Every range is checked before the first is dropped. -ERANGE: one is not
 * inside the disk. */
static int unmap(struct command *cmd, uint32_t *sense)
{
	struct obd_device *dev = cmd->ring->dev;
	uint64_t size = obd_device_size(dev) / OBD_SECTOR, lba, count;
	uint64_t n = cmd->cdb.count < cmd->length ? cmd->cdb.count :
						    cmd->length;
	uint8_t *list = malloc(n + 1), *p;
	int ranges, i, pass, err = 0;

	if (!list)
		return -ENOMEM;
	copy(cmd, list, n, 0, false);
	ranges = scsi_unmap_ranges(list, n);
	if (ranges < 0)
		*sense = (uint32_t)-ranges;
	for (pass = 0; pass < 2 && !*sense && !err; pass++)
		for (i = 0; i < ranges && !err && !*sense; i++) {
			p = list + 8 + 16 * i;
			lba = scsi_be(p, 8);
			count = scsi_be(p + 8, 4);
			if (lba > size || count > size - lba)
				*sense = SENSE_RANGE;
			else if (pass)
				err = obd_device_discard(dev,
					lba * OBD_SECTOR, count * OBD_SECTOR);
		}
	free(list);
	return err;
}

static void run_task(struct obd_task *task)
{
	struct command *cmd = (struct command *)((char *)task -
		offsetof(struct command, task));
	struct obd_ring *ring = cmd->ring;
	uint32_t sense = 0;
	int err;

	err = cmd->cdb.kind == SCSI_UNMAP ? unmap(cmd, &sense) :
					    write_same(cmd);
	pthread_mutex_lock(&ring->lock);
	if (sense)
		refuse(ring, cmd, sense);
	else
		finish_with(ring, cmd, err);
	settle(ring);
}

static void offload(struct obd_ring *ring, struct command *cmd)
{
	int err;

	if (cmd->cdb.anchor ||
	    (cmd->cdb.kind == SCSI_WRITE_SAME && !cmd->cdb.unmap &&
	     !cmd->cdb.no_data && cmd->length < OBD_SECTOR) ||
	    (cmd->cdb.kind == SCSI_WRITE_SAME && !cmd->cdb.count)) {
		refuse(ring, cmd, SENSE_CDB_FIELD);
		return;
	}
	cmd->task.fn = run_task;
	err = obd_plane_offload(&cmd->task);
	if (err)
		finish_with(ring, cmd, err);
}

/* ---- commands in ------------------------------------------------------ */

static void ask(struct obd_ring *ring, struct command *cmd)
{
	bool first;

	cmd->state = QUEUED;
	cmd->next = NULL;
	ring->asked++;
	ring->stats.asked++;
	pthread_mutex_lock(&asking.lock);
	first = !asking.head;
	*asking.tail = cmd;
	asking.tail = &cmd->next;
	pthread_mutex_unlock(&asking.lock);
	if (first)
		obd_wake();
}

/* True: the command has told the initiator what has changed. */
static bool tell_attention(struct obd_ring *ring, struct command *cmd)
{
	uint8_t opcode = cmd->raw[0];

	if (!ring->attention || opcode == 0x12 || opcode == 0x03 ||
	    opcode == 0xa0)
		return false;
	refuse(ring, cmd, SENSE_ATTENTION | ring->attention);
	ring->attention = 0;
	return true;
}

static bool in_range(struct obd_ring *ring, const struct scsi_cdb *cdb)
{
	uint64_t size = obd_device_size(ring->dev) / OBD_SECTOR;

	return cdb->lba <= size && cdb->count <= size - cdb->lba;
}

static void start(struct obd_ring *ring, struct command *cmd)
{
	bool readonly = obd_device_flags(ring->dev) & OBD_DEVICE_READONLY;
	enum scsi_kind kind = cmd->cdb.kind;

	if (tell_attention(ring, cmd))
		return;
	if (kind == SCSI_REFUSE) {
		ring->stats.refused++;
		refuse(ring, cmd, SENSE_OPCODE);
	} else if (kind == SCSI_ASK) {
		ask(ring, cmd);
	} else if (readonly && kind == SCSI_SYNC) {
		finish_with(ring, cmd, 0);
	} else if (readonly && kind != SCSI_READ) {
		refuse(ring, cmd, SENSE_READ_ONLY);
	} else if (kind == SCSI_SYNC) {
		submit(ring, cmd, OBD_FLUSH, 0);
	} else if (kind != SCSI_UNMAP && !in_range(ring, &cmd->cdb)) {
		refuse(ring, cmd, SENSE_RANGE);
	} else if (kind == SCSI_READ || kind == SCSI_WRITE) {
		transfer(ring, cmd);
	} else {
		offload(ring, cmd);
	}
}

/* Copies iovecs and CDB out of the entry. 0, -ENOMEM, -ERANGE: something
 * lies outside the entry or the data area. */
static int copy_out(struct obd_ring *ring, struct command *cmd,
		    const uint8_t *entry, uint32_t length)
{
	uint32_t count = load32(entry + 8), i;
	uint64_t cdb_off, base, n;

	memcpy(&cdb_off, entry + 24, sizeof(cdb_off));
	/* The CDB may be shorter than 16 bytes at the end of the area. */
	cdb_off -= (uint64_t)(entry - ring->map);
	if (cdb_off >= length || count > (length - IOVS_AT) / 16)
		return -ERANGE;
	n = length - cdb_off;
	memset(cmd->raw, 0, sizeof(cmd->raw));
	memcpy(cmd->raw, entry + cdb_off, n < 16 ? n : 16);
	scsi_parse(cmd->raw, &cmd->cdb);
	if (cmd->cdb.length < 16)
		memset(cmd->raw + cmd->cdb.length, 0, 16 - cmd->cdb.length);
	if (cmd->cdb.length > n)
		return -ERANGE;
	if (room_for(cmd, count))
		return -ENOMEM;
	for (i = 0; i < count; i++) {
		memcpy(&base, entry + IOVS_AT + 16 * i, 8);
		memcpy(&n, entry + IOVS_AT + 16 * i + 8, 8);
		if (base < ring->data_at || base > ring->map_size ||
		    n > ring->map_size - base)
			return -ERANGE;
		cmd->iov[i] = (struct iovec){ ring->map + base, n };
		cmd->length += n;
	}
	cmd->iov_count = count;
	return 0;
}

static int take_command(struct obd_ring *ring, uint32_t length)
{
	const uint8_t *entry = ring->area + ring->tail;
	struct command *cmd;
	int err;

	if (!ring->free && grow(ring)) {
		ring->starved = true;
		return -ENOMEM;
	}
	cmd = ring->free;
	ring->free = cmd->next;
	cmd->state = RUNNING;
	cmd->entry = ring->tail;
	memcpy(&cmd->id, entry + 4, sizeof(cmd->id));
	cmd->length = cmd->moved = 0;
	cmd->moved_less = false;
	cmd->own_sense = NULL;
	cmd->sense = 0;
	cmd->iov_count = 0;
	cmd->cdb.kind = SCSI_ASK;
	ring->running++;
	ring->stats.commands++;
	if (++ring->stats.depth > ring->stats.depth_max)
		ring->stats.depth_max = ring->stats.depth;
	err = copy_out(ring, cmd, entry, length);
	ring->tail = after(ring, ring->tail, length);
	if (err == -ERANGE)
		refuse(ring, cmd, SENSE_INTERNAL);
	else if (err)
		finish_with(ring, cmd, err);
	else
		start(ring, cmd);
	return 0;
}

/* One entry before head.  False: stop, it makes no sense or there is no
 * memory. */
static bool take_entry(struct obd_ring *ring, uint32_t head)
{
	uint32_t length = length_within(ring, ring->tail, head);
	uint32_t op = entry_op(ring, ring->tail);

	if (!length || (op == OP_CMD && length < ENTRY_MIN)) {
		ring->broken = true;
		return false;
	}
	if (op == OP_CMD)
		return !take_command(ring, length);
	if (op != OP_PAD && op != OP_TMR) {
		ring->stats.refused++;
		ring->area[ring->tail + 7] |= UFLAG_UNKNOWN;
	}
	ring->tail = after(ring, ring->tail, length);
	pass_over(ring);
	return true;
}

static void take_all(struct obd_ring *ring)
{
	uint32_t head;

	while (!ring->broken) {
		head = load_head(ring);
		if (head == ring->tail)
			return;
		if (head >= ring->area_size || head % 8)
			ring->broken = true;
		else if (!take_entry(ring, head))
			return;
	}
}

static void readable(struct obd_watch *watch, uint32_t events)
{
	struct obd_ring *ring = (struct obd_ring *)watch;
	bool gone = events & (EPOLLERR | EPOLLHUP);
	uint32_t count;

	if (read(watch->fd, &count, sizeof(count)) < 0 && errno != EAGAIN &&
	    errno != EINTR)
		gone = true;
	pthread_mutex_lock(&ring->lock);
	take_all(ring);
	if (gone) /* a removed device would be readable for ever */
		ring->watched = obd_plane_remove(watch) != 0;
	settle(ring);
}

/* ---- for TypeScript --------------------------------------------------- */

int32_t obd_scsi_drain(struct obd_scsi_command *out, uint32_t max)
{
	struct command *cmd;
	uint32_t n = 0;

	if (max > INT32_MAX)
		max = INT32_MAX;
	pthread_mutex_lock(&asking.lock);
	while (n < max && (cmd = asking.head)) {
		asking.head = cmd->next;
		if (!asking.head)
			asking.tail = &asking.head;
		out[n] = (struct obd_scsi_command){
			.ring = cmd->ring->id,
			.length = cmd->length,
			.tag = cmd->tag,
			.cdb_length = cmd->cdb.length,
		};
		memcpy(out[n++].cdb, cmd->raw, sizeof(cmd->raw));
		cmd->state = ASKED;
	}
	pthread_mutex_unlock(&asking.lock);
	return (int32_t)n;
}

/* The command that TypeScript was asked about under tag. */
static struct command *asked_command(struct obd_ring *ring, uint32_t tag)
{
	struct command *cmd = find(ring, tag);
	bool asked;

	pthread_mutex_lock(&asking.lock);
	asked = cmd && cmd->state == ASKED;
	pthread_mutex_unlock(&asking.lock);
	return asked ? cmd : NULL;
}

int64_t obd_ring_data(struct obd_ring *ring, uint32_t tag, void *buf,
		      uint64_t n, uint64_t at)
{
	struct command *cmd;
	int64_t got = -ENOENT;

	pthread_mutex_lock(&ring->lock);
	cmd = asked_command(ring, tag);
	if (cmd)
		got = (int64_t)copy(cmd, buf, n, at, false);
	pthread_mutex_unlock(&ring->lock);
	return got;
}

int32_t obd_ring_complete(struct obd_ring *ring, uint32_t tag,
			  uint32_t status, const void *sense,
			  const void *data, uint64_t n)
{
	struct command *cmd;

	pthread_mutex_lock(&ring->lock);
	cmd = asked_command(ring, tag);
	if (!cmd) {
		pthread_mutex_unlock(&ring->lock);
		return -ENOENT;
	}
	ring->asked--;
	cmd->state = RUNNING;
	cmd->status = status;
	cmd->own_sense = sense;
	if (data) {
		cmd->moved = copy(cmd, (void *)(uintptr_t)data, n, 0, true);
		cmd->moved_less = cmd->moved < cmd->length;
	}
	finish(ring, cmd);
	settle(ring);
	return 0;
}

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
	pthread_mutex_unlock(&ring->lock);
	return 0;
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
	ring->tail = ring->done = load32(ring->map + 64);
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
	ring->watch = (struct obd_watch){ .fn = readable, .fd = uio_fd };
	init_locks(ring);
	err = check_mailbox(ring);
	if (!err) /* so that one can always be taken when none runs */
		err = grow(ring);
	if (!err)
		err = obd_plane_add(&ring->watch, EPOLLIN);
	if (err) {
		ring_free(ring);
		return err;
	}
	/* What came before there was a watch wakes nobody. */
	pthread_mutex_lock(&ring->lock);
	take_all(ring);
	settle(ring);
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

/* Takes the ring's commands off the queue for TypeScript. */
static void unqueue(struct obd_ring *ring)
{
	struct command **p = &asking.head, *cmd;

	pthread_mutex_lock(&asking.lock);
	while ((cmd = *p)) {
		if (cmd->ring == ring) {
			*p = cmd->next;
			cmd->state = ASKED;
		} else {
			p = &cmd->next;
		}
	}
	asking.tail = p;
	pthread_mutex_unlock(&asking.lock);
}

/* Ends what TypeScript has not answered. */
static void end_asked(struct obd_ring *ring)
{
	struct command *cmd;
	uint32_t tag;

	unqueue(ring);
	for (tag = 0; ring->asked && (cmd = find(ring, tag)); tag++)
		if (cmd->state == ASKED) {
			ring->asked--;
			cmd->state = RUNNING;
			finish_with(ring, cmd, -ESHUTDOWN);
		}
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
	end_asked(ring);
	if (ring->running) {
		settle(ring);
		obd_device_close(ring->dev, -ESHUTDOWN);
		pthread_mutex_lock(&ring->lock);
	}
	while (ring->running)
		wait_until(ring, obd_now_ms() + 1000);
	settle(ring);
	fd = ring->watch.fd;
	ring_free(ring);
	close(fd);
	return 0;
}
