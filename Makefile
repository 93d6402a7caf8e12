# SPDX-License-Identifier: Apache-2.0
#
#   make setup     installs what building and testing need
#   make build     build/overlaybd, one file
#   make test      everything, and one closing line
#
# Variables: BUILD= another build directory; PACK= zstd level of the runtime
# inside the executable (19 for releases); DENORT=real Deno's own base
# runtime; FUZZ_SECONDS= a target of fuzz and soak (TEST_FUZZ_SECONDS= of
# test); DESTDIR= and PREFIX= for install.

BUILD := build
PACK := 9
DENORT :=
FUZZ_SECONDS := 60
TEST_FUZZ_SECONDS := 20
# Where things go is a variable of the environment or of make: PREFIX,
# SYSCONFDIR and others, see scripts/install.sh.
export DESTDIR PREFIX SYSCONFDIR BINDIR UNITDIR SHAREDIR MANDIR DOCDIR
export BASHCOMPDIR ZSHCOMPDIR
# The date of whatever is dated: the last commit's.
ifndef SOURCE_DATE_EPOCH
SOURCE_DATE_EPOCH := $(shell git log -1 --format=%ct 2>/dev/null || \
	stat -c %Y src/format/version.ts)
endif
export SOURCE_DATE_EPOCH

CC := gcc
CLANG := clang
CROSS := aarch64-linux-gnu-gcc
ZSTD := zstd
TOOLS := $(BUILD)/tools
DENO := $(TOOLS)/deno

# Everything that Deno downloads is kept in the tree: later steps need no
# network.
export DENO_DIR := $(abspath $(BUILD)/deno_dir)
export DENO_NO_UPDATE_CHECK := 1

# V=1 shows the commands.
ifeq ($(V),)
Q := @
say = @printf '  %-8s %s\n' $(1) $@
endif

WARN := -Wall -Wextra -Werror
# The same bytes wherever the tree lies.
CFLAGS := -std=gnu11 -O2 -g -ffile-prefix-map=$(CURDIR)=. -fPIC \
	-fvisibility=hidden -pthread $(WARN)
# What can be linked statically is; no undefined symbol may be left.
LIBS := -l:liblz4.a -l:libzstd.a -l:libz.a -l:liburing.a
# nodelete: Deno unloads the library before its blocking threads end, whose
# destructors of per-thread codec contexts lie in it.
LDFLAGS := -shared -pthread -Wl,-z,defs -Wl,-z,relro -Wl,-z,now \
	-Wl,-z,nodelete \
	-Wl,--exclude-libs,ALL -Wl,--gc-sections
# One instruction set for every machine: CPU code paths are picked at run
# time, by functions that name their target themselves.
SAN := -fsanitize=address,undefined -fno-sanitize-recover=all \
	-fno-omit-frame-pointer

