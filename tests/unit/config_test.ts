// SPDX-License-Identifier: Apache-2.0
// The service's configuration: spec/service-config.md, sections 3 and 8.
import {
  deepStrictEqual as equal,
  match,
  ok,
  rejects,
  throws,
} from "node:assert/strict";
import { serviceFields } from "../../scripts/reference/described.ts";
import { ConfigError, readImageConfig } from "../../src/image/config.ts";
import {
  configLines,
  loadServiceConfig,
  parseServiceConfig,
} from "../../src/service/config.ts";
import { checkUse } from "../../src/service/config_use.ts";
import { ROOT, tempDir, tool } from "../lib/env.ts";

const parse = (value: unknown) => parseServiceConfig(value, "o.json");

function fromOf(value: unknown, key: string): [unknown, string] {
  const found = parse(value).settings.find((setting) => setting.key === key);
  return [found?.value, found?.from ?? "no such key"];
}

Deno.test("defaults are the original's", () => {
  const { config, warnings } = parse({});
  equal(warnings, []);
  equal(config.cacheConfig, {
    cacheType: "file",
    cacheDir: "/opt/overlaybd/registry_cache",
    cacheSizeGB: 4,
    refillSize: 262144,
    blockSize: 65536,
  });
  equal(config.gzipCacheConfig.refillSize, 1048576);
  equal(config.credentialConfig.mode, "file");
  equal(config.credentialConfig.path, "/opt/overlaybd/cred.json");
  equal(config.logConfig.logPath, "/var/log/overlaybd.log");
  equal(config.logConfig.logRotateNum, 3);
  equal(config.exporterConfig.port, 9863);
  equal(config.exporterConfig.address, "127.0.0.1");
  equal(config.prefetchConfig.concurrency, 16);
  equal(config.userAgent, "overlaybd/0.1.0");
  equal(config.writeCache, true);
  const groups = Object.entries(config)
    .filter(([, value]) => typeof value === "object" && !Array.isArray(value));
  equal(groups.length, 11);
  equal(
    parse(Object.fromEntries(groups.map(([key]) => [key, {}]))),
    parse({}),
  );
});

Deno.test("files of clients and of older packages are taken without a warning", () => {
  const older = {
    ...{ logLevel: 1, logPath: "/l", registryCacheDir: "/c" },
    ...{ registryCacheSizeGB: 1, credentialFilePath: "/k", ioEngine: 1 },
    download: { enable: true, delay: 1, delayExtra: 1, maxMBps: 1, tryCnt: 1 },
  };
  equal(parse(older).warnings, []);
  // The snapshotter's, for turboOCI-apply.
  const { config, warnings } = parse({
    registryFsVersion: "v2",
    ...{ logPath: "", logLevel: 1, ioEngine: 0, enableAudit: false },
    cacheConfig: { cacheType: "file", cacheDir: "/w/cache", cacheSizeGB: 4 },
    gzipCacheConfig: { enable: false },
    ...{ credentialFilePath: "", download: { enable: false } },
  });
  equal(
    [config.logConfig.logPath, config.credentialConfig.path],
    ["", ""],
  );
  equal(warnings, [
    "credentialConfig.path: empty authentication path: every request is " +
    "anonymous",
  ]);
});

Deno.test("of a key that is there twice the first counts, and it is said", async () => {
  using dir = tempDir();
  const path = dir.file("o.json");
  Deno.writeTextFileSync(
    path,
    '{"download": {"delay": 1, "delay": 2}, "ioEngine": 1, "ioEngine": 0}',
  );
  const { config, warnings } = await loadServiceConfig(path);
  equal([config.ioEngine, config.download.delay], [1, 1]);
  equal(warnings, [
    `${path}: key delay is there twice: the first counts`,
    `${path}: key ioEngine is there twice: the first counts`,
  ]);
});

Deno.test("older keys count unless their group's selector is not empty", () => {
  const legacy = {
    logLevel: 2,
    logPath: "/l",
    registryCacheDir: "/c",
    registryCacheSizeGB: 9,
    credentialFilePath: "/k",
    cacheType: "download",
  };
  const { config } = parse({
    ...legacy,
    cacheConfig: { cacheDir: "/unused", refillSize: 65536 },
    logConfig: { logLevel: 0, logSizeMB: 7 },
    credentialConfig: { path: "/unused", timeout: 5 },
  });
  equal(config.cacheConfig.cacheType, "download");
  equal(config.cacheConfig.cacheDir, "/c");
  equal(config.cacheConfig.cacheSizeGB, 9);
  equal(config.cacheConfig.refillSize, 65536);
  equal(config.credentialConfig.path, "/k");
  equal(config.credentialConfig.timeout, 5);
  equal([config.logConfig.logPath, config.logConfig.logLevel], ["/l", 2]);
  equal(config.logConfig.logSizeMB, 7);

  const both = parse({
    ...legacy,
    cacheConfig: { cacheType: "file" },
    logConfig: { logPath: "/new" },
    credentialConfig: { mode: "uds" },
  });
  equal(both.config.cacheConfig.cacheDir, "/opt/overlaybd/registry_cache");
  equal(both.config.cacheConfig.cacheSizeGB, 4);
  equal(both.config.logConfig.logLevel, 1);
  equal(both.config.credentialConfig.path, "");
});

