/* SPDX-License-Identifier: Apache-2.0
 *
 * map.c - the writable map: a B+tree with the 16-byte records in its
 * leaves.  The newest record wins: what it covers of older ones is cut off
 * or dropped.  Records are never joined: their bounds are what a commit
 * later writes.
 */
#include "map.h"

#include <stdlib.h>

#define LEAF_MAX 63u  /* with its header 1 KiB */
#define INNER_MAX 64u
/* Every level but the root's was made by halving full nodes. */
#define DEPTH_MAX 12u
/* Nodes are joined when the result leaves this much room, so that the next
 * insert does not halve them again. */
#define LEAF_JOIN (LEAF_MAX * 3 / 4)
#define INNER_JOIN (INNER_MAX * 3 / 4)
/* A full leaf gives to a neighbour that has room for this many, before it
 * is halved: nodes are fuller, for one more copy in several inserts. */
#define SPILL_ROOM 8u
/* One change makes at most two records more: a cut in the middle and the
 * new one. */
#define GROWTH 2u

/* Records ascend and are disjoint, within a leaf and from leaf to leaf.
 * No leaf is empty but that of an empty map. */
struct leaf {
	uint64_t count;
	struct obd_record rec[LEAF_MAX];
};

/* key[i] is exactly the end of the last record under child[i]. */
struct inner {
	uint64_t count;
	uint64_t key[INNER_MAX];
	void *child[INNER_MAX];
};

struct obd_map {
	struct obd_map_limits limits;
	void *root;        /* a leaf when depth is 0, else an inner node */
	uint32_t depth;
	uint64_t count;    /* records */
	uint64_t leaves, inners;
	/* Taken before anything is changed, so that a change cannot fail
	 * half way: one insert halves at most one node a level. */
	struct leaf *spare_leaf;
	struct inner *spare_inner[DEPTH_MAX + 1];
	uint32_t spares;
};

/* The way from the root to a place in a leaf. */
struct path {
	struct inner *node[DEPTH_MAX];
	uint32_t slot[DEPTH_MAX];
	struct leaf *leaf;
	uint32_t at;
};

/* ---- life ----------------------------------------------------------- */

struct obd_map *obd_map_new_limited(const struct obd_map_limits *limits)
{
	struct obd_map *map = limits->alloc(sizeof(*map));
	struct leaf *leaf = limits->alloc(sizeof(*leaf));

	if (!map || !leaf) {
		free(map);
		free(leaf);
		return NULL;
	}
	leaf->count = 0;
	*map = (struct obd_map){ .limits = *limits, .root = leaf,
				 .leaves = 1 };
	return map;
}

struct obd_map *obd_map_new(void)
{
	static const struct obd_map_limits limits = { malloc,
						      OBD_MAX_RW_RECORDS };

	return obd_map_new_limited(&limits);
}

static void free_under(void *node, uint32_t depth)
{
	struct inner *inner = node;
	uint64_t i;

	if (depth)
		for (i = 0; i < inner->count; i++)
			free_under(inner->child[i], depth - 1);
	free(node);
}

void obd_map_free(struct obd_map *map)
{
	if (!map)
		return;
	free_under(map->root, map->depth);
	free(map->spare_leaf);
	while (map->spares)
		free(map->spare_inner[--map->spares]);
	free(map);
}

uint64_t obd_map_count(const struct obd_map *map)
{
	return map->count;
}

uint64_t obd_map_bytes(const struct obd_map *map)
{
	return (map->leaves + (map->spare_leaf != NULL)) *
		       sizeof(struct leaf) +
	       (map->inners + map->spares) * sizeof(struct inner);
}

/* ---- search --------------------------------------------------------- */

/* The first child whose records end behind lba, or the last child. */
static uint32_t child_for(const struct inner *node, uint64_t lba)
{
	uint32_t low = 0, n = (uint32_t)node->count - 1;

	while (n) {
		uint32_t half = (n + 1) / 2;

		low += node->key[low + half - 1] <= lba ? half : 0;
		n -= half;
	}
	return low;
}

/* The first record that ends behind lba, or the leaf's count. */
static uint32_t place_for(const struct leaf *leaf, uint64_t lba)
{
	uint32_t low = 0, n = (uint32_t)leaf->count;

	while (n) {
		uint32_t half = (n + 1) / 2;

		low += rec_end(leaf->rec[low + half - 1]) <= lba ? half : 0;
		n -= half;
	}
	return low;
}

