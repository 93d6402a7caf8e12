// SPDX-License-Identifier: Apache-2.0
/**
 * What a registry may do wrong, each with what comes of it: the bytes, or an
 * error of the right kind, and never other bytes (spec/registry.md,
 * sections 5 and 11).  The rows of section 11 are here and beside:
 *
 * | row | where |
 * |---|---|
 * | 1 challenges, tokens; 4 tokens that expire or do not come | registry_token |
 * | 2 redirects | registry_redirect |
 * | 3 wrong and cut answers; 6 sizes and ends; 9 too many at once | here |
 * | 5 statuses at open, at a read; outages | registry_result, registry_read; outage |
 * | 7 TLS, IPv6; 10 names and passwords | interop/registry, unit/credential |
 * | 8 p2p | peer |
 *
 * registry_result has what the result file says, registry_read what a reader
 * sees, of all of them.
 *
 * @module
 */
import assert from "node:assert/strict";
import { createRegistryClient } from "../../src/source/registry/client.ts";
import { SourceError } from "../../src/source/source.ts";
import {
  answerRange,
  answerStatus,
  type Asked,
  startFake,
} from "../lib/fake_registry.ts";
import {
  BLOB,
  PATH,
  read,
  rejects,
  withServer,
} from "../lib/registry_client.ts";

Deno.test("registry: the first range brings bytes and size, connections are kept", async () => {
  await withServer(
    (asked) => answerRange(asked, BLOB),
    async (blob, server) => {
      const body = await blob.range(0, 65536);
      assert.equal(body.total, BLOB.length);
      assert.deepEqual(
        await body.read(new Uint8Array(65536)),
        BLOB.slice(0, 65536),
      );
      assert.equal(await blob.size(), BLOB.length);
      assert.deepEqual(await read(blob, 290_000, 20_000), BLOB.slice(290_000));
      assert.equal(server.asked.length, 2);
      assert.equal(server.asked[0]?.port, server.asked[1]?.port);
      assert.equal(server.asked[0]?.headers["user-agent"], "overlaybd");
      assert.equal(server.asked[0]?.headers["accept-encoding"], "identity");
    },
  );
});

Deno.test("registry: the user agent of the configuration, and of an empty one", async () => {
  for (const [userAgent, sent] of [["mine/1", "mine/1"], ["", "overlaybd"]]) {
    await withServer(
      (asked) => answerRange(asked, BLOB),
      async (blob, server) => {
        await blob.size();
        assert.equal(server.asked[0]?.headers["user-agent"], sent);
      },
      { userAgent: userAgent ?? "" },
    );
  }
});

Deno.test("registry: a challenge and a redirect keep their connections", async () => {
  await using store = await startFake((asked) => answerRange(asked, BLOB));
  await withServer((asked) => {
    if (asked.url === "/t") return asked.response.end('{"token": "t"}');
    return asked.headers.authorization === undefined
      ? answerStatus(asked, 401, { "www-authenticate": 'Bearer realm="/t"' })
      : answerStatus(asked, 307, { location: `${store.origin}/x` });
  }, async (blob, server) => {
    await read(blob, 0, 10);
    await read(blob, 10, 10);
    assert.equal(server.asked.length, 3);
    assert.equal(new Set(server.asked.map(({ port }) => port)).size, 1);
    assert.equal(new Set(store.asked.map(({ port }) => port)).size, 1);
  });
});

Deno.test("registry: a range is read in pieces of any size", async () => {
  await withServer((asked) => answerRange(asked, BLOB), async (blob) => {
    const body = await blob.range(1000, 200_000);
    for (let at = 1000; at < 201_000;) {
      const n = Math.min(7777, 201_000 - at);
      assert.deepEqual(
        await body.read(new Uint8Array(7777)),
        BLOB.slice(at, at + n),
      );
      at += n;
    }
    assert.equal((await body.read(new Uint8Array(10))).length, 0);
  });
});

Deno.test("registry: a body that nobody wants is cancelled, its turn is over", async () => {
  await withServer((asked) => answerRange(asked, BLOB), async (blob) => {
    for (let i = 0; i < 5; i++) (await blob.range(0, 200_000)).cancel();
    assert.deepEqual(await read(blob, 5, 10), BLOB.slice(5, 15));
  }, { maxPerHost: 1 });
});

for (const size of [0, 1]) {
  Deno.test(`registry: a blob of ${size} bytes`, async () => {
    const bytes = BLOB.slice(0, size);
    await withServer((asked) => answerRange(asked, bytes), async (blob) => {
      assert.equal(await blob.size(), size);
      assert.deepEqual(await read(blob, 0, 100), bytes);
    });
  });
}

