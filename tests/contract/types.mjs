// Shows that the types of the JavaScript client are those of the messages: types.mjs <folder of node_modules> <document>
//
// Each event that the document describes must be one that the client declares, and the client declares no field that the
// document does not have. The client never asks for statuses in upper case, nor for ids as numbers.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const [folder, path] = process.argv.slice(2);
const require = createRequire(`${folder}/`);
const { compile } = require("json-schema-to-typescript");
const typescript = require("typescript");

/** The messages, and the client's types of them. */
const PAIRS = {
  JobProgress: "JobProgress",
  EnrollmentProgress: 'Extract<Client.EnrollmentEvent, { type: "enrollment_progress" }>',
  EnrollmentComplete: 'Extract<Client.EnrollmentEvent, { type: "enrollment_complete" }>',
  EnrollmentError: 'Extract<Client.EnrollmentEvent, { type: "enrollment_error" }>',
  EnrollmentCancelled: 'Extract<Client.EnrollmentEvent, { type: "enrollment_cancelled" }>',
  DeviceStatusUpdate: "DeviceStatus",
  DeviceInfoUpdate: "DeviceInfo",
  Sample: "CharacteristicEvent",
  Violation: "CharacteristicEvent",
  AckUpdate: "CharacteristicEvent",
  ControlLimits: "CharacteristicEvent",
  ScheduleUpdate: "ScheduleUpdate",
  Ready: "Ready",
  Reset: "Reset",
};

/** Events in the shapes of other clients, which this one never asks for. */
const OTHER_SHAPES = ["FlatSample", "FlatViolation", "FlatAckUpdate", "FlatLimitsUpdate", "ProgressUpdate"];

/** The schema as the client sees it. */
function asked(schema) {
  if (Array.isArray(schema)) return schema.map(asked);
  if (schema === null || typeof schema !== "object") return schema;
  const own = Object.fromEntries(Object.entries(schema).map(([name, value]) => [name, asked(value)]));
  if (own.enum) own.enum = own.enum.filter((name) => typeof name !== "string" || name === name.toLowerCase());
  if (Array.isArray(own.type) && own.type.includes("string")) own.type = own.type.filter((type) => type !== "integer");
  if (own.properties && own.additionalProperties === undefined) own.additionalProperties = false;
  delete own.title;
  return own;
}

const { components } = JSON.parse(readFileSync(path, "utf8"));
const events = Object.entries(components.messages).filter(([, { payload }]) => payload.required?.includes("seq"));
const undeclared = events.map(([name]) => name).filter((name) => !(name in PAIRS) && !OTHER_SHAPES.includes(name));
if (undeclared.length > 0) {
  console.error(`the client declares no type for ${undeclared.join(", ")}`);
  process.exitCode = 1;
}
let source = `import type * as Client from ${JSON.stringify(resolve("clients/js/src/messages.ts"))};\n`;
for (const [name, client] of Object.entries(PAIRS)) {
  const payload = asked(components.messages[name].payload);
  source += await compile(payload, `Wire${name}`, { bannerComment: "", additionalProperties: true });
  const type = client.startsWith("Extract") ? client : `Client.${client}`;
  source += `export const of${name} = (own: Wire${name}): ${type} => own;\n`;
  source += `export const names${name} = (name: Exclude<keyof ${type}, symbol | number>): keyof Wire${name} => name;\n`;
}
const own = mkdtempSync(join(tmpdir(), "tidings-types-"));
try {
  const file = join(own, "check.ts");
  writeFileSync(file, source);
  const program = typescript.createProgram([file], {
    strict: true,
    noEmit: true,
    allowImportingTsExtensions: true,
    target: typescript.ScriptTarget.ES2022,
    moduleResolution: typescript.ModuleResolutionKind.Bundler,
    module: typescript.ModuleKind.ESNext,
    types: [],
  });
  const faults = typescript.getPreEmitDiagnostics(program);
  for (const { file, start, messageText } of faults) {
    const line = file ? file.text.slice(start).split("\n", 1)[0] : "";
    console.error(`${line}\n  ${typescript.flattenDiagnosticMessageText(messageText, "\n  ")}`);
  }
  if (faults.length > 0) process.exitCode = 1;
} finally {
  rmSync(own, { recursive: true });
}