static void seek(const struct obd_map *map, uint64_t lba, struct path *path)
{
	void *node = map->root;
	uint32_t d;

	for (d = 0; d < map->depth; d++) {
		path->node[d] = node;
		path->slot[d] = child_for(node, lba);
		node = path->node[d]->child[path->slot[d]];
	}
	path->leaf = node;
	path->at = place_for(node, lba);
}

/* As seek(), for readers. */
static const struct leaf *leaf_for(const struct obd_map *map, uint64_t lba)
{
	const void *node = map->root;
	uint32_t d;

	for (d = 0; d < map->depth; d++) {
		const struct inner *inner = node;

		node = inner->child[child_for(inner, lba)];
	}
	return node;
}

static uint64_t clamp_end(uint64_t lba, uint64_t sectors)
{
	const uint64_t limit = OBD_LBA_MASK + 1;

	if (lba >= limit)
		return lba;
	return sectors > limit - lba ? limit : lba + sectors;
}

static struct obd_record clip(struct obd_record r, uint64_t from,
			      uint64_t to)
{
	return rec_cut(r, rec_lba(r) > from ? rec_lba(r) : from,
		       rec_end(r) < to ? rec_end(r) : to);
}

uint32_t obd_map_find(const struct obd_map *map, uint64_t lba,
		      uint64_t sectors, struct obd_record *out, uint32_t max)
{
	uint64_t to = clamp_end(lba, sectors), from = lba;
	uint32_t n = 0;

	while (from < to) {
		const struct leaf *leaf = leaf_for(map, from);
		uint32_t i = place_for(leaf, from);

		/* Only the last leaf can end before from. */
		if (i == leaf->count)
			break;
		for (; i < leaf->count; i++) {
			if (rec_lba(leaf->rec[i]) >= to || n == max)
				return n;
			out[n++] = clip(leaf->rec[i], from, to);
		}
		from = rec_end(leaf->rec[leaf->count - 1]);
	}
	return n;
}

static struct obd_record *dump_under(const void *node, uint32_t depth,
				     struct obd_record *out)
{
	const struct inner *inner = node;
	const struct leaf *leaf = node;
	uint64_t i;

	if (!depth) {
		memcpy(out, leaf->rec, leaf->count * sizeof(*out));
		return out + leaf->count;
	}
	for (i = 0; i < inner->count; i++)
		out = dump_under(inner->child[i], depth - 1, out);
	return out;
}

void obd_map_dump(const struct obd_map *map, struct obd_record *out)
{
	dump_under(map->root, map->depth, out);
}

/* ---- keeping the tree a tree ---------------------------------------- */

/* Takes what one insert can need at most. */
static int reserve(struct obd_map *map)
{
	if (map->depth == DEPTH_MAX)
		return -E2BIG;
	if (!map->spare_leaf)
		map->spare_leaf = map->limits.alloc(sizeof(struct leaf));
	if (!map->spare_leaf)
		return -ENOMEM;
	/* One a level, and a new root. */
	while (map->spares < map->depth + 1) {
		struct inner *node = map->limits.alloc(sizeof(*node));

		if (!node)
			return -ENOMEM;
		map->spare_inner[map->spares++] = node;
	}
	return 0;
}

static struct leaf *take_leaf(struct obd_map *map)
{
	struct leaf *leaf = map->spare_leaf;

	map->spare_leaf = NULL;
	map->leaves++;
	return leaf;
}

static struct inner *take_inner(struct obd_map *map)
{
	map->inners++;
	return map->spare_inner[--map->spares];
}

static void drop_node(struct obd_map *map, void *node, bool is_leaf)
{
	if (is_leaf)
		map->leaves--;
	else
		map->inners--;
	free(node);
}

/* Below node d of the path everything ends at `end` now: makes the keys
 * above exact again. */
static void fix_above(const struct path *path, uint32_t d, uint64_t end)
{
	while (d--) {
		struct inner *node = path->node[d];

		node->key[path->slot[d]] = end;
		if (path->slot[d] + 1 != node->count)
			return;
	}
}

/* The end of the leaf has moved. */
static void fix_keys(const struct obd_map *map, const struct path *path)
{
	fix_above(path, map->depth,
		  rec_end(path->leaf->rec[path->leaf->count - 1]));
}

