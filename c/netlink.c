/* SPDX-License-Identifier: Apache-2.0
 *
 * netlink.c - the generic netlink family TCM-USER (spec tcmu 2): the socket,
 * its messages as values, the queue of events.  What to answer is decided
 * in TypeScript.
 */
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "tcmu.h"

#define FAMILY "TCM-USER"
#define GROUP "config"
#define VERSION 2u
#define RECEIVE_BYTES (4 << 20)
#define MESSAGE_MAX 8192u     /* an event has less than 1 KiB */
#define QUEUE_MAX 65536u

enum { CMD_SET_FEATURES = 7 };
enum { ATTR_DEVICE = 1, ATTR_MINOR, ATTR_PAD, ATTR_DEV_CFG, ATTR_DEV_SIZE,
       ATTR_WRITECACHE, ATTR_CMD_STATUS, ATTR_DEVICE_ID, ATTR_REPLY };

struct queued {
	struct queued *next;
	struct obd_tcmu_event event;
};

/* The watch is the worker's once added; lock guards the rest. */
static struct {
	pthread_mutex_t lock;
	struct obd_watch watch;
	bool open;
	uint16_t family;
	struct queued *head, **tail;
	uint32_t count;
	struct obd_netlink_stats stats;
} nl = { .lock = PTHREAD_MUTEX_INITIALIZER, .tail = &nl.head };

/* ---- messages in ------------------------------------------------------ */

struct attribute {
	uint16_t type;
	const uint8_t *data;
	size_t n;
};

/* The next attribute of [*at, end). 1, 0: no more, -EBADMSG. */
static int next_attribute(const uint8_t **at, const uint8_t *end,
			  struct attribute *out)
{
	size_t left = (size_t)(end - *at), step;
	struct nlattr head;

	if (left < sizeof(head))
		return 0;
	memcpy(&head, *at, sizeof(head));
	if (head.nla_len < sizeof(head) || head.nla_len > left)
		return -EBADMSG;
	out->type = head.nla_type & NLA_TYPE_MASK;
	out->data = *at + sizeof(head);
	out->n = head.nla_len - sizeof(head);
	step = NLA_ALIGN(head.nla_len);
	*at += step < left ? step : left;
	return 1;
}

/* Where a message's attributes are. -EBADMSG: it is not whole. */
static int open_message(const uint8_t *msg, size_t n, struct nlmsghdr *head,
			struct genlmsghdr *genl, const uint8_t **at,
			const uint8_t **end)
{
	if (n < NLMSG_HDRLEN)
		return -EBADMSG;
	memcpy(head, msg, sizeof(*head));
	if (head->nlmsg_len > n ||
	    head->nlmsg_len < NLMSG_HDRLEN + GENL_HDRLEN)
		return -EBADMSG;
	memcpy(genl, msg + NLMSG_HDRLEN, sizeof(*genl));
	*at = msg + NLMSG_HDRLEN + GENL_HDRLEN;
	*end = msg + head->nlmsg_len;
	return 0;
}

static int take_number(const struct attribute *a, void *out, size_t n)
{
	if (a->n < n)
		return -EBADMSG;
	memcpy(out, a->data, n);
	return 0;
}

/* A string that may or may not end with NUL and must fit with one. */
static int take_text(const struct attribute *a, char *out, size_t room)
{
	size_t n = strnlen((const char *)a->data, a->n);

	if (n >= room)
		return -EBADMSG;
	memcpy(out, a->data, n);
	out[n] = 0;
	return 0;
}

static int take_attribute(const struct attribute *a, uint32_t *seen,
			  struct obd_tcmu_event *e)
{
	uint8_t byte = 0;
	int err = 0;

	switch (a->type) {
	case ATTR_DEVICE:
		err = take_text(a, e->name, sizeof(e->name));
		break;
	case ATTR_MINOR:
		err = take_number(a, &e->minor, sizeof(e->minor));
		break;
	case ATTR_DEVICE_ID:
		err = take_number(a, &e->device_id, sizeof(e->device_id));
		break;
	case ATTR_DEV_CFG:
		err = take_text(a, e->config, sizeof(e->config));
		break;
	case ATTR_DEV_SIZE:
		err = take_number(a, &e->size, sizeof(e->size));
		break;
	case ATTR_WRITECACHE:
		err = take_number(a, &byte, sizeof(byte));
		e->write_cache = byte != 0;
		break;
	default:
		return 0;
	}
	*seen |= 1u << a->type;
	if (a->type >= ATTR_DEV_CFG && a->type <= ATTR_WRITECACHE)
		e->attribute = a->type;
	return err;
}

