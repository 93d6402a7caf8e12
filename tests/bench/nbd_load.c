/* SPDX-License-Identifier: Apache-2.0
 *
 * nbd_load.c - random 4 KiB reads over one NBD connection, 32 in flight or as
 * many as are said: nbd_load SOCKET EXPORT SECONDS [DEPTH].  Prints
 * {"requests": N, "seconds": S}.
 */
#include <endian.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define DEPTH 32
#define SIZE 4096u
#define REPLY (16 + SIZE)

static int fd;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void put(const void *p, size_t n)
{
	if (send(fd, p, n, 0) != (ssize_t)n)
		die("send");
}

static void get(void *p, size_t n)
{
	if (recv(fd, p, n, MSG_WAITALL) != (ssize_t)n)
		die("recv");
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* EXPORT_NAME; returns the export's size. */
static uint64_t negotiate(const char *path, const char *name)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	uint32_t flags = htobe32(3), option = htobe32(1);
	uint32_t length = htobe32((uint32_t)strlen(name));
	uint64_t size;
	char buf[18];

	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)))
		die(path);
	get(buf, 18);
	put(&flags, 4);
	put("IHAVEOPT", 8);
	put(&option, 4);
	put(&length, 4);
	put(name, strlen(name));
	get(buf, 10);
	memcpy(&size, buf, 8);
	return be64toh(size);
}

/* Appends a read at a random place. */
static char *ask(char *to, uint64_t blocks, uint64_t *state)
{
	uint32_t magic = htobe32(0x25609513), length = htobe32(SIZE);
	uint64_t offset;

	*state = *state * 6364136223846793005u + 1442695040888963407u;
	offset = htobe64((*state >> 24) % blocks * SIZE);
	memset(to, 0, 28);
	memcpy(to, &magic, 4);
	memcpy(to + 16, &offset, 8);
	memcpy(to + 24, &length, 4);
	return to + 28;
}

int main(int argc, char **argv)
{
	static char in[DEPTH * REPLY], out[DEPTH * 28];
	uint64_t blocks, state = 1, done = 0;
	double start, end, seconds;
	size_t have = 0;
	char *to = out;
	int depth = argc > 4 ? atoi(argv[4]) : DEPTH;

	if (argc < 4 || depth < 1 || depth > DEPTH)
		return 2;
	seconds = atof(argv[3]);
	blocks = negotiate(argv[1], argv[2]) / SIZE;
	start = now();
	end = start + seconds;
	for (int i = 0; i < depth; i++)
		to = ask(to, blocks, &state);
	put(out, (size_t)(to - out));
	while (now() < end) {
		ssize_t got = recv(fd, in + have, sizeof(in) - have, 0);
		size_t whole, at;

		if (got <= 0)
			die("recv");
		have += (size_t)got;
		whole = have / REPLY;
		to = out;
		for (at = 0; at < whole; at++) {
			if (memcmp(in + at * REPLY + 4, "\0\0\0", 4))
				return 1;
			to = ask(to, blocks, &state);
		}
		memmove(in, in + whole * REPLY, have - whole * REPLY);
		have -= whole * REPLY;
		done += whole;
		if (whole)
			put(out, (size_t)(to - out));
	}
	seconds = now() - start;
	/* A clean end: every answer is read, and the server told. */
	get(in + have, (size_t)depth * REPLY - have);
	memset(out, 0, 28);
	memcpy(out, &(uint32_t){ htobe32(0x25609513) }, 4);
	out[7] = 2;
	put(out, 28);
	printf("{\"requests\": %llu, \"seconds\": %f}\n",
	       (unsigned long long)done, seconds);
	return 0;
}