static void inner_open(struct inner *node, uint32_t slot, uint64_t key,
		       void *child)
{
	uint64_t rest = node->count - slot;

	memmove(node->key + slot + 1, node->key + slot,
		rest * sizeof(*node->key));
	memmove(node->child + slot + 1, node->child + slot,
		rest * sizeof(*node->child));
	node->key[slot] = key;
	node->child[slot] = child;
	node->count++;
}

static void inner_close(struct inner *node, uint32_t slot)
{
	uint64_t rest = --node->count - slot;

	memmove(node->key + slot, node->key + slot + 1,
		rest * sizeof(*node->key));
	memmove(node->child + slot, node->child + slot + 1,
		rest * sizeof(*node->child));
}

/* How many of n stay left when a full node is halved.  One that grows at
 * the right edge of the map stays full: appending fills nodes. */
static uint32_t halve(uint32_t n, bool at_edge)
{
	return at_edge ? n - 1 : n / 2;
}

/* Puts child behind the one that path names on level d; left_end is the
 * new key of that one. */
static void add_child(struct obd_map *map, struct path *path, uint32_t d,
		      uint64_t left_end, void *child, uint64_t end)
{
	struct inner *node = path->node[d], *right;
	uint32_t slot = path->slot[d] + 1, keep;

	node->key[slot - 1] = left_end;
	if (node->count < INNER_MAX) {
		inner_open(node, slot, end, child);
		fix_above(path, d, node->key[node->count - 1]);
		return;
	}
	keep = halve(INNER_MAX, slot == INNER_MAX);
	right = take_inner(map);
	right->count = INNER_MAX - keep;
	memcpy(right->key, node->key + keep,
	       right->count * sizeof(*right->key));
	memcpy(right->child, node->child + keep,
	       right->count * sizeof(*right->child));
	node->count = keep;
	if (slot > keep)
		inner_open(right, slot - keep, end, child);
	else
		inner_open(node, slot, end, child);
	end = right->key[right->count - 1];
	left_end = node->key[node->count - 1];
	if (d) {
		add_child(map, path, d - 1, left_end, right, end);
		return;
	}
	map->root = take_inner(map);
	*(struct inner *)map->root = (struct inner){
		.count = 2, .key = { left_end, end },
		.child = { node, right } };
	map->depth++;
}

/* A new leaf behind path's; both are filled. */
static void add_leaf(struct obd_map *map, struct path *path,
		     struct leaf *right)
{
	struct leaf *left = path->leaf;
	uint64_t left_end = rec_end(left->rec[left->count - 1]);
	uint64_t end = rec_end(right->rec[right->count - 1]);

	if (map->depth) {
		add_child(map, path, map->depth - 1, left_end, right, end);
		return;
	}
	map->root = take_inner(map);
	*(struct inner *)map->root = (struct inner){
		.count = 2, .key = { left_end, end },
		.child = { left, right } };
	map->depth = 1;
}

static void inner_join(struct inner *left, const struct inner *right)
{
	memcpy(left->key + left->count, right->key,
	       right->count * sizeof(*left->key));
	memcpy(left->child + left->count, right->child,
	       right->count * sizeof(*left->child));
	left->count += right->count;
}

static void leaf_join(struct leaf *left, const struct leaf *right)
{
	memcpy(left->rec + left->count, right->rec,
	       right->count * sizeof(*left->rec));
	left->count += right->count;
}

/* Both nodes begin with their count. */
static uint64_t count_of(const void *node)
{
	return *(const uint64_t *)node;
}

/* Joins children slot and slot + 1 of node when there is room. */
static bool join_pair(struct obd_map *map, struct inner *node, uint32_t slot,
		      bool leaves)
{
	void *left = node->child[slot], *right = node->child[slot + 1];
	uint64_t sum = count_of(left) + count_of(right);

	if (sum > (leaves ? LEAF_JOIN : INNER_JOIN))
		return false;
	if (leaves)
		leaf_join(left, right);
	else
		inner_join(left, right);
	node->key[slot] = node->key[slot + 1];
	inner_close(node, slot + 1);
	drop_node(map, right, leaves);
	return true;
}

/* Records were taken out of path's leaf: makes keys exact, frees what is
 * empty, joins what is small, all the way up.  A map of one leaf has no
 * inner nodes, so that leaf stays when it is empty. */
