// The scripts that the server has in its binary.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { embedded, scripts } from "../embedded.js";

const MONITOR_MAX_BYTES = 9_000;

test("the server embeds its scripts as they are built now; `npm run embed` renews them", async () => {
  for (const script of scripts) assert.equal(readFileSync(script.path, "utf8"), await embedded(script), script.path);
});

test("a page of the monitor downloads at most 9 kB of script", async (context) => {
  const size = gzipSync(await embedded(scripts[1]), { level: 9 }).length;
  context.diagnostic(`monitor: ${size} bytes`);
  assert.ok(size > 1_000 && size <= MONITOR_MAX_BYTES, `${size} bytes`);
});
