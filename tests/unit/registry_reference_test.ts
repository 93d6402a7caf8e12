// SPDX-License-Identifier: Apache-2.0
// Names of images, as Docker and containerd read them.
import assert from "node:assert/strict";
import { parseReference } from "../../src/source/registry/reference.ts";
import { SourceError } from "../../src/source/source.ts";

const HEX = "0123456789abcdef".repeat(4);

for (
  const [text, name, url, version] of [
    [
      "redis",
      "docker.io/library/redis:latest",
      "https://registry-1.docker.io/v2/library/redis",
      "latest",
    ],
    [
      "overlaybd/redis:6.2.1_obd",
      "docker.io/overlaybd/redis:6.2.1_obd",
      "https://registry-1.docker.io/v2/overlaybd/redis",
      "6.2.1_obd",
    ],
    [
      "docker.io/a/b",
      "docker.io/a/b:latest",
      "https://registry-1.docker.io/v2/a/b",
      "latest",
    ],
    ["reg.io/a:1", "reg.io/a:1", "https://reg.io/v2/a", "1"],
    ["localhost/a", "localhost/a:latest", "https://localhost/v2/a", "latest"],
    ["reg:5000/a/b/c:x", "reg:5000/a/b/c:x", "https://reg:5000/v2/a/b/c", "x"],
    [
      `reg.io/a@sha256:${HEX}`,
      `reg.io/a@sha256:${HEX}`,
      "https://reg.io/v2/a",
      `sha256:${HEX}`,
    ],
    [
      `reg.io/a:tag@sha256:${HEX}`,
      `reg.io/a@sha256:${HEX}`,
      "https://reg.io/v2/a",
      `sha256:${HEX}`,
    ],
    [
      "http://reg.io/a_b-c.d__e",
      "reg.io/a_b-c.d__e:latest",
      "http://reg.io/v2/a_b-c.d__e",
      "latest",
    ],
    ["HTTPS://Reg.IO/a", "Reg.IO/a:latest", "https://reg.io/v2/a", "latest"],
    [
      "[::1]:5000/a",
      "[::1]:5000/a:latest",
      "https://[::1]:5000/v2/a",
      "latest",
    ],
    [
      "a/b",
      "docker.io/a/b:latest",
      "https://registry-1.docker.io/v2/a/b",
      "latest",
    ],
  ] as const
) {
  Deno.test(`reference: ${text}`, () => {
    const reference = parseReference(text);
    assert.equal(reference.name, name);
    assert.equal(reference.repositoryUrl, url);
    assert.equal(reference.version, version);
  });
}

for (
  const host of ["localhost", "localhost:5000", "127.0.0.1:5000", "[::1]:1"]
) {
  Deno.test(`reference: ${host} may speak plain http, unless the scheme says`, () => {
    assert.equal(parseReference(`${host}/a`).maybePlain, true);
    assert.equal(parseReference(`https://${host}/a`).maybePlain, false);
    assert.equal(parseReference(`reg.io/a`).maybePlain, false);
  });
}

for (
  const text of [
    "",
    "Redis",
    "a:",
    "a@sha256:12",
    "a@md5:00",
    "a b",
    "a/../b",
    "reg.io/",
    "reg.io/a//b",
    "-reg.io/a",
    "a:tag:tag",
    `a:${"x".repeat(129)}`,
    "user:pw@reg.io/a",
    "a?x",
    "a#x",
    "ftp://reg.io/a",
  ]
) {
  Deno.test(`reference: "${text.slice(0, 30)}" is none`, () => {
    assert.throws(
      () => parseReference(text),
      (error) => error instanceof SourceError && error.code === "EINVAL",
    );
  });
}
