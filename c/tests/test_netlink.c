/* SPDX-License-Identifier: Apache-2.0
 *
 * test_netlink.c - what the kernel says about TCMU devices, as values; and
 * what is not whole is not believed.
 */
#include "check.h"

#include <string.h>

#include "../tcmu.h"

#define FAMILY 27

struct built {
	uint8_t bytes[2048];
	size_t n;
};

static void start(struct built *b, uint16_t family, uint8_t cmd,
		  uint8_t version)
{
	memset(b, 0, sizeof(*b));
	memcpy(b->bytes + 4, &family, 2);
	b->bytes[16] = cmd;
	b->bytes[17] = version;
	b->n = 20;
	memcpy(b->bytes, &b->n, 4);
}

static void append(struct built *b, uint16_t type, const void *data,
		   size_t n)
{
	uint16_t length = (uint16_t)(n + 4);

	memcpy(b->bytes + b->n, &length, 2);
	memcpy(b->bytes + b->n + 2, &type, 2);
	memcpy(b->bytes + b->n + 4, data, n);
	b->n += (length + 3u) & ~3u;
}

/* To a message, whose length changes. */
static void put(struct built *b, uint16_t type, const void *data, size_t n)
{
	append(b, type, data, n);
	memcpy(b->bytes, &b->n, 4);
}

static void put32(struct built *b, uint16_t type, uint32_t v)
{
	put(b, type, &v, 4);
}

#define NAME "tcm-user/1/vol1/overlaybd//root/config.v1.json"

static void added(struct built *b)
{
	start(b, FAMILY, OBD_TCMU_ADDED, 2);
	put(b, 1, NAME, sizeof(NAME));
	put32(b, 2, 5);
	put32(b, 8, 77);
}

static int parse(struct built *b, struct obd_tcmu_event *e)
{
	/* Exactly as long as it is, for the sanitizer. */
	uint8_t *copy = malloc(b->n ? b->n : 1);
	int got;

	CHECK(copy);
	memcpy(copy, b->bytes, b->n);
	got = obd_netlink_parse(copy, b->n, FAMILY, e);
	free(copy);
	return got;
}

static void an_added_device_has_a_name_a_minor_and_an_id(void)
{
	struct obd_tcmu_event e;
	struct built b;

	added(&b);
	CHECK_EQ(parse(&b, &e), 1);
	CHECK_EQ(e.command, OBD_TCMU_ADDED);
	CHECK_EQ(e.minor, 5);
	CHECK_EQ(e.device_id, 77);
	CHECK_EQ(e.reply, 1);
	CHECK_EQ(e.attribute, 0);
	CHECK(!strcmp(e.name, NAME));
	CHECK(e.config[0] == 0);
}

static void a_reconfiguration_says_what_changes(void)
{
	struct obd_tcmu_event e;
	uint64_t size = 3ull << 40;
	uint8_t on = 1;
	struct built b;

	added(&b);
	b.bytes[16] = OBD_TCMU_RECONFIG;
	put(&b, 5, &size, 8);
	CHECK_EQ(parse(&b, &e), 1);
	CHECK_EQ(e.attribute, OBD_TCMU_DEV_SIZE);
	CHECK(e.size == size);
	added(&b);
	put(&b, 6, &on, 1);
	CHECK_EQ(parse(&b, &e), 1);
	CHECK_EQ(e.attribute, OBD_TCMU_WRITECACHE);
	CHECK_EQ(e.write_cache, 1);
	added(&b);
	put(&b, 4, "overlaybd//new", 15);
	CHECK_EQ(parse(&b, &e), 1);
	CHECK_EQ(e.attribute, OBD_TCMU_DEV_CFG);
	CHECK(!strcmp(e.config, "overlaybd//new"));
	added(&b); /* of a later kernel */
	put32(&b, 12, 1);
	CHECK_EQ(parse(&b, &e), 1);
	CHECK_EQ(e.attribute, 0);
}

static void messages_of_others_are_no_events(void)
{
	struct obd_tcmu_event e;
	struct built b;

	added(&b);
	b.bytes[4]++;
	CHECK_EQ(parse(&b, &e), 0);
	added(&b);
	b.bytes[16] = 4;
	CHECK_EQ(parse(&b, &e), 0);
	b.bytes[16] = 0;
	CHECK_EQ(parse(&b, &e), 0);
}

