// Builds `dist`: one module for each entry point, with shared parts in modules of their own, and the types.
import { execFileSync } from "node:child_process";
import { copyFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { build } from "esbuild";

const here = import.meta.dirname ?? dirname(new URL(import.meta.url).pathname);
const folder = join(here, "dist");
rmSync(folder, { recursive: true, force: true });
await build({
  absWorkingDir: here,
  entryPoints: ["src/index.ts", "src/elements.ts", "src/react.ts"],
  outdir: "dist",
  bundle: true,
  splitting: true,
  format: "esm",
  target: "es2022",
  external: ["react"],
  chunkNames: "shared-[hash]",
});
const compiler = join(dirname(createRequire(import.meta.url).resolve("typescript/package.json")), "bin", "tsc");
execFileSync(process.execPath, [compiler, "-p", join(here, "tsconfig.json"), "--emitDeclarationOnly"], { stdio: "inherit" });
for (const license of ["LICENSE-MIT", "LICENSE-APACHE"]) copyFileSync(join(here, "../..", license), join(here, license));