static void shrink(struct obd_map *map, struct path *path)
{
	uint32_t d = map->depth;
	bool leaves = true;
	void *below = path->leaf;
	uint64_t end = path->leaf->count ?
		rec_end(path->leaf->rec[path->leaf->count - 1]) : 0;

	for (; d--; leaves = false) {
		struct inner *node = path->node[d];
		uint32_t slot = path->slot[d];

		node->key[slot] = end;
		if (!count_of(below)) {
			drop_node(map, below, leaves);
			inner_close(node, slot);
		} else if (!(slot + 1 < node->count &&
			     join_pair(map, node, slot, leaves)) && slot) {
			join_pair(map, node, slot - 1, leaves);
		}
		end = node->count ? node->key[node->count - 1] : 0;
		below = node;
	}
	while (map->depth && count_of(map->root) == 1) {
		void *child = ((struct inner *)map->root)->child[0];

		drop_node(map, map->root, false);
		map->root = child;
		map->depth--;
	}
}

/* ---- change --------------------------------------------------------- */

/* Shares n records, which path's leaf cannot hold, with the neighbour on
 * slot `other`, when that has room. */
static bool spill(struct obd_map *map, struct path *path, uint32_t other,
		  const struct obd_record *rec, uint32_t n)
{
	struct obd_record all[2 * LEAF_MAX + GROWTH];
	struct inner *node = path->node[map->depth - 1];
	uint32_t *slot = &path->slot[map->depth - 1];
	struct leaf *low, *high;
	uint32_t m, half;

	if (other >= node->count) /* slot 0 has no left neighbour */
		return false;
	m = (uint32_t)count_of(node->child[other]);
	if (m + SPILL_ROOM > LEAF_MAX)
		return false;
	low = node->child[other < *slot ? other : *slot];
	high = node->child[other < *slot ? *slot : other];
	memcpy(all + (other < *slot ? m : 0), rec, n * sizeof(*rec));
	memcpy(all + (other < *slot ? 0 : n),
	       ((struct leaf *)node->child[other])->rec, m * sizeof(*rec));
	half = (n + m) / 2;
	low->count = half;
	memcpy(low->rec, all, half * sizeof(*rec));
	high->count = n + m - half;
	memcpy(high->rec, all + half, high->count * sizeof(*rec));
	*slot = other < *slot ? *slot : other;
	node->key[*slot - 1] = rec_end(all[half - 1]);
	path->leaf = high;
	fix_keys(map, path);
	return true;
}

/* Puts n records, more than a leaf holds, in place of path's leaf. */
static void overflow(struct obd_map *map, struct path *path,
		     const struct obd_record *rec, uint32_t n, bool at_edge)
{
	struct leaf *left = path->leaf, *right;

	if (map->depth) {
		uint32_t slot = path->slot[map->depth - 1];

		if (spill(map, path, slot - 1, rec, n) ||
		    spill(map, path, slot + 1, rec, n))
			return;
	}
	right = take_leaf(map);
	left->count = at_edge ? LEAF_MAX : n / 2;
	right->count = n - left->count;
	memcpy(left->rec, rec, left->count * sizeof(*rec));
	memcpy(right->rec, rec + left->count, right->count * sizeof(*rec));
	add_leaf(map, path, right);
}

/* Puts n records, at most 3, in place of drop records at path. */
static void replace(struct obd_map *map, struct path *path, uint32_t drop,
		    const struct obd_record *rec, uint32_t n)
{
	struct obd_record all[LEAF_MAX + GROWTH];
	struct leaf *leaf = path->leaf;
	uint32_t count = (uint32_t)leaf->count, at = path->at;
	uint32_t tail = count - at - drop, total = count - drop + n;

	map->count += n;
	map->count -= drop;
	if (total > LEAF_MAX) {
		memcpy(all, leaf->rec, at * sizeof(*rec));
		memcpy(all + at, rec, n * sizeof(*rec));
		memcpy(all + at + n, leaf->rec + at + drop,
		       tail * sizeof(*rec));
		/* Only in the last leaf can a search end behind it. */
		overflow(map, path, all, total, at == count);
		return;
	}
	memmove(leaf->rec + at + n, leaf->rec + at + drop,
		tail * sizeof(*rec));
	memcpy(leaf->rec + at, rec, n * sizeof(*rec));
	leaf->count = total;
	if (n < drop)
		shrink(map, path);
	else if (!tail)
		fix_keys(map, path);
}

/* Makes [from, to) empty, or rec, which spans it, when that is not NULL.
 * What this may need was reserved. */
