/* SPDX-License-Identifier: Apache-2.0
 *
 * test_crc32c.c - every code path of the checksum against the definition,
 * bit by bit.
 */
#include <dlfcn.h>
#include <stdlib.h>

#include "../internal.h"
#include "check.h"

#define MOST 1100u
#define ALIGNMENTS 16u

/* spec zfile 5, one bit at a time. */
static uint32_t model(uint32_t crc, const uint8_t *p, uint64_t n)
{
	int bit;

	while (n--)
		for (crc ^= *p++, bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
	return crc;
}

static obd_isal_crc *isal(void)
{
	static const char *const names[] = {
		"build/libisal.so.2", "libisal.so.2",
	};
	void *lib = NULL;
	int i;

	for (i = 0; i < 2 && !lib; i++)
		lib = dlopen(names[i], RTLD_NOW);
	return lib ? (obd_isal_crc *)(uintptr_t)dlsym(lib, "crc32_iscsi")
		   : NULL;
}

static uint8_t data[1 << 17] __attribute__((aligned(64)));
static uint32_t want[ALIGNMENTS][MOST + 1];
static uint32_t long_want[64];

static uint64_t long_length(unsigned int i)
{
	return i < 32 ? 12288 * (i / 8 + 1) + i * 7 - 28 :
			sizeof(data) - ALIGNMENTS - i * 193;
}

static void make_data(void)
{
	uint32_t i, a;

	for (i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)check_random();
	for (a = 0; a < ALIGNMENTS; a++)
		for (i = 0; i <= MOST; i++)
			want[a][i] = model(100007 + a, data + a, i);
	for (i = 0; i < 64; i++)
		long_want[i] = model(0, data + i % 16, long_length(i));
}

/* All lengths at all alignments, then lengths about the rounds of the
 * three-stream code. */
static void check_path(void)
{
	uint32_t i, a;

	for (a = 0; a < ALIGNMENTS; a++)
		for (i = 0; i <= MOST; i++)
			CHECK_MSG(obd_crc32c(100007 + a, data + a, i) ==
					  want[a][i],
				  "%s: %u bytes at %u", obd_crc_name(), i,
				  a);
	for (i = 0; i < 64; i++)
		CHECK_MSG(obd_crc32c(0, data + i % 16, long_length(i)) ==
				  long_want[i],
			  "%s: %u bytes", obd_crc_name(),
			  (uint32_t)long_length(i));
}

static void the_first_call_chooses_by_itself(void)
{
	CHECK_EQ(obd_crc32c(0, "123456789", 9), 0x58e3fa20);
	CHECK(strcmp(obd_crc_name(), ""));
}

static void every_level_is_the_definition(void)
{
	enum obd_cpu level;

	for (level = OBD_CPU_SCALAR; level <= OBD_CPU_AVX512; level++) {
		obd_crc_choose(level, NULL);
		printf("# level %d is %s\n", (int)level, obd_crc_name());
		check_path();
	}
	obd_crc_choose(OBD_CPU_SCALAR, NULL);
#if defined(__x86_64__)
	CHECK(!strcmp(obd_crc_name(), "table"));
	if (obd_cpu_level() >= OBD_CPU_SSE42) {
		obd_crc_choose(OBD_CPU_SSE42, NULL);
		CHECK(strcmp(obd_crc_name(), "table"));
	}
#endif
}

static void isa_l_is_the_definition(void)
{
	obd_isal_crc *fn = isal();

	if (!fn) {
		printf("# skipped: ISA-L is not here\n");
		return;
	}
	obd_crc_choose(obd_cpu_level(), fn);
	CHECK(!strcmp(obd_crc_name(), "isal"));
	check_path();
}

static void pieces_make_the_whole(void)
{
	uint64_t cut;

	obd_crc_choose(obd_cpu_level(), NULL);
	for (cut = 0; cut <= MOST; cut++)
		CHECK_EQ(obd_crc32c(obd_crc32c(100007, data, cut),
				    data + cut, MOST - cut),
			 want[0][MOST]);
}

static int dsa_calls;
static bool dsa_works;

static int fake_dsa(uint32_t start, const void *buf, uint64_t n,
		    uint32_t *out)
{
	dsa_calls++;
	*out = dsa_works ? model(start, buf, n) : 1;
	return dsa_works ? 0 : -EBUSY;
}

/* Hardware is asked for everything; what it refuses the CPU does. */
static void hardware_is_used_and_replaced(void)
{
	obd_crc_set_engine(fake_dsa);
	for (dsa_works = false;; dsa_works = true) {
		dsa_calls = 0;
		CHECK_EQ(obd_crc32c(100007, data, MOST), want[0][MOST]);
		CHECK_EQ(dsa_calls, 1);
		if (dsa_works)
			break;
	}
	obd_crc_choose(OBD_CPU_SCALAR, NULL);
	CHECK_EQ(obd_crc32c(100007, data, 77), want[0][77]);
	CHECK_EQ(dsa_calls, 2);
	obd_crc_set_engine(NULL);
	CHECK_EQ(obd_crc32c(100007, data, 78), want[0][78]);
	CHECK_EQ(dsa_calls, 2);
}

int main(void)
{
	check_seed();
	make_data();
	RUN(the_first_call_chooses_by_itself);
	RUN(every_level_is_the_definition);
	RUN(isa_l_is_the_definition);
	RUN(pieces_make_the_whole);
	RUN(hardware_is_used_and_replaced);
	return check_done();
}
