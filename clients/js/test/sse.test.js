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
