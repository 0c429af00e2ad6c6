import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { build } from "esbuild";

const vectors = JSON.parse(readFileSync(new URL("../../vectors/sse.json", import.meta.url)));
const { outputFiles } = await build({
  entryPoints: [new URL("../src/sse.ts", import.meta.url).pathname],
  bundle: true,
  format: "esm",
  write: false,
});
const { parser } = await import(`data:text/javascript;base64,${Buffer.from(outputFiles[0].contents).toString("base64")}`);

test("a line of many pieces is looked at once, not again with each of them", () => {
  const line = `data: ${"x".repeat(2 ** 24)}`;
  const read = [];
  const parse = parser((data) => read.push(data.length));
  const began = performance.now();
  for (let at = 0; at < line.length; at += 2 ** 14) parse(line.slice(at, at + 2 ** 14));
  for (const piece of ["\r", "\n", "\r", "", "\ndata: y\r", "\r"]) parse(piece);
  assert.deepEqual(read, [2 ** 24]);
  for (const piece of ["", "z"]) parse(piece);
  assert.deepEqual(read, [2 ** 24, 1]);
  // Looked at again with each piece, it takes a quarter of a minute.
  assert.ok(performance.now() - began < 5_000, `took ${performance.now() - began} ms`);
});

for (const { name, chunks, base64, events } of vectors.cases) {
  test(`sse: ${name}`, () => {
    const pieces = chunks ? chunks.map((text) => Buffer.from(text)) : base64.map((text) => Buffer.from(text, "base64"));
    const read = [];
    const decoder = new TextDecoder();
    const parse = parser((data) => read.push(data));
    for (const piece of pieces) parse(decoder.decode(piece, { stream: true }));
    assert.deepEqual(
      read,
      events.map(({ data }) => data),
    );
  });
}
