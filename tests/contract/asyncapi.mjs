// Validates an AsyncAPI document: asyncapi.mjs <folder of node_modules> <document>
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [folder, path] = process.argv.slice(2);
const { Parser } = createRequire(`${folder}/`)("@asyncapi/parser");
const { document, diagnostics } = await new Parser().parse(readFileSync(path, "utf8"));
// Severity 2 and 3 are hints.
const faults = diagnostics.filter(({ severity }) => severity <= 1);
for (const { code, message, path: place } of faults) {
  console.error(`${code} at ${place.join(".")}: ${message}`);
}
if (!document || faults.length > 0) process.exit(1);
