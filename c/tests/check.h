/* SPDX-License-Identifier: Apache-2.0
 *
 * check.h - what the C tests share: one line a test, a failed CHECK ends
 * its test with the place and the reason, and random numbers that SEED
 * replays.
 *
 *	static void a_rule_that_holds(void) { CHECK(1 + 1 == 2); }
 *	int main(void)
 *	{
 *		RUN(a_rule_that_holds);
 *		return check_done();
 *	}
 */
#ifndef OBD_CHECK_H
#define OBD_CHECK_H

#include <inttypes.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static jmp_buf check_out;
static int check_failures;

/* Only from the thread that runs the test. */
#define CHECK(condition) CHECK_MSG(condition, "%s", #condition)

/* With a reason of the printf kind. */
#define CHECK_MSG(condition, ...)                                     \
	do {                                                          \
		if (!(condition)) {                                   \
			printf("not ok - %s: %s:%d: ", check_name,    \
			       __FILE__, __LINE__);                   \
			printf(__VA_ARGS__);                          \
			printf("\n");                                 \
			longjmp(check_out, 1);                        \
		}                                                     \
	} while (0)

/* Two integers that must be equal; prints both. */
#define CHECK_EQ(got, want)                                           \
	do {                                                          \
		int64_t check_g = (int64_t)(got);                     \
		int64_t check_w = (int64_t)(want);                    \
		CHECK_MSG(check_g == check_w,                         \
			  "%s is %" PRId64 ", not %" PRId64, #got,    \
			  check_g, check_w);                          \
	} while (0)

static const char *check_name = "";

static inline void check_run(const char *name, void (*test)(void))
{
	check_name = name;
	if (setjmp(check_out)) {
		check_failures++;
	} else {
		test();
		printf("ok - %s\n", name);
	}
	fflush(stdout);
}

#define RUN(test) check_run(#test, test)

/* The exit code. */
static inline int check_done(void)
{
	return check_failures ? 1 : 0;
}

/* splitmix64.  The seed is printed once; SEED= replays it. */
static uint64_t check_state;

static inline void check_seed(void)
{
	const char *env = getenv("SEED");

	if (env)
		check_state = strtoull(env, NULL, 0);
	else
		check_state = (uint64_t)(uintptr_t)&env * 0x9E3779B97F4A7C15;
	printf("# SEED=%" PRIu64 "\n", check_state);
}

static inline uint64_t check_random(void)
{
	uint64_t z = check_state += 0x9E3779B97F4A7C15;

	z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
	z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
	return z ^ (z >> 31);
}

/* 0 .. n - 1 */
static inline uint64_t check_below(uint64_t n)
{
	return check_random() % n;
}

#endif