int obd_netlink_parse(const uint8_t *msg, size_t n, uint16_t family,
		      struct obd_tcmu_event *out)
{
	uint32_t seen = 0, need = 1u << ATTR_DEVICE | 1u << ATTR_MINOR;
	const uint8_t *at, *end;
	struct genlmsghdr genl;
	struct attribute a;
	struct nlmsghdr head;
	int more;

	if (n < NLMSG_HDRLEN)
		return -EBADMSG;
	memcpy(&head, msg, sizeof(head));
	if (head.nlmsg_type != family)
		return 0;
	more = open_message(msg, n, &head, &genl, &at, &end);
	if (more)
		return more;
	if (genl.cmd < OBD_TCMU_ADDED || genl.cmd > OBD_TCMU_RECONFIG)
		return 0;
	memset(out, 0, sizeof(*out));
	out->command = genl.cmd;
	out->reply = genl.version > 1;
	while ((more = next_attribute(&at, end, &a)) > 0) {
		more = take_attribute(&a, &seen, out);
		if (more)
			break;
	}
	if (out->reply)
		need |= 1u << ATTR_DEVICE_ID;
	return more || (seen & need) != need ? -EBADMSG : 1;
}

/* One entry of the family's list of groups. */
static int take_group(const struct attribute *group, uint32_t *number)
{
	const uint8_t *at = group->data, *end = at + group->n;
	char name[GENL_NAMSIZ] = "";
	struct attribute a;
	uint32_t id = 0;
	int more;

	while ((more = next_attribute(&at, end, &a)) > 0) {
		if (a.type == CTRL_ATTR_MCAST_GRP_NAME)
			more = take_text(&a, name, sizeof(name));
		else if (a.type == CTRL_ATTR_MCAST_GRP_ID)
			more = take_number(&a, &id, sizeof(id));
		if (more < 0)
			return more;
	}
	if (!more && !strcmp(name, GROUP))
		*number = id;
	return more;
}

int obd_netlink_family(const uint8_t *msg, size_t n, uint16_t *family,
		       uint32_t *group)
{
	const uint8_t *at, *end, *inner;
	struct attribute a, entry;
	struct genlmsghdr genl;
	struct nlmsghdr head;
	int more = open_message(msg, n, &head, &genl, &at, &end);

	*family = 0;
	*group = 0;
	if (more)
		return more;
	while ((more = next_attribute(&at, end, &a)) > 0) {
		if (a.type == CTRL_ATTR_FAMILY_ID)
			more = take_number(&a, family, sizeof(*family));
		if (more < 0)
			return more;
		if (a.type != CTRL_ATTR_MCAST_GROUPS)
			continue;
		inner = a.data;
		while ((more = next_attribute(&inner, a.data + a.n,
					      &entry)) > 0) {
			more = take_group(&entry, group);
			if (more < 0)
				return more;
		}
	}
	return more ? more : *family && *group ? 0 : -ENOENT;
}

/* ---- messages out ----------------------------------------------------- */

struct message {
	struct nlmsghdr head;
	struct genlmsghdr genl;
	uint8_t attributes[64];
};

static void start_message(struct message *m, uint16_t type, uint16_t flags,
			  uint8_t cmd, uint8_t version)
{
	memset(m, 0, sizeof(*m));
	m->head.nlmsg_len = NLMSG_HDRLEN + GENL_HDRLEN;
	m->head.nlmsg_type = type;
	m->head.nlmsg_flags = NLM_F_REQUEST | flags;
	m->head.nlmsg_seq = 1;
	m->genl.cmd = cmd;
	m->genl.version = version;
}

static void put_attribute(struct message *m, uint16_t type, const void *data,
			  uint16_t n)
{
	struct nlattr a = { (uint16_t)(NLA_HDRLEN + n), type };
	uint8_t *p = (uint8_t *)m + m->head.nlmsg_len;

	memcpy(p, &a, sizeof(a));
	memcpy(p + NLA_HDRLEN, data, n);
	m->head.nlmsg_len += NLA_ALIGN(a.nla_len);
}

static int send_message(int fd, const struct message *m)
{
	struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
	ssize_t n;

	do
		n = sendto(fd, m, m->head.nlmsg_len, MSG_NOSIGNAL,
			   (struct sockaddr *)&kernel, sizeof(kernel));
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : 0;
}