C_SOURCES := $(wildcard c/*.c)
L_SOURCES := $(wildcard c/launcher/*.c)
# The launcher without its main(): what tests and fuzz targets link.
L_PARTS := $(filter-out c/launcher/main.c c/launcher/stamp.c,$(L_SOURCES))
C_TESTS := $(patsubst c/tests/%.c,%,$(wildcard c/tests/test_*.c))
C_FUZZ := $(patsubst c/fuzz/%.c,%,$(wildcard c/fuzz/fuzz_*.c))
TS_SOURCES := $(wildcard main.ts) $(shell find src ffi -name '*.ts' 2>/dev/null)

LIB := $(BUILD)/liboverlaybd.so
ISAL := $(BUILD)/libisal.so.2
EXE := $(BUILD)/overlaybd
DENORT_ELF := $(BUILD)/denort

all: build

.PHONY: all setup build lib demo test bench soak fuzz fuzz-coverage c-test
.PHONY: aarch64 install deb tarball docs clean distclean lint fmt check
.DELETE_ON_ERROR:
.SECONDARY:
MAKEFLAGS += --no-builtin-rules

# ---- setup -----------------------------------------------------------------
setup:
	@BUILD=$(BUILD) scripts/setup.sh

# A tree that was never set up sets itself up.
$(DENO):
	@BUILD=$(BUILD) scripts/setup.sh

# ---- the C library ---------------------------------------------------------
lib: $(LIB) $(ISAL)

$(BUILD)/obj/%.o: c/%.c
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(CC) $(CFLAGS) -MMD -MP -c -o $@ $<

# The new file takes the old one's name at once: a process that runs with
# the old one keeps it.
$(LIB): $(C_SOURCES:c/%.c=$(BUILD)/obj/%.o)
	$(call say,LINK)
	$(Q)$(CC) $(LDFLAGS) -Wl,-soname,liboverlaybd.so -o $@.tmp $^ $(LIBS)
	$(Q)mv $@.tmp $@

# Debian has ISA-L as a shared library only: it goes with ours.
$(ISAL):
	@mkdir -p $(@D)
	$(call say,COPY)
	$(Q)cp -L "$$($(CC) -print-file-name=libisal.so.2)" $@.tmp
	$(Q)mv $@.tmp $@

# ---- the executable --------------------------------------------------------
# scripts/setup.sh leaves the pinned runtime here.
$(BUILD)/launcher/runtime-$(PACK).zst: $(DENO)
	@mkdir -p $(@D)
	$(call say,PACK)
	$(Q)$(ZSTD) -q -f -T0 --check $(if $(shell test $(PACK) -gt 15 && \
		echo y),--progress --long=27) -$(PACK) -o $@ $(DENO)

$(BUILD)/launcher/runtime.h: $(DENO)
	@mkdir -p $(@D)
	@printf '#define RUNTIME_KEY "%s"\n#define RUNTIME_SIZE %sull\n' \
		"$$(sha256sum < $< | cut -d' ' -f1)" \
		"$$(stat -L -c %s $<)" > $@

LAUNCHER_CFLAGS := -std=gnu11 -Os -g0 -fPIE $(WARN) -I$(BUILD)/launcher \
	-D_FORTIFY_SOURCE=2 -fstack-protector-strong

$(BUILD)/launcher/%.o: c/launcher/%.c $(BUILD)/launcher/runtime.h
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(CC) $(LAUNCHER_CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/launcher/runtime-%.o: $(BUILD)/launcher/runtime-%.zst \
		c/launcher/runtime.S
	$(call say,AS)
	$(Q)$(CC) -DRUNTIME_FILE='"$<"' -c -o $@ c/launcher/runtime.S

$(DENORT_ELF): $(L_PARTS:c/launcher/%.c=$(BUILD)/launcher/%.o) \
		$(BUILD)/launcher/main.o $(BUILD)/launcher/runtime-$(PACK).o
	$(call say,LINK)
	$(Q)$(CC) -static -s -Wl,--gc-sections -Wl,-z,relro,-z,now \
		-o $@ $^ -l:libzstd.a

$(BUILD)/launcher/stamp: $(L_PARTS:c/launcher/%.c=$(BUILD)/launcher/%.o) \
		$(BUILD)/launcher/stamp.o
	$(call say,LINK)
	$(Q)$(CC) -o $@ $^ -l:libzstd.a

build: $(EXE)

# Not minified: esbuild's minifier has dropped an `await using` whose name is
# used once, and what cannot be closed any more hangs.  Without white space a
# start costs the same.
# Bundled in chunks: what a command does not need, it does not load; in one
# bundle every node: module that any of them imports would be.  Deno loads
# every import() of a literal together with main.js, needed or not; it cannot
# tell what String() gives.  And node:module, which the bundler's helpers import
# for the CommonJS packages, brings in all of node: only to find modules of it.
# What openapi.ts exports keeps all of zod, 600 KB of messages in every language
# included: in a bundle of its own it does not keep it for everybody.
# It keeps the dates of its files, which are made the same for all.
# With DENORT=real the base runtime is Deno's own; else it is the launcher,
# which is then told the key of what was appended to it.
ifeq ($(DENORT),real)
COMPILE_ENV :=
STAMP := :
else
COMPILE_ENV := DENORT_BIN=$(abspath $(DENORT_ELF))
STAMP := $(BUILD)/launcher/stamp
endif

REQUIRE := (name) => process.getBuiltinModule(name)

$(EXE): Makefile main.ts $(TS_SOURCES) deno.json deno.lock \
		$(LIB) $(ISAL) $(DENO) \
		$(if $(COMPILE_ENV),$(DENORT_ELF) $(BUILD)/launcher/stamp)
	$(call say,COMPILE)
	$(Q)rm -rf $(BUILD)/bundle
	$(Q)$(DENO) check -q main.ts
	$(Q)$(DENO) bundle -q --code-splitting --platform deno \
		--external ./openapi.ts --outdir $(BUILD)/bundle main.ts
	$(Q)$(DENO) bundle -q --platform deno --outdir $(BUILD)/bundle \
		src/service/api/openapi.ts
	$(Q)sed -i -e 's,import("\(\./[^"]*\)"),import(String("\1")),g' \
		-e 's,"\./openapi\.ts",".\/openapi.js",' \
		-e '/^import .*createRequire.* from "node:module";$$/d' \
		-e 's/^\(var __require =\) .*createRequire(.*/\1 $(REQUIRE);/' \
		$(BUILD)/bundle/*.js
	$(Q)touch -d @0 $(BUILD)/bundle/* $(LIB) $(ISAL)
	$(Q)$(COMPILE_ENV) $(DENO) compile -q -A --include $(BUILD)/bundle \
		--include $(LIB) --include $(ISAL) -o $@.tmp \
		$(BUILD)/bundle/main.js
	$(Q)touch $(LIB) $(ISAL)
	$(Q)$(STAMP) $@.tmp
	$(Q)mv $@.tmp $@

# ---- checks ----------------------------------------------------------------
check: $(DENO)
	$(DENO) check $(wildcard main.ts) src ffi tests

lint: $(DENO)
	$(DENO) lint -q
	$(DENO) fmt -q --check

fmt: $(DENO)
	$(DENO) fmt -q

# ---- C tests, under AddressSanitizer and UBSan -----------------------------
SAN_CFLAGS := -std=gnu11 -O1 -g -pthread $(WARN) $(SAN) -Ic

$(BUILD)/san/%.o: c/%.c
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(CC) $(SAN_CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/san/launcher/%.o: c/launcher/%.c $(BUILD)/launcher/runtime.h
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(CC) $(SAN_CFLAGS) -I$(BUILD)/launcher -MMD -MP -c -o $@ $<

$(BUILD)/san/libparts.a: $(C_SOURCES:c/%.c=$(BUILD)/san/%.o) \
		$(L_PARTS:c/launcher/%.c=$(BUILD)/san/launcher/%.o)
	@rm -f $@
	$(call say,AR)
	$(Q)$(AR) rcs $@ $^

# The library's objects are all linked, as in the shared library; of the
# launcher's only what a test asks for.
$(BUILD)/san/tests/test_%: $(BUILD)/san/tests/test_%.o \
		$(C_SOURCES:c/%.c=$(BUILD)/san/%.o) $(BUILD)/san/libparts.a
	$(call say,LINK)
	$(Q)$(CC) $(SAN) -pthread -o $@ $^ $(LIBS) -ldl -lm

# Its kernel is a socket, which only the test can map.
$(BUILD)/san/tests/test_ring: SAN += -Wl,--wrap=mmap -Wl,--wrap=calloc
$(BUILD)/san/tests/test_device: SAN += -Wl,--wrap=pthread_create
$(BUILD)/san/tests/test_push: SAN += -Wl,--wrap=calloc
$(BUILD)/san/tests/test_uring: SAN += -Wl,--wrap=io_uring_submit \
	-Wl,--wrap=io_uring_queue_init_params -Wl,--wrap=obd_plane_offload

c-test: $(C_TESTS:%=$(BUILD)/san/tests/%) $(ISAL)
	@BUILD=$(BUILD) tests/c.sh $(C_TESTS)

# ---- fuzzing ---------------------------------------------------------------
FUZZ_CFLAGS := -std=gnu11 -O1 -g -pthread $(WARN) -Ic \
	-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all

$(BUILD)/fuzz/%.o: c/%.c
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(CLANG) $(FUZZ_CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/fuzz/launcher/%.o: c/launcher/%.c $(BUILD)/launcher/runtime.h
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(CLANG) $(FUZZ_CFLAGS) -I$(BUILD)/launcher -MMD -MP -c -o $@ $<

$(BUILD)/fuzz/libparts.a: $(C_SOURCES:c/%.c=$(BUILD)/fuzz/%.o) \
		$(L_PARTS:c/launcher/%.c=$(BUILD)/fuzz/launcher/%.o)
	@rm -f $@
	$(call say,AR)
	$(Q)$(AR) rcs $@ $^

$(BUILD)/fuzz/fuzz_%: $(BUILD)/fuzz/fuzz/fuzz_%.o $(BUILD)/fuzz/libparts.a
	$(call say,LINK)
	$(Q)$(CLANG) -fsanitize=fuzzer,address,undefined -pthread \
		$(FUZZ_LDFLAGS) -o $@ $^ $(LIBS) -ldl -lm

# As in test_ring.
$(BUILD)/fuzz/fuzz_ring: FUZZ_LDFLAGS := -Wl,--wrap=mmap

fuzz: $(C_FUZZ:%=$(BUILD)/fuzz/%)
	@BUILD=$(BUILD) FUZZ_SECONDS=$(FUZZ_SECONDS) tests/fuzz.sh $(C_FUZZ)

# How much of each parser its corpus reaches.
fuzz-coverage:
	@BUILD=$(BUILD) CLANG=$(CLANG) tests/fuzz_coverage.sh $(C_FUZZ)

# ---- another architecture: must compile ------------------------------------
# Debian's headers of these four are the same on both: they are borrowed.
$(BUILD)/aarch64/%.o: c/%.c
	@mkdir -p $(@D)
	@mkdir -p $(BUILD)/aarch64/include
	@ln -sf $(wildcard /usr/include/lz4*.h /usr/include/zstd*.h \
		/usr/include/zlib.h /usr/include/x86_64-linux-gnu/zconf.h \
		/usr/include/zconf.h /usr/include/liburing.h \
		/usr/include/liburing) $(BUILD)/aarch64/include/
	$(call say,CC)
	$(Q)$(CROSS) $(CFLAGS) -I$(BUILD)/aarch64/include -MMD -MP -c -o $@ $<

aarch64: $(C_SOURCES:c/%.c=$(BUILD)/aarch64/%.o)

# ---- whole-product targets -------------------------------------------------
test: setup
	@BUILD=$(BUILD) FUZZ_SECONDS=$(TEST_FUZZ_SECONDS) tests/run.sh

demo: setup build
	@OVERLAYBD_BIN=$(abspath $(EXE)) scripts/demo.sh

# The references, and a client that costs little itself.
$(BUILD)/libbench.so: tests/bench/reference.cc
	$(call say,CXX)
	$(Q)g++ -std=c++17 -O2 -Wall -Wextra -Werror -shared -fPIC -o $@ $< \
		-lisal -llz4 -lzstd

$(BUILD)/nbd_load: tests/bench/nbd_load.c
	$(call say,CC)
	$(Q)$(CC) -O2 $(WARN) -o $@ $<

bench: setup build $(BUILD)/libbench.so $(BUILD)/nbd_load
	@OVERLAYBD_BIN=$(abspath $(EXE)) $(DENO) run -A tests/bench/bench.ts

# The long counts: also of tests that `make test` runs short.
soak: setup build fuzz
	@OVERLAYBD_BIN=$(abspath $(EXE)) OVERLAYBD_SOAK=1 \
		$(DENO) test -A tests/soak tests/unit/image_fs_test.ts \
		tests/interop/api_fuzz_test.ts tests/vm

install: build
	@BUILD=$(BUILD) DENO=$(DENO) scripts/install.sh

# What they hold is what `make install` lays out, without a configuration.
deb tarball: build
	@BUILD=$(BUILD) DENO=$(DENO) PACK=$(PACK) scripts/package.sh $@

# Tables that come from the code.
docs: $(DENO)
	@$(DENO) run -A scripts/reference/tables.ts README.md docs/*.md

# Keeps what was downloaded; distclean does not.
clean:
	@for f in $(BUILD)/*; do case $$f in \
		$(BUILD)/tools|$(BUILD)/deno_dir|$(BUILD)/cache) ;; \
		*) rm -rf "$$f" ;; esac; done
	rm -rf coverage

distclean:
	rm -rf $(BUILD) coverage

-include $(shell find $(BUILD) -name '*.d' -not -path '*/deno_dir/*' \
	-not -path '*/tools/*' -not -path '*/cache/*' 2>/dev/null)
