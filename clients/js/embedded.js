// Builds the scripts that the server has in its binary, each as one file in `templates`: the elements for its embedded pages, and the script of the
// monitor with the client. They are checked in, so that the server needs no Node to be built; test/embedded.test.js holds that they are up to date.
import { writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const own = fileURLToPath(import.meta.url);
const templates = join(dirname(own), "../../templates");
export const scripts = [
  { path: join(templates, "elements.js"), from: "src/elements.ts", format: "esm" },
  // Not a module, as everything that it declares is its own in this form, too.
  { path: join(templates, "monitor.bundle.js"), from: join(templates, "monitor.js"), format: "iife" },
];

/** Returns the text of a script. */
export async function embedded({ from, format }) {
  const { outputFiles } = await build({
    absWorkingDir: dirname(own),
    entryPoints: [from],
    banner: { js: "// tidings-client (MIT OR Apache-2.0), built by `npm run embed` in clients/js. Do not edit." },
    bundle: true,
    minify: true,
    format,
    target: "es2022",
    write: false,
  });
  return outputFiles[0].text;
}

if (process.argv[1] === own) for (const script of scripts) writeFileSync(script.path, await embedded(script));
