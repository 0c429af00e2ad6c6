// What a page downloads to watch, and what is published.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const folder = new URL("..", import.meta.url).pathname;
const WATCH_MAX_BYTES = 5_000;
const ELEMENTS_MAX_BYTES = 10_000;

async function bundled(contents) {
  const { outputFiles } = await build({
    stdin: { contents, resolveDir: folder },
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    write: false,
  });
  return gzipSync(outputFiles[0].contents, { level: 9 }).length;
}

test("a page that only watches downloads at most 5 kB", async (context) => {
  const size = await bundled('export { watch } from "tidings-client";');
  context.diagnostic(`watch: ${size} bytes`);
  assert.ok(size > 1_000 && size <= WATCH_MAX_BYTES, `${size} bytes`);
});

test("the elements download at most 10 kB, with everything", async (context) => {
  const size = await bundled('import "tidings-client/elements";');
  context.diagnostic(`elements: ${size} bytes`);
  assert.ok(size > 1_000 && size <= ELEMENTS_MAX_BYTES, `${size} bytes`);
});

test("the package has no runtime dependencies, and what it exports is packed with types", () => {
  const description = JSON.parse(readFileSync(`${folder}package.json`));
  assert.equal(description.dependencies, undefined);
  const [{ files }] = JSON.parse(execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], { cwd: folder, encoding: "utf8" }));
  const packed = files.map(({ path }) => path);
  for (const entry of Object.values(description.exports))
    for (const path of typeof entry === "string" ? [entry] : Object.values(entry)) assert.ok(packed.includes(path.slice(2)), path);
  for (const path of ["README.md", "LICENSE-MIT", "LICENSE-APACHE"]) assert.ok(packed.includes(path), path);
  assert.deepEqual(
    packed.filter((path) => !/^(dist\/|package.json|README.md|LICENSE-)/.test(path)),
    [],
  );
});

test("no module of the client imports another package, except React in its own entry point", () => {
  const imported = new Set();
  for (const name of ["index", "elements", "react"]) {
    const text = readFileSync(`${folder}dist/${name}.js`, "utf8");
    for (const [, from] of text.matchAll(/^(?:import|export|}).* from "([^".][^"]*)"/gm)) imported.add(`${name}: ${from}`);
  }
  assert.deepEqual([...imported], ["react: react"]);
});

test("the lock file names no registry", () => {
  const lock = readFileSync(`${folder}package-lock.json`, "utf8");
  const resolved = [...lock.matchAll(/"resolved": "([^"]*)"/g)].map(([, url]) => url);
  assert.deepEqual(
    resolved.filter((url) => !url.startsWith("https://registry.npmjs.org/")),
    [],
  );
});
