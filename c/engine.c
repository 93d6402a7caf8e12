/* SPDX-License-Identifier: Apache-2.0
 *
 * engine.c - what the library decides once a process: the CPU's code
 * paths, ISA-L, the test seams.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "internal.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* Which register files the system saves on a switch (XCR0): a CPU's
 * instructions are of no use without that. */
static uint64_t saved_state(void)
{
	uint32_t low, high;

	__asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	return (uint64_t)high << 32 | low;
}

#define XCR0_YMM 0x6u   /* SSE and AVX */
#define XCR0_ZMM 0xe6u  /* the three of AVX-512 besides */

static enum obd_cpu machine_level(void)
{
	const uint32_t avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ |
				bit_AVX512VL;
	uint32_t a, b, c, d, c1;
	uint64_t saved;

	if (!__get_cpuid(1, &a, &b, &c1, &d) || !(c1 & bit_SSE4_2) ||
	    !(c1 & bit_POPCNT))
		return OBD_CPU_SCALAR;
	if (!(c1 & bit_OSXSAVE) || !(c1 & bit_AVX))
		return OBD_CPU_SSE42;
	saved = saved_state();
	if ((saved & XCR0_YMM) != XCR0_YMM ||
	    !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & bit_AVX2))
		return OBD_CPU_SSE42;
	if ((saved & XCR0_ZMM) != XCR0_ZMM || (b & avx512) != avx512)
		return OBD_CPU_AVX2;
	return OBD_CPU_AVX512;
}
#else
static enum obd_cpu machine_level(void)
{
	return OBD_CPU_SCALAR;
}
#endif

static const char *const level_names[] = {
	"scalar", "sse42", "avx2", "avx512", "isal",
};

/* What OVERLAYBD_CPU allows; everything when it says nothing known. */
static enum obd_cpu level_cap(void)
{
	const char *cap = getenv("OVERLAYBD_CPU");
	unsigned int i;

	for (i = OBD_CPU_SCALAR; cap && i < OBD_CPU_ISAL; i++)
		if (!strcmp(cap, level_names[i]))
			return (enum obd_cpu)i;
	return OBD_CPU_ISAL;
}

enum obd_cpu obd_cpu_level(void)
{
	static _Atomic int cached = -1;
	int level = atomic_load_explicit(&cached, memory_order_relaxed);
	enum obd_cpu cap;

	if (obd_likely(level >= 0))
		return (enum obd_cpu)level;
	level = (int)machine_level();
	cap = level_cap();
	if (level > (int)cap)
		level = (int)cap;
	atomic_store_explicit(&cached, level, memory_order_relaxed);
	return (enum obd_cpu)level;
}

static pthread_mutex_t init_lock = PTHREAD_MUTEX_INITIALIZER;
static bool initialised;
static char *isal;	/* its path; init_lock guards it */
static char description[64];

/* The library stays loaded: its code may run until the process ends. */
obd_isal_crc *obd_isal_load(void)
{
	void *lib = NULL;

	pthread_mutex_lock(&init_lock);
	if (isal && level_cap() == OBD_CPU_ISAL)
		lib = dlopen(isal, RTLD_NOW | RTLD_LOCAL);
	pthread_mutex_unlock(&init_lock);
	if (!lib)
		return NULL;
	return (obd_isal_crc *)(uintptr_t)dlsym(lib, "crc32_iscsi");
}

static void describe(void)
{
	enum obd_cpu level = obd_cpu_level();

	snprintf(description, sizeof(description), "crc=%s lookup=%s",
		 obd_crc_name(),
		 level < OBD_CPU_AVX2 ? "scalar" : level_names[level]);
}

int32_t obd_engine_init(int32_t abi, const char *isal_path)
{
	if (abi != OBD_ABI)
		return -EPROTO;
	pthread_mutex_lock(&init_lock);
	if (!initialised) {
		isal = isal_path ? strdup(isal_path) : NULL;
		obd_io_init_from_env();
		initialised = true;
	}
	pthread_mutex_unlock(&init_lock);
	return 0;
}

int32_t obd_engine_stop(void)
{
	if (obd_device_count())
		return -EBUSY;
	obd_miss_stop();
	obd_plane_stop();
	return 0;
}

const char *obd_engine_describe(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, describe);
	return description;
}