Deno.test("registry: offsets beyond 4 GiB", async () => {
  const total = 6 * 2 ** 30;
  await withServer(({ range, response }) => {
    const [a, b] = range ?? [0, 0];
    const last = Math.min(b, total - 1);
    response.writeHead(206, {
      "content-range": `bytes ${a}-${last}/${total}`,
      "content-length": last - a + 1,
    });
    response.end(BLOB.subarray(0, last - a + 1));
  }, async (blob) => {
    assert.equal(await blob.size(), total);
    // Across the end: what there is.
    assert.equal((await read(blob, total - 10, 100)).length, 10);
  });
});

Deno.test("registry: an offset beyond the end is an error", async () => {
  await withServer((asked) => answerRange(asked, BLOB), async (blob) => {
    await rejects(
      read(blob, 300_000, 1),
      "EIO",
      /it has no byte 300000 of 300000/,
    );
  });
});

// Answers that are wrong: an error, no bytes, and no second try.
for (
  const [what, answer, text] of [
    ["a whole body for a range", ({ response }: Asked) => {
      response.writeHead(200, { "content-length": BLOB.length });
      response.end(BLOB);
    }, /the server ignores ranges/],
    ["another range", ({ response }: Asked) => {
      response.writeHead(206, {
        "content-range": `bytes 0-99/${BLOB.length}`,
        "content-length": 100,
      });
      response.end(BLOB.subarray(0, 100));
    }, /asked for bytes 1000-1099, got "bytes 0-99\/300000"/],
    ["a range that begins too early", ({ response }: Asked) => {
      response.writeHead(206, {
        "content-range": `bytes 999-1099/${BLOB.length}`,
      });
      response.end(BLOB.subarray(999, 1099));
    }, /asked for bytes 1000-1099, got "bytes 999-1099/],
    ["a range that is too long", ({ response }: Asked) => {
      response.writeHead(206, {
        "content-range": `bytes 1000-1100/${BLOB.length}`,
      });
      response.end(BLOB.subarray(1000, 1101));
    }, /asked for bytes 1000-1099/],
    ["no Content-Range", ({ response }: Asked) => {
      response.writeHead(206, { "content-length": 100 });
      response.end(BLOB.subarray(0, 100));
    }, /got ""/],
    ["a total that is not told", ({ response }: Asked) => {
      response.writeHead(206, { "content-range": "bytes 1000-1099/*" });
      response.end(BLOB.subarray(0, 100));
    }, /got "bytes 1000-1099\/\*"/],
    ["a body shorter than the range", ({ response }: Asked) => {
      response.writeHead(206, {
        "content-range": `bytes 1000-1099/${BLOB.length}`,
        "content-length": 50,
      });
      response.end(BLOB.subarray(0, 50));
    }, /50 bytes were announced in place of 100/],
    ["a chunked body longer than the range", ({ response }: Asked) => {
      response.writeHead(206, {
        "content-range": `bytes 1000-1099/${BLOB.length}`,
      });
      response.end(BLOB.subarray(0, 150));
    }, /goes on behind byte 1099/],
    ["gzip", ({ response }: Asked) => {
      response.writeHead(206, {
        "content-range": `bytes 1000-1099/${BLOB.length}`,
        "content-encoding": "gzip",
        "content-length": 100,
      });
      response.end(BLOB.subarray(0, 100));
    }, /the answer is gzip encoded/],
  ] as const
) {
  Deno.test(`registry: ${what} is an error, not data`, async () => {
    await withServer(answer, async (blob, server) => {
      await rejects(read(blob, 1000, 100), "EIO", text);
      assert.equal(server.asked.length, 1);
    });
  });
}

Deno.test("registry: the whole body is taken for a range that begins it", async () => {
  await withServer(({ response }) => {
    response.writeHead(200, { "content-length": BLOB.length });
    response.end(BLOB);
  }, async (blob) => {
    const body = await blob.range(0, 1000);
    assert.equal(body.total, BLOB.length);
    assert.deepEqual(
      await body.read(new Uint8Array(1000)),
      BLOB.slice(0, 1000),
    );
    await rejects(read(blob, 1000, 10), "EIO", /ignores ranges/);
  });
});

Deno.test("registry: a chunked answer", async () => {
  await withServer(({ range, response }) => {
    const [a, b] = range ?? [0, 0];
    response.writeHead(206, {
      "content-range": `bytes ${a}-${b}/${BLOB.length}`,
    });
    for (let at = a; at <= b; at += 1000) {
      response.write(BLOB.subarray(at, Math.min(b + 1, at + 1000)));
    }
    response.end();
  }, async (blob) => {
    assert.deepEqual(await read(blob, 5000, 10_500), BLOB.slice(5000, 15_500));
  });
});

Deno.test("registry: a blob whose size changes is an error", async () => {
  let size = BLOB.length;
  await withServer(
    (asked) => answerRange(asked, BLOB.subarray(0, size)),
    async (blob) => {
      await blob.size();
      size -= 1000;
      await rejects(
        read(blob, 0, 10),
        "EIO",
        /it had 300000 bytes, now 299000/,
      );
    },
  );
});

Deno.test("registry: a body that is cut is read on from there", async () => {
  let left = 5;
  await withServer((asked) => {
    const [a, b] = asked.range ?? [0, 0];
    if (left-- <= 0) return answerRange(asked, BLOB);
    const { response } = asked;
    response.writeHead(206, {
      "content-range": `bytes ${a}-${b}/${BLOB.length}`,
      "content-length": b - a + 1,
    });
    // Enough to count as progress: the number of tries begins anew.
    response.write(BLOB.subarray(a, a + 70_000 > b ? a + 10 : a + 70_000));
    setTimeout(() => response.destroy(), 20);
    return undefined;
  }, async (blob, server) => {
    assert.deepEqual(await read(blob, 10, 290_000), BLOB.slice(10, 290_010));
    const starts = server.asked.map(({ range }) => range?.[0] ?? -1);
    assert.equal(server.asked.length, 6);
    for (let i = 1; i < starts.length; i++) {
      assert((starts[i] ?? 0) > (starts[i - 1] ?? 0), String(starts));
    }
  });
});

Deno.test("registry: a body that is always cut is an error after four tries", async () => {
  await withServer(({ response, range }) => {
    const [a, b] = range ?? [0, 0];
    response.writeHead(206, {
      "content-range": `bytes ${a}-${b}/${BLOB.length}`,
      "content-length": b - a + 1,
    });
    response.write(BLOB.subarray(a, a + 10));
    setTimeout(() => response.destroy(), 10);
  }, async (blob, server) => {
    await rejects(
      read(blob, 0, 10_000),
      "EIO",
      /the answer ends before byte 40: .*reading a body/,
    );
    assert.equal(server.asked.length, 4);
  });
});

Deno.test("registry: slow-loris: an attempt ends in time", async () => {
  await withServer(({ response, range }) => {
    const [a, b] = range ?? [0, 0];
    response.writeHead(206, {
      "content-range": `bytes ${a}-${b}/${BLOB.length}`,
      "content-length": b - a + 1,
    });
    const timer = setInterval(() => response.write("x"), 50);
    response.on("close", () => clearInterval(timer));
  }, async (blob, server) => {
    await rejects(read(blob, 0, 10_000), "ETIMEDOUT", /no answer within 0.3 s/);
    assert(server.asked.length <= 4);
  }, { attemptMs: 300 });
});

Deno.test("registry: no answer at all: ETIMEDOUT at open", async () => {
  await withServer(() => {}, async (blob) => {
    await rejects(blob.size(), "ETIMEDOUT", /no answer within 0.3 s/);
  }, { attemptMs: 300 });
});

Deno.test("registry: no answer at all: ten blobs wait as long as one", async () => {
  await using server = await startFake(() => {});
  using client = createRegistryClient({ attemptMs: 1000 });
  const start = performance.now();
  const opened = await Promise.allSettled(Array.from(
    { length: 10 },
    () => client.openBlob(server.origin + PATH).size(),
  ));
  assert(performance.now() - start < 4000);
  for (const one of opened) assert.equal(one.status, "rejected");
});

Deno.test("registry: who asked may end it", async () => {
  await withServer(() => {}, async (blob) => {
    const stop = new AbortController();
    const reading = read(blob, 0, 10, stop.signal);
    setTimeout(() => stop.abort(), 30);
    await rejects(reading, "EIO", /it was ended/);
  });
});

// Statuses: the errno, and how often it was tried.
for (
  const [status, code, tries] of [
    [401, "EACCES", 1],
    [403, "EACCES", 1],
    [404, "ENOENT", 1],
    [400, "EIO", 1],
    [429, "EBUSY", 4],
    [500, "EIO", 4],
    [502, "EIO", 4],
    [503, "EIO", 4],
  ] as const
) {
  Deno.test(`registry: status ${status} is ${code} after ${tries} tries`, async () => {
    await withServer(
      (asked) => answerStatus(asked, status),
      async (blob, server) => {
        const error = await rejects(
          blob.size(),
          code,
          new RegExp(
            `^cannot read ${server.origin}${PATH}: HTTP status ${status}`,
          ),
        );
        assert.equal(error.status, status);
        assert.equal(server.asked.length, tries);
      },
    );
  });
}

Deno.test("registry: 500s pass, at open and at a read", async () => {
  let bad = 2;
  await withServer((asked) => {
    if (bad-- > 0) answerStatus(asked, 500);
    else answerRange(asked, BLOB);
  }, async (blob) => {
    assert.equal(await blob.size(), BLOB.length);
    bad = 3;
    assert.deepEqual(await read(blob, 100, 50), BLOB.slice(100, 150));
  });
});

Deno.test("registry: Retry-After is waited for, by everybody", async () => {
  let refused = 0;
  await withServer((asked) => {
    if (refused++ === 0) answerStatus(asked, 429, { "retry-after": "1" });
    else answerRange(asked, BLOB);
  }, async (blob, server) => {
    const start = performance.now();
    const one = read(blob, 0, 10);
    while (server.asked.length === 0) {
      await new Promise((r) => setTimeout(r, 5));
    }
    await new Promise((r) => setTimeout(r, 50));
    await Promise.all([one, read(blob, 10, 10), read(blob, 20, 10)]);
    assert(performance.now() - start > 950);
    assert.equal(server.asked.length, 4);
  });
});

Deno.test("registry: a Retry-After beyond the time there is ends it at once", async () => {
  await withServer(
    (asked) => answerStatus(asked, 429, { "retry-after": "3600" }),
    async (blob, server) => {
      const error = await rejects(blob.size(), "EBUSY", /HTTP status 429/);
      assert.equal(error.retryAfterMs, 3_600_000);
      await rejects(blob.size(), "EBUSY", /wants no request for \d+ s/);
      assert.equal(server.asked.length, 1);
    },
  );
});

Deno.test("registry: 32 opens at once against a limit of 10 all succeed", async () => {
  let active = 0;
  await using server = await startFake((asked) => {
    asked.response.on("close", () => active--);
    if (++active > 10) return answerStatus(asked, 503);
    setTimeout(() => answerRange(asked, BLOB), 20);
    return undefined;
  });
  using client = createRegistryClient();
  // Somebody has learned already that nobody has to log in.
  await client.openBlob(`${server.origin}/v2/a/b/blobs/sha256:0`).size();
  const sizes = await Promise.all(
    Array.from(
      { length: 32 },
      (_, i) =>
        client.openBlob(`${server.origin}/v2/a/b/blobs/sha256:${i}`).size(),
    ),
  );
  assert.deepEqual(new Set(sizes), new Set([BLOB.length]));
});

Deno.test("registry: a server that has room for two is soon asked by two", async () => {
  let active = 0;
  let refused = 0;
  await using server = await startFake((asked) => {
    asked.response.on("close", () => active--);
    if (++active > 2) {
      refused++;
      return answerStatus(asked, 429);
    }
    setTimeout(() => answerRange(asked, BLOB), 60);
    return undefined;
  });
  using client = createRegistryClient();
  const url = `${server.origin}${PATH}`;
  await client.openBlob(url).size();
  await Promise.all(
    Array.from({ length: 16 }, () => client.openBlob(url).size()),
  );
  // 14 of 16, then at most 6 of 8 and 2 of 4.
  assert(refused <= 22, String(refused));
});

Deno.test("registry: no more requests at once than a server gets", async () => {
  await withServer((asked) => {
    setTimeout(() => answerRange(asked, BLOB), 5);
  }, async (blob, server) => {
    await blob.size();
    await Promise.all(Array.from({ length: 50 }, (_, i) => read(blob, i, 10)));
    assert.equal(server.peak, 4);
  }, { maxPerHost: 4 });
});

Deno.test("registry: a refused connection is ENOTCONN and names the host", async () => {
  using client = createRegistryClient();
  const listener = Deno.listen({ port: 0, hostname: "127.0.0.1" });
  const { port } = listener.addr;
  listener.close();
  const blob = client.openBlob(`http://127.0.0.1:${port}${PATH}`);
  const error = await rejects(
    blob.size(),
    "ENOTCONN",
    new RegExp(`127.0.0.1:${port}: .*[Cc]onnection refused`),
  );
  assert(error.retryable);
});

Deno.test("registry: a name that does not resolve is ENOTCONN", async () => {
  using client = createRegistryClient({ attemptMs: 2000 });
  await rejects(
    client.openBlob(`http://registry.invalid${PATH}`).size(),
    "ENOTCONN",
    /registry.invalid: .*dns error/,
  );
});

Deno.test("registry: a URL that is none is EINVAL, one with a password too", () => {
  using client = createRegistryClient();
  for (const url of ["ftp://a/b", "sha256:00", "", "http://"]) {
    assert.throws(() => client.openBlob(url), { code: "EINVAL" });
  }
  assert.throws(
    () => client.openBlob("http://user:secret@a/b?x=secret"),
    (error: unknown) =>
      error instanceof SourceError && !error.message.includes("secret"),
  );
});

Deno.test("registry: IPv6", async () => {
  await using server = await startFake(
    (asked) => answerRange(asked, BLOB),
    "::1",
  );
  using client = createRegistryClient();
  assert.match(server.origin, /\[::1\]/);
  const blob = client.openBlob(server.origin + PATH);
  assert.deepEqual(await read(blob, 3, 7), BLOB.slice(3, 10));
});
