// SPDX-License-Identifier: Apache-2.0
// Metrics: spec/api.md, section 2.
import {
  deepStrictEqual as equal,
  match,
  ok,
  throws,
} from "node:assert/strict";
import { readDeviceSync } from "../../ffi/device.ts";
import { parseImageConfig } from "../../src/image/config.ts";
import { openImage } from "../../src/image/image.ts";
import { parseServiceConfig } from "../../src/service/config.ts";
import { createCounters, createHistogram } from "../../src/service/counters.ts";
import { startExporter } from "../../src/service/exporter.ts";
import {
  createMeter,
  metricsText,
  originalText,
} from "../../src/service/metrics.ts";
import { ownMetrics } from "../../src/service/own_metrics.ts";
import { meterReads } from "../../src/service/read_meter.ts";
import { have, mustRun, mustTool, ROOT, run, tempDir } from "../lib/env.ts";
import { newUpper } from "../lib/product.ts";
import { startServer } from "../lib/server.ts";

const METERS = { pread: createMeter(), download: createMeter() };

function exporterConfig(value: unknown) {
  return parseServiceConfig({ exporterConfig: value }, "o").config
    .exporterConfig;
}

Deno.test("the original's metrics, byte for byte", () => {
  const now = 1000;
  const pread = createMeter(() => now);
  pread.record(4096, 120);
  pread.record(512, 80);
  const group = (
    name: string,
    help: string,
    rest: string,
    [a, b]: [string, string],
  ) =>
    `# HELP ${name} ${help}\n# TYPE ${name} gauge\n` +
    `${name}{node="pread",type=""${rest}}  ${a} 1700000000000\n` +
    `${name}{node="download",type=""${rest}}  ${b} 1700000000000\n\n`;
  equal(
    originalText("node-1", { ...METERS, pread }, 1700000000000.7),
    "# HELP OverlayBD_Alive \n# TYPE OverlayBD_Alive gauge\n" +
      'OverlayBD_Alive{node="node-1"}  1.000000 1700000000000\n\n' +
      group("OverlayBD_Read_Throughtput", "Bytes / sec", ',mode=""', [
        "4608.000000",
        "0.000000",
      ]) +
      group("OverlayBD_QPS", "", ',mode=""', ["2.000000", "0.000000"]) +
      group("OverlayBD_MaxLatency", "us", ',mode=""', [
        "120.000000",
        "0.000000",
      ]) +
      group("OverlayBD_Count", "Bytes", "", ["4608.000000", "0.000000"]),
  );
});

Deno.test("a meter forgets: rates after a second, latency after five", () => {
  let now = 10_000;
  const meter = createMeter(() => now);
  meter.record(100, 7);
  now += 700;
  equal(meter.read().bytesPerSecond, 100);
  now += 800;
  equal(meter.read(), {
    bytesPerSecond: 0,
    readsPerSecond: 0,
    maxLatencyUs: 7,
    totalBytes: 100,
  });
  now += 4000;
  equal(meter.read().maxLatencyUs, 0);
});

Deno.test("labels are escaped, metrics without samples left out", () => {
  const metric = { name: "m", type: "gauge", help: "h." } as const;
  equal(
    metricsText([
      { ...metric, samples: [] },
      { ...metric, samples: [{ labels: { a: 'x"\\\n' }, value: 1.5 }] },
    ]),
    '# HELP m h.\n# TYPE m gauge\nm{a="x\\"\\\\\\n"} 1.5\n',
  );
});

Deno.test("a taken port is refused, not shared", async () => {
  const options = {
    meters: METERS,
    counters: createCounters(),
    devices: () => [],
  };
  const first = startExporter(exporterConfig({ port: 0 }), options);
  const port = Number(new URL(first.url).port);
  throws(
    () => startExporter(exporterConfig({ port }), options),
    /^ExporterError: Failed to start http server for metrics exporter: /,
  );
  await first.close();
});

Deno.test("a histogram's buckets add up, and end with everything", () => {
  const value = createHistogram([0.1, 1]);
  for (const seconds of [0.05, 0.1, 0.5, 7]) value.record(seconds);
  const metric = { name: "h", type: "histogram", help: "h." } as const;
  equal(
    metricsText([{ ...metric, samples: [{ labels: { a: "b" }, value }] }]),
    "# HELP h h.\n# TYPE h histogram\n" +
      'h_bucket{a="b",le="0.1"} 2\n' +
      'h_bucket{a="b",le="1"} 3\n' +
      'h_bucket{a="b",le="+Inf"} 4\n' +
      `h_sum{a="b"} ${0.05 + 0.1 + 0.5 + 7}\n` +
      'h_count{a="b"} 4\n',
  );
});