Deno.test("an empty logPath stays empty", () => {
  equal(parse({ logPath: "" }).config.logConfig.logPath, "");
});

Deno.test("each value says where it came from", () => {
  equal(fromOf({ ioEngine: 1 }, "ioEngine"), [1, "file"]);
  equal(fromOf({}, "ioEngine"), [0, "default"]);
  const dir = "cacheConfig.cacheDir";
  equal(fromOf({ registryCacheDir: "/c" }, dir), ["/c", "registryCacheDir"]);
  equal(fromOf({ cacheConfig: { cacheDir: "/c" } }, dir), [
    "/opt/overlaybd/registry_cache",
    "default",
  ]);
  equal(
    fromOf({ cacheConfig: { cacheType: "file", cacheDir: "/c" } }, dir),
    ["/c", "file"],
  );
});

Deno.test("wrong values are refused by name", () => {
  const texts: [unknown, string][] = [
    [
      { cacheConfig: { refillSize: 3000 } },
      "cacheConfig.refillSize: 3000 is not a power of two multiple of 4096",
    ],
    [
      { cacheConfig: { refillSize: 0 } },
      "cacheConfig.refillSize: 0 is not a power of two multiple of 4096",
    ],
    [
      { cacheConfig: { refillSize: 12288 } },
      "cacheConfig.refillSize: 12288 is not a power of two multiple of 4096",
    ],
    [
      { cacheConfig: { blockSize: 3 } },
      "cacheConfig.blockSize: 3 is not 4096, 8192, 16384, 32768 or 65536",
    ],
    [
      { cacheConfig: { cacheType: "x" } },
      "cacheConfig.cacheType: unknown cache type: x: it is not file, download or ocf",
    ],
    [{ cacheConfig: null }, "cacheConfig: got null, expected object"],
    [
      { cacheConfig: { cacheSizeGB: -1 } },
      "cacheConfig.cacheSizeGB: got -1, expected a number of at least 0",
    ],
    [{ ioEngine: 3 }, "ioEngine: unknown io_engine: 3: it is not 0 to 2"],
    [{ enableAudit: "yes" }, 'enableAudit: got "yes", expected boolean'],
    [
      { exporterConfig: { port: 1.5 } },
      "exporterConfig.port: got 1.5, expected a whole number",
    ],
    [
      { exporterConfig: { port: 98630 } },
      "exporterConfig.port: got 98630, expected a number of at most 65535",
    ],
    [
      { logConfig: { format: "xml" } },
      'logConfig.format: got "xml", expected "text" or "json"',
    ],
    [[], "the file: got [], expected object"],
  ];
  for (const [value, text] of texts) {
    throws(() => parse(value), (error) => {
      equal(
        error instanceof ConfigError && error.message,
        `cannot use o.json: ${text}`,
      );
      return true;
    });
  }
  for (const refillSize of [4096, 65536]) {
    equal(
      parse({ cacheConfig: { refillSize } }).config.cacheConfig.refillSize,
      refillSize,
    );
  }
  equal(parse({ registryFsVersion: "V2" }).warnings, []);
});

Deno.test("whatever is wrong with a field, the message says what is right", () => {
  for (const { key } of serviceFields()) {
    for (const wrong of [null, true, -1, 1.5, 1e10, 1e300, "odd", [1], {}]) {
      const value = key.split(".").reduceRight<unknown>(
        (member, name) => ({ [name]: member }),
        wrong,
      );
      try {
        parse(value);
      } catch (error) {
        const { message } = error as ConfigError;
        ok(message.startsWith(`cannot use o.json: ${key}`), message);
        ok(!message.includes("Invalid"), message);
      }
    }
  }
});

Deno.test("unknown keys and bent values are collected", () => {
  const { warnings, config } = parse({
    trace: 1,
    cacheConfig: { size: 2, cacheSizeGB: 0 },
    logConfig: { logRotateNum: 31, logSizeMB: 4096 },
    credentialConfig: { mode: "ldap" },
  });
  equal(warnings, [
    "o.json: unknown key trace is ignored",
    "o.json: unknown key cacheConfig.size is ignored",
    "logConfig.logRotateNum: 31 is not 1..30: 30 is used",
    'credentialConfig.mode: invalid mode for authentication: "ldap" is not ' +
    "file, http, https or uds: every request is anonymous",
  ]);
  equal(config.logConfig.logRotateNum, 30);
  equal(config.logConfig.logSizeMB, 4096);
  for (const logRotateNum of [0, -1]) {
    const { logConfig } = parse({ logConfig: { logRotateNum } }).config;
    equal(logConfig.logRotateNum, 1);
  }
});

