// Builds the elements as one file, `templates/elements.js`, which the server has in its binary for its embedded pages. It is checked in, so
// that the server needs no Node to be built; test/embedded.test.js holds that it is up to date.
import { writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const own = fileURLToPath(import.meta.url);
export const path = join(dirname(own), "../../templates/elements.js");

/** Returns the text of the file. */
export async function embedded() {
  const { outputFiles } = await build({
    absWorkingDir: dirname(own),
    entryPoints: ["src/elements.ts"],
    banner: { js: "// tidings-client (MIT OR Apache-2.0), built by `npm run embed` in clients/js. Do not edit." },
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    write: false,
  });
  return outputFiles[0].text;
}

if (process.argv[1] === own) writeFileSync(path, await embedded());