/* Only the kernel is listened to. Bytes, or -errno. */
static ssize_t receive(int fd, uint8_t *buf, size_t room, int flags)
{
	struct sockaddr_nl from;
	socklen_t length;
	ssize_t n;

	do {
		length = sizeof(from);
		n = recvfrom(fd, buf, room, flags, (struct sockaddr *)&from,
			     &length);
	} while ((n < 0 && errno == EINTR) || (n >= 0 && from.nl_pid != 0));
	return n < 0 ? -errno : n;
}

/* ---- the queue -------------------------------------------------------- */

static void queue_event(const struct obd_tcmu_event *event)
{
	struct queued *q = malloc(sizeof(*q));
	bool first = false;

	pthread_mutex_lock(&nl.lock);
	if (q && nl.count < QUEUE_MAX) {
		first = !nl.head;
		q->next = NULL;
		q->event = *event;
		*nl.tail = q;
		nl.tail = &q->next;
		nl.count++;
		nl.stats.events++;
		q = NULL;
	} else {
		nl.stats.lost++;
	}
	pthread_mutex_unlock(&nl.lock);
	free(q);
	if (first)
		obd_wake();
}

/* Every message of one datagram.  Returns the errno of an answer to us, 1
 * when there is none. */
static int take_datagram(const uint8_t *buf, size_t n)
{
	struct obd_tcmu_event event;
	struct nlmsgerr error;
	struct nlmsghdr head;
	int answer = 1, got;

	while (n >= NLMSG_HDRLEN) {
		memcpy(&head, buf, sizeof(head));
		if (head.nlmsg_len < NLMSG_HDRLEN || head.nlmsg_len > n)
			break;
		got = obd_netlink_parse(buf, head.nlmsg_len, nl.family,
					&event);
		if (got > 0) {
			queue_event(&event);
		} else if (got < 0) {
			pthread_mutex_lock(&nl.lock);
			nl.stats.malformed++;
			pthread_mutex_unlock(&nl.lock);
		} else if (head.nlmsg_type == NLMSG_ERROR &&
			   head.nlmsg_len >= NLMSG_HDRLEN + sizeof(error)) {
			memcpy(&error, buf + NLMSG_HDRLEN, sizeof(error));
			answer = error.error;
		}
		if (NLMSG_ALIGN(head.nlmsg_len) >= n)
			break;
		buf += NLMSG_ALIGN(head.nlmsg_len);
		n -= NLMSG_ALIGN(head.nlmsg_len);
	}
	return answer;
}

static void readable(struct obd_watch *watch, uint32_t events)
{
	uint8_t buf[MESSAGE_MAX];
	ssize_t n;

	(void)events;
	while ((n = receive(watch->fd, buf, sizeof(buf), MSG_DONTWAIT)) > 0)
		take_datagram(buf, (size_t)n);
}

int32_t obd_netlink_drain(struct obd_tcmu_event *out, uint32_t max)
{
	struct queued *q;
	uint32_t n = 0;

	if (max > INT32_MAX)
		max = INT32_MAX;
	pthread_mutex_lock(&nl.lock);
	while (n < max && (q = nl.head)) {
		out[n++] = q->event;
		nl.head = q->next;
		if (!nl.head)
			nl.tail = &nl.head;
		nl.count--;
		free(q);
	}
	pthread_mutex_unlock(&nl.lock);
	return (int32_t)n;
}

/* What the kernel could not put into a full buffer. */
static uint32_t socket_drops(int fd)
{
	uint32_t info[SK_MEMINFO_VARS] = { 0 };
	socklen_t length = sizeof(info);

	if (getsockopt(fd, SOL_SOCKET, SO_MEMINFO, info, &length))
		return 0;
	return info[SK_MEMINFO_DROPS];
}

int32_t obd_netlink_stat(struct obd_netlink_stats *out)
{
	pthread_mutex_lock(&nl.lock);
	*out = nl.stats;
	if (nl.open)
		out->lost += socket_drops(nl.watch.fd);
	pthread_mutex_unlock(&nl.lock);
	return 0;
}

/* ---- life ------------------------------------------------------------- */

/* A large buffer before there is anything to receive; without ENOBUFS one
 * lost message would make every later receive fail. */
static int open_socket(void)
{
	struct sockaddr_nl self = { .nl_family = AF_NETLINK };
	int size = RECEIVE_BYTES, on = 1, err;
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);

	if (fd < 0)
		return -errno;
	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)))
		setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
	setsockopt(fd, SOL_NETLINK, NETLINK_NO_ENOBUFS, &on, sizeof(on));
	if (bind(fd, (struct sockaddr *)&self, sizeof(self))) {
		err = -errno;
		close(fd);
		return err;
	}
	return fd;
}