static void overwrite(struct obd_map *map, uint64_t from, uint64_t to,
		      const struct obd_record *rec)
{
	struct path path;
	bool last = false;

	while (!last) {
		struct obd_record keep[3], right = { 0, 0 };
		const struct leaf *leaf;
		uint32_t n = 0, i;

		seek(map, from, &path);
		leaf = path.leaf;
		last = path.at == leaf->count ||
		       rec_end(leaf->rec[leaf->count - 1]) >= to;
		for (i = path.at; i < leaf->count; i++) {
			struct obd_record r = leaf->rec[i];

			if (rec_lba(r) >= to)
				break;
			if (rec_lba(r) < from)
				keep[n++] = rec_cut(r, rec_lba(r), from);
			if (rec_end(r) > to)
				right = rec_cut(r, to, rec_end(r));
		}
		if (last && rec)
			keep[n++] = *rec;
		if (rec_sectors(right))
			keep[n++] = right;
		if (n || i > path.at)
			replace(map, &path, i - path.at, keep, n);
	}
}

/* How many records there would be if [from, to) were made empty. */
static uint64_t count_without(const struct obd_map *map, uint64_t from,
			      uint64_t to)
{
	uint64_t count = map->count, pos = from;

	while (pos < to) {
		const struct leaf *leaf = leaf_for(map, pos);
		uint32_t i = place_for(leaf, pos);

		if (i == leaf->count)
			break;
		for (; i < leaf->count; i++) {
			bool left = rec_lba(leaf->rec[i]) < from;
			bool right = rec_end(leaf->rec[i]) > to;

			if (rec_lba(leaf->rec[i]) >= to)
				return count;
			count += left && right;
			count -= !left && !right;
		}
		pos = rec_end(leaf->rec[leaf->count - 1]);
	}
	return count;
}

static int prepare(struct obd_map *map, uint64_t from, uint64_t to,
		   uint32_t added)
{
	/* The exact count takes time and matters only near the limit. */
	if (map->count + GROWTH > map->limits.max &&
	    count_without(map, from, to) + added > map->limits.max)
		return -E2BIG;
	return reserve(map);
}

/* Inside the address space, and no cut carries out of the 55 bits. */
static bool rec_sound(struct obd_record rec)
{
	return rec_end(rec) <= OBD_LBA_MASK + 1 &&
	       (rec_zeroed(rec) ||
		rec_at(rec) + rec_sectors(rec) <= OBD_AT_MASK + 1);
}

int obd_map_insert(struct obd_map *map, struct obd_record rec)
{
	int rc;

	if (!rec_sectors(rec))
		return 0;
	if (!rec_sound(rec))
		return -EINVAL;
	rc = prepare(map, rec_lba(rec), rec_end(rec), 1);
	if (!rc)
		overwrite(map, rec_lba(rec), rec_end(rec), &rec);
	return rc;
}

int obd_map_remove(struct obd_map *map, uint64_t lba, uint64_t sectors)
{
	uint64_t to = clamp_end(lba, sectors);
	int rc;

	if (lba >= to)
		return 0;
	rc = prepare(map, lba, to, 0);
	if (!rc)
		overwrite(map, lba, to, NULL);
	return rc;
}

/* ---- proof ---------------------------------------------------------- */

/* What a walk over the tree has seen. */
struct walk {
	uint64_t end, records, leaves, inners;
};

static bool leaf_sound(const struct leaf *leaf, struct walk *w)
{
	uint64_t i;

	if (leaf->count > LEAF_MAX)
		return false;
	for (i = 0; i < leaf->count; i++) {
		if (!rec_sectors(leaf->rec[i]) ||
		    rec_lba(leaf->rec[i]) < w->end)
			return false;
		w->end = rec_end(leaf->rec[i]);
	}
	w->records += leaf->count;
	w->leaves++;
	return true;
}

static bool node_sound(const void *node, uint32_t depth, struct walk *w)
{
	const struct inner *inner = node;
	uint64_t i;

	if (!depth)
		return leaf_sound(node, w);
	w->inners++;
	if (!inner->count || inner->count > INNER_MAX)
		return false;
	for (i = 0; i < inner->count; i++)
		if (!count_of(inner->child[i]) ||
		    !node_sound(inner->child[i], depth - 1, w) ||
		    inner->key[i] != w->end)
			return false;
	return true;
}

bool obd_map_sound(const struct obd_map *map)
{
	struct walk w = { 0 };

	return node_sound(map->root, map->depth, &w) &&
	       (!map->depth || count_of(map->root) > 1) &&
	       w.end <= OBD_LBA_MASK + 1 && w.records == map->count &&
	       w.leaves == map->leaves && w.inners == map->inners;
}
