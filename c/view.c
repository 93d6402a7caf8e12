/* SPDX-License-Identifier: Apache-2.0
 *
 * view.c - an immutable stack, and the slot through which a device shows
 * one to its requests without a lock.
 *
 * The count is split (the scheme of folly's atomic_shared_ptr).  A slot is
 * one word: the view's address and how many references were borrowed
 * through it.  view->refs counts the rest.  Invariant: for every view,
 *
 *   refs + (borrowed count of the slot that shows it) = references held
 *
 * and refs is BIAS higher for every slot that shows the view.
 *  - borrow: word += 1 borrowed.  The address and the count change in one
 *    step, so what is read there is alive: refs is at least BIAS.
 *  - return: when the slot still shows this view and its count is not 0,
 *    count -= 1; else refs -= 1.  Each takes 1 off the sum.
 *  - publish: exchanges the word, then refs += old count - BIAS in one step.
 *    Returns in between find the old view gone from the slot and take from
 *    refs what is in the publisher's hand: at most 65535, which is why BIAS
 *    is larger, so that refs is 0 only when nobody holds the view.
 * A view that is shown, replaced and shown again (ABA) keeps the sum: which
 * half a return takes from does not matter.
 */
#include <stdlib.h>

#include "core.h"

#define PTR_MASK ((1ull << 48) - 1)
#define BORROWED (1ull << 48)
#define HALF (1ull << 63)          /* 32768 borrowed */
#define BIAS (1ll << 20)           /* over 65535, see above */

/* An empty view with room for n sources of its own. */
static int view_alloc(uint32_t n, struct obd_view **out)
{
	struct obd_view *view;

	view = calloc(1, sizeof(*view) + n * sizeof(view->own[0]));
	if (!view)
		return -ENOMEM;
	if ((uintptr_t)view & ~(uintptr_t)PTR_MASK) {
		free(view);
		return -EOVERFLOW;
	}
	view->refs = 1;
	view->sources = view->own;
	view->local = true;
	*out = view;
	return 0;
}

int32_t obd_view_new(struct obd_index *index,
		     struct obd_source *const *sources, uint32_t n,
		     uint64_t virtual_size, struct obd_view **out)
{
	struct obd_view *view;
	uint32_t i;
	int err;

	if (!index || n > OBD_MAX_LOWERS + 1 || (n && !sources) ||
	    virtual_size % OBD_SECTOR)
		return -EINVAL;
	err = view_alloc(n, &view);
	if (err)
		return err;
	view->index = obd_index_ref(index);
	view->virtual_size = virtual_size;
	view->n = n;
	for (i = 0; i < n; i++) {
		view->own[i] = obd_source_ref(sources[i]);
		if (!obd_source_is_local(sources[i]))
			view->local = false;
		if (obd_source_by_uring(sources[i]))
			view->uring = true;
	}
	*out = view;
	return 0;
}

int obd_view_spare(struct obd_view **out)
{
	return view_alloc(0, out);
}

void obd_view_lay(struct obd_view *view, struct obd_view *base,
		  struct obd_upper *upper, struct obd_upper *frozen)
{
	view->base = obd_view_ref(base);
	view->index = base->index;
	view->sources = base->sources;
	view->virtual_size = base->virtual_size;
	view->n = base->n;
	view->local = base->local;
	view->uring = base->uring;
	view->upper = upper ? obd_upper_ref(upper) : NULL;
	view->frozen = frozen ? obd_upper_ref(frozen) : NULL;
}

int obd_view_over(struct obd_view *base, struct obd_upper *upper,
		  struct obd_upper *frozen, struct obd_view **out)
{
	int err = obd_view_spare(out);

	if (!err)
		obd_view_lay(*out, base, upper, frozen);
	return err;
}

static void view_free(struct obd_view *view)
{
	uint32_t i;

	if (view->base) {
		obd_view_unref(view->base);
		obd_upper_unref(view->upper);
		obd_upper_unref(view->frozen);
	} else {
		for (i = 0; i < view->n; i++)
			obd_source_unref(view->own[i]);
		obd_index_unref(view->index);
	}
	free(view);
}

/* Adds n, possibly negative, to the references not borrowed. */
static void view_add(struct obd_view *view, int64_t n)
{
	if (atomic_fetch_add_explicit(&view->refs, n,
				      memory_order_acq_rel) == -n)
		view_free(view);
}

struct obd_view *obd_view_ref(struct obd_view *view)
{
	atomic_fetch_add_explicit(&view->refs, 1, memory_order_relaxed);
	return view;
}

void obd_view_unref(struct obd_view *view)
{
	if (view)
		view_add(view, -1);
}

/* A slot that shows the view keeps refs above BIAS. */
int32_t obd_view_busy(struct obd_view *view)
{
	return atomic_load_explicit(&view->refs, memory_order_acquire) != 1;
}

static struct obd_view *word_view(uint64_t word)
{
	return (struct obd_view *)(uintptr_t)(word & PTR_MASK);
}

struct obd_view *obd_view_shown(struct obd_view_slot *slot)
{
	return word_view(atomic_load_explicit(&slot->word,
					      memory_order_acquire));
}

/* Shows view (NULL: nothing) in the slot from now on. */
void obd_view_publish(struct obd_view_slot *slot, struct obd_view *view)
{
	uint64_t old, word = 0;

	if (view) {
		view_add(view, BIAS);
		word = (uint64_t)(uintptr_t)view;
	}
	old = atomic_exchange_explicit(&slot->word, word,
				       memory_order_acq_rel);
	if (word_view(old))
		view_add(word_view(old), (int64_t)(old >> 48) - BIAS);
}

/* Moves half of the 16-bit count into refs, long before it is full. */
static void move_count(struct obd_view_slot *slot, uint64_t word)
{
	struct obd_view *view = word_view(word);
	int64_t n = (int64_t)(word >> 48);

	view_add(view, n);
	if (!atomic_compare_exchange_strong(&slot->word, &word,
					    word & PTR_MASK))
		view_add(view, -n);
}

struct obd_view *obd_view_borrow(struct obd_view_slot *slot)
{
	uint64_t word = atomic_fetch_add_explicit(&slot->word, BORROWED,
						  memory_order_acquire);

	word += BORROWED;
	if (obd_unlikely(word & HALF))
		move_count(slot, word);
	return word_view(word);
}

void obd_view_return(struct obd_view_slot *slot, struct obd_view *view)
{
	uint64_t word = atomic_load_explicit(&slot->word,
					     memory_order_relaxed);

	while (word_view(word) == view && word >> 48)
		if (atomic_compare_exchange_weak_explicit(&slot->word, &word,
				word - BORROWED, memory_order_release,
				memory_order_relaxed))
			return;
	view_add(view, -1);
}