Deno.test("what would do nothing is bent, and it is said", () => {
  const { warnings, config } = parse({
    logConfig: { logSizeMB: 0 },
    exporterConfig: { uriPrefix: "metrics" },
  });
  equal(warnings, [
    "logConfig.logSizeMB: 0 is less than 1: 1 is used",
    'exporterConfig.uriPrefix: "metrics" does not begin with "/": ' +
    '"/metrics" is used',
  ]);
  equal(config.logConfig.logSizeMB, 1);
  equal(config.exporterConfig.uriPrefix, "/metrics");
});

Deno.test("the packaged overlaybd.json has no warnings", () => {
  const text = Deno.readTextFileSync(`${ROOT}/etc/overlaybd.json`);
  equal(parse(JSON.parse(text)).warnings, []);
});

Deno.test("config check and config show", async () => {
  using dir = tempDir();
  const path = dir.file("o.json");
  Deno.writeTextFileSync(path, '{"registryCacheDir": "/c", "odd": 1}');
  const shown = await tool("overlaybd", ["config", "show", path]);
  equal(shown.code, 0);
  equal(
    shown.stdout.match(/^cacheConfig.cacheDir.*$/m)?.[0],
    'cacheConfig.cacheDir = "/c"  (registryCacheDir)',
  );
  equal(shown.stderr, `WARNING ${path}: unknown key odd is ignored\n`);
  const json = JSON.parse(
    (await tool("overlaybd", ["config", "show", path, "--json"])).stdout,
  );
  equal(json.settings.length > 50, true);
  equal(
    (await tool("overlaybd", ["config", "check", path])).stdout,
    `${path} can be used\n`,
  );
  Deno.writeTextFileSync(path, '{"certConfig": {"caFile": "/no/ca"}}');
  const named = await tool("overlaybd", ["config", "check", path]);
  equal([named.code, named.stdout], [255, ""]);
  match(named.stderr, /: cannot use certConfig.caFile: cannot open \/no\/ca: /);
  Deno.writeTextFileSync(path, '{"ioEngine": 3}');
  const refused = await tool("overlaybd", ["config", "check", path]);
  equal([refused.code, refused.stdout], [255, ""]);
  equal(
    refused.stderr,
    `overlaybd config: cannot use ${path}: ` +
      "ioEngine: unknown io_engine: 3: it is not 0 to 2\n",
  );
  equal((await tool("overlaybd", ["config", "look"])).code, 105);
});

Deno.test("a check looks at the addresses and files that a start would use", async () => {
  using dir = tempDir();
  Deno.writeTextFileSync(dir.file("none.pem"), "x");
  const enable = true;
  const check = (value: unknown) => checkUse(parse(value));
  for (
    const [value, why] of [
      [{ exporterConfig: { enable, address: "no such" } }, /exporterConfig/],
      [{ serviceConfig: { enable, address: "127.0.0.1" } }, /http:\/\/HOST/],
      [{ apiConfig: { enable, address: "0.0.0.0:1" } }, /tokenFile/],
      [{ apiConfig: { enable, tokenFile: dir.file("none") } }, /no such file/],
      [{ apiConfig: { enable, keyFile: "/k" } }, /need each other/],
      [{ p2pConfig: { enable, address: "ftp://x" } }, /p2pConfig.address/],
      [{ certConfig: { caFile: dir.file("none.pem") } }, /is not PEM/],
    ] as const
  ) {
    await rejects(check(value), (error) => {
      ok(error instanceof ConfigError);
      match(error.message, /^cannot use o\.json: /);
      match(error.message, why);
      return true;
    });
    // What is not enabled is not looked at.
    const [[group, members] = ["", {}]] = Object.entries(value);
    if ("enable" in members) {
      await check({ [group]: { ...members, enable: false } });
    }
  }
  await check({
    exporterConfig: { enable, address: "::1" },
    serviceConfig: { enable },
    apiConfig: { enable },
    p2pConfig: { enable, address: "localhost:1/x" },
  });
});

Deno.test("the start's lines say what counts", () => {
  const loaded = parseServiceConfig({
    logLevel: 2,
    logPath: "",
    registryCacheDir: "/c",
    registryCacheSizeGB: 9,
    cacheConfig: { refillSize: 65536 },
  }, "/etc/overlaybd/overlaybd.json");
  equal(configLines(loaded), [
    "using config /etc/overlaybd/overlaybd.json",
    "set log_level: 2",
    "set log_path: ",
    "log config: [log_size_MB=10][log_rotate_num=3][format=text]",
    "cache config: [cache_type=file][cache_dir=/c][cache_size_GB=9]" +
    "[refill_size=65536]",
    "create registryfs with cafile:, version:v2",
  ]);
});

Deno.test("an image config without an end is refused, not read", async () => {
  await rejects(
    readImageConfig("/dev/zero"),
    /cannot read image config \/dev\/zero: expected a file of at most/,
  );
});
