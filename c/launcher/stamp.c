/* SPDX-License-Identifier: Apache-2.0
 *
 * stamp.c - writes the key of the application into a compiled executable,
 * so that no start has to compute it.  A build tool, not part of it.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launcher.h"

int main(int argc, char **argv)
{
	char hex[KEY_HEX + 1];
	struct bytes elf, note;
	struct stat st;
	size_t slot;
	void *map;
	int fd;

	if (argc != 2) {
		fprintf(stderr, "usage: stamp EXECUTABLE\n");
		return 2;
	}
	fd = open(argv[1], O_RDWR);
	if (fd < 0 || fstat(fd, &st)) {
		perror(argv[1]);
		return 1;
	}
	map = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE,
		   MAP_SHARED, fd, 0);
	if (map == MAP_FAILED) {
		perror(argv[1]);
		return 1;
	}
	elf = (struct bytes){ map, (size_t)st.st_size };
	if (note_find(elf, &note) || note_key_slot(elf, &slot)) {
		fprintf(stderr, "stamp: %s: no application in it\n", argv[1]);
		return 1;
	}
	sha256_hex(note, hex);
	memcpy((char *)map + slot, hex, KEY_HEX);
	return 0;
}