static int resolve(int fd, uint16_t *family, uint32_t *group)
{
	uint8_t buf[MESSAGE_MAX];
	struct nlmsgerr error;
	struct nlmsghdr head;
	struct message m;
	ssize_t n;
	int err;

	start_message(&m, GENL_ID_CTRL, 0, CTRL_CMD_GETFAMILY, 1);
	put_attribute(&m, CTRL_ATTR_FAMILY_NAME, FAMILY, sizeof(FAMILY));
	err = send_message(fd, &m);
	if (err)
		return err;
	n = receive(fd, buf, sizeof(buf), 0);
	if (n < (ssize_t)NLMSG_HDRLEN)
		return n < 0 ? (int)n : -EBADMSG;
	memcpy(&head, buf, sizeof(head));
	if (head.nlmsg_type != NLMSG_ERROR)
		return obd_netlink_family(buf, (size_t)n, family, group);
	if ((size_t)n < NLMSG_HDRLEN + sizeof(error))
		return -EBADMSG;
	memcpy(&error, buf + NLMSG_HDRLEN, sizeof(error));
	return error.error ? error.error : -EBADMSG;
}

/* Asks the kernel to wait for replies.  Events that come before the answer
 * are queued. */
static int ask_for_replies(int fd)
{
	uint8_t buf[MESSAGE_MAX], on = 1;
	struct message m;
	ssize_t n;
	int err;

	start_message(&m, nl.family, NLM_F_ACK, CMD_SET_FEATURES, VERSION);
	put_attribute(&m, ATTR_REPLY, &on, sizeof(on));
	err = send_message(fd, &m);
	if (err)
		return err;
	do {
		n = receive(fd, buf, sizeof(buf), 0);
		if (n < 0)
			return (int)n;
		err = take_datagram(buf, (size_t)n);
	} while (err > 0);
	return err == -EOPNOTSUPP ? 0 : err; /* an old kernel */
}

/* The order matters: who asks before it has joined may miss an event that
 * somebody waits for. */
static int join(int fd)
{
	uint32_t group = 0;
	int err = resolve(fd, &nl.family, &group);

	if (err)
		return err;
	if (setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group,
		       sizeof(group)))
		return -errno;
	return ask_for_replies(fd);
}

int32_t obd_netlink_open(void)
{
	int fd, err;

	pthread_mutex_lock(&nl.lock);
	err = nl.open ? -EBUSY : 0;
	nl.open = true;
	pthread_mutex_unlock(&nl.lock);
	if (err)
		return err;
	fd = open_socket();
	err = fd < 0 ? fd : join(fd);
	if (!err) {
		nl.watch = (struct obd_watch){ .fn = readable, .fd = fd };
		err = obd_plane_add(&nl.watch, EPOLLIN);
	}
	if (!err)
		return 0;
	if (fd >= 0)
		close(fd);
	pthread_mutex_lock(&nl.lock);
	nl.open = false;
	pthread_mutex_unlock(&nl.lock);
	return err;
}

int32_t obd_netlink_group(uint32_t *out)
{
	uint16_t family;
	int fd = open_socket(), err;

	if (fd < 0)
		return fd;
	err = resolve(fd, &family, out);
	close(fd);
	return err;
}

int32_t obd_netlink_close(void)
{
	struct obd_tcmu_event event;
	bool open;

	pthread_mutex_lock(&nl.lock);
	open = nl.open;
	pthread_mutex_unlock(&nl.lock);
	if (!open)
		return 0;
	obd_plane_remove(&nl.watch);
	close(nl.watch.fd);
	while (obd_netlink_drain(&event, 1))
		;
	pthread_mutex_lock(&nl.lock);
	nl.open = false;
	pthread_mutex_unlock(&nl.lock);
	return 0;
}

int32_t obd_netlink_reply(uint32_t command, uint32_t device_id,
			  int32_t status)
{
	struct message m;
	bool open;

	if (command < OBD_TCMU_ADDED || command > OBD_TCMU_RECONFIG)
		return -EINVAL;
	pthread_mutex_lock(&nl.lock);
	open = nl.open;
	pthread_mutex_unlock(&nl.lock);
	if (!open)
		return -ENOTCONN;
	start_message(&m, nl.family, 0, (uint8_t)(command + 3), VERSION);
	put_attribute(&m, ATTR_CMD_STATUS, &status, sizeof(status));
	put_attribute(&m, ATTR_DEVICE_ID, &device_id, sizeof(device_id));
	return send_message(nl.watch.fd, &m);
}