Deno.test("statuses of registries are few, whatever they answer", () => {
  const counters = createCounters();
  for (let status = 100; status < 600; status++) counters.answered(status);
  counters.answered(undefined);
  ok(counters.fetches.size < 30, [...counters.fetches.keys()].join());
  equal(counters.fetches.get("failed"), 1);
  equal(counters.fetches.get("404"), 1);
  equal(counters.fetches.get("5xx"), 96);
});

/** Names of metrics in a text, those of Prometheus' functions apart. */
function metricNames(text: string): string[] {
  return text.match(/\b(?:overlaybd|OverlayBD|process)_\w+/g) ?? [];
}

Deno.test("serve shows its devices' figures", async () => {
  using dir = tempDir();
  const [data, index, config, service] = ["d", "i", "c.json", "s.json"]
    .map(dir.file);
  ok(data && index && config && service);
  await mustTool("overlaybd", ["create", data, index, "1"]);
  Deno.writeTextFileSync(config, JSON.stringify({ upper: { data, index } }));
  Deno.writeTextFileSync(
    service,
    JSON.stringify({ exporterConfig: { enable: true, port: 0 } }),
  );
  await using server = await startServer(dir.file("sock"), [`${config};d1`], {
    args: ["--service_config_path", service],
  });
  // The address is in what the server says while it starts.
  const sockets = await mustRun("ss", ["-Hltnp"]);
  const port = new RegExp(`127\\.0\\.0\\.1:(\\d+) .*pid=${server.pid},`)
    .exec(sockets)?.[1];
  const get = (path: string, init?: RequestInit) =>
    fetch(`http://127.0.0.1:${port}${path}`, init);
  const answer = await get("/metrics");
  equal(answer.status, 200);
  equal(answer.headers.get("content-type"), "text/plain; version=0.0.4");
  const text = await answer.text();
  match(text, /^# HELP OverlayBD_Alive \n/);
  match(text, /^overlaybd_devices 1$/m);
  match(text, /^overlaybd_device_reads_total\{device="d1"\} \d+$/m);
  const longer = await get("/metricsfoo", { method: "POST", body: "x" });
  equal(longer.status, 200);
  await longer.body?.cancel();
  const other = await get("/other");
  equal([other.status, await other.text()], [404, ""]);

  match(
    text,
    /^overlaybd_read_seconds_bucket\{device="d1",source="local",le="\+Inf"\} \d+$/m,
  );
  // Some need a remote layer, a ring, a fetch: their names are there.
  const none = ownMetrics({
    meters: METERS,
    counters: createCounters(),
    devices: () => [],
  });
  const emitted = new Set([
    ...metricNames(text),
    ...none.map(({ name }) => name),
  ]);
  const dashboard = Deno.readTextFileSync(`${ROOT}/etc/grafana-dashboard.json`);
  const queries = [...dashboard.matchAll(/"expr": "((?:[^"\\]|\\.)*)"/g)];
  ok(queries.length > 5);
  for (const [, query = ""] of queries) {
    const names = metricNames(query);
    ok(names.length > 0, query);
    for (const name of names) ok(emitted.has(name), `${query}: ${name}`);
  }
  equal(JSON.parse(dashboard).title, "overlaybd");

  if (!have("promtool")) {
    console.log("skipping promtool: not installed");
    return;
  }
  const ours = text.slice(text.indexOf("# HELP overlaybd_"));
  const checked = await run("promtool", ["check", "metrics"], {
    stdin: new TextEncoder().encode(ours),
  });
  equal([checked.code, checked.stdout, checked.stderr], [0, "", ""]);
});

Deno.test("what devices read is what the pread meter shows", async () => {
  using dir = tempDir();
  const upper = await newUpper(dir.file("up"), { size: 1 << 20 });
  const config = parseImageConfig({ lowers: [], upper }, "test");
  await using image = await openImage(config);
  const meter = createMeter();
  const read = (n: number) =>
    readDeviceSync(image.device, new Uint8Array(n), 0);
  read(4096);
  using _reads = meterReads(meter, () => [image.device], 5);
  const shown = async (bytes: number) => {
    for (let i = 0; i < 400 && meter.read().totalBytes < bytes; i++) {
      await new Promise((done) => setTimeout(done, 5));
    }
    return meter.read();
  };
  equal((await shown(4096)).totalBytes, 4096);
  for (let i = 0; i < 32; i++) read(512);
  const figures = await shown(4096 + 32 * 512);
  equal(figures.totalBytes, 4096 + 32 * 512);
  ok(figures.maxLatencyUs > 0);
});