static void an_event_without_what_names_its_device_is_dropped(void)
{
	struct obd_tcmu_event e;
	struct built b;

	start(&b, FAMILY, OBD_TCMU_ADDED, 2);
	CHECK_EQ(parse(&b, &e), -EBADMSG);
	put32(&b, 2, 5);
	put32(&b, 8, 77);
	CHECK_EQ(parse(&b, &e), -EBADMSG);
	start(&b, FAMILY, OBD_TCMU_ADDED, 2);
	put(&b, 1, NAME, sizeof(NAME));
	put32(&b, 8, 77);
	CHECK_EQ(parse(&b, &e), -EBADMSG);
	start(&b, FAMILY, OBD_TCMU_ADDED, 2);
	put(&b, 1, NAME, sizeof(NAME));
	put32(&b, 2, 5);
	CHECK_EQ(parse(&b, &e), -EBADMSG);
	b.bytes[17] = 1; /* the old way: no id, no reply */
	CHECK_EQ(parse(&b, &e), 1);
	CHECK_EQ(e.reply, 0);
}

static void lengths_that_do_not_fit_are_not_believed(void)
{
	struct obd_tcmu_event e;
	struct built whole, b;
	char longer[600];
	size_t i;

	added(&whole);
	for (i = 0; i < whole.n; i++) { /* cut anywhere */
		b = whole;
		b.n = i;
		CHECK_MSG(parse(&b, &e) < 0, "cut at %zu", i);
	}
	b = whole;
	b.bytes[20] = 3; /* shorter than its own head */
	CHECK_EQ(parse(&b, &e), -EBADMSG);
	b = whole;
	b.bytes[21] = 0x7f; /* past the end */
	CHECK_EQ(parse(&b, &e), -EBADMSG);
	memset(longer, 'x', sizeof(longer));
	added(&b);
	put(&b, 1, longer, 512);
	CHECK_EQ(parse(&b, &e), -EBADMSG);
	added(&b);
	put(&b, 1, longer, 511);
	CHECK_EQ(parse(&b, &e), 1);
	CHECK_EQ(strlen(e.name), 511);
	added(&b);
	put(&b, 5, &i, 4); /* a size of four bytes */
	CHECK_EQ(parse(&b, &e), -EBADMSG);
}

static void the_family_and_its_group_are_found_by_name(void)
{
	struct built b, first = { .n = 0 }, second = { .n = 0 };
	struct built list = { .n = 0 };
	uint32_t number, eight = 8, nine = 9;
	uint16_t id = 31, family;

	append(&first, 1, "other", 6);
	append(&first, 2, &eight, 4);
	append(&second, 2, &nine, 4);
	append(&second, 1, "config", 7);
	append(&list, 1, first.bytes, first.n);
	start(&b, 16, 1, 2);
	put(&b, 1, &id, 2);
	put(&b, 7, list.bytes, list.n);
	CHECK_EQ(obd_netlink_family(b.bytes, b.n, &family, &number), -ENOENT);
	append(&list, 2, second.bytes, second.n);
	put(&b, 7, list.bytes, list.n);
	CHECK_EQ(obd_netlink_family(b.bytes, b.n, &family, &number), 0);
	CHECK_EQ(family, 31);
	CHECK_EQ(number, 9);
	CHECK_EQ(obd_netlink_family(b.bytes, b.n - 1, &family, &number),
		 -EBADMSG);
}

static void without_a_socket_there_is_nothing_to_say(void)
{
	struct obd_tcmu_event e;
	struct obd_netlink_stats stats;

	CHECK_EQ(obd_netlink_reply(OBD_TCMU_ADDED, 1, 0), -ENOTCONN);
	CHECK_EQ(obd_netlink_reply(9, 1, 0), -EINVAL);
	CHECK_EQ(obd_netlink_drain(&e, 1), 0);
	CHECK_EQ(obd_netlink_close(), 0);
	CHECK_EQ(obd_netlink_stat(&stats), 0);
	CHECK(stats.events == 0 && stats.malformed == 0 && stats.lost == 0);
}

static void the_group_is_found_where_the_module_is(void)
{
	uint32_t group = 0;
	int err = obd_netlink_group(&group);

	CHECK(err ? err == -ENOENT && !group : group > 0);
	/* Nobody listens because of that. */
	CHECK_EQ(obd_netlink_reply(OBD_TCMU_ADDED, 1, 0), -ENOTCONN);
}

int main(void)
{
	RUN(an_added_device_has_a_name_a_minor_and_an_id);
	RUN(a_reconfiguration_says_what_changes);
	RUN(messages_of_others_are_no_events);
	RUN(an_event_without_what_names_its_device_is_dropped);
	RUN(lengths_that_do_not_fit_are_not_believed);
	RUN(the_family_and_its_group_are_found_by_name);
	RUN(without_a_socket_there_is_nothing_to_say);
	RUN(the_group_is_found_where_the_module_is);
	return check_done();
}
