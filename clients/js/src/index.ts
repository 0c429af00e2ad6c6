export { TidingsError } from "./error.js";
export type { LinkOptions, Secret, Transport } from "./link.js";
export type * from "./messages.js";
export { type Report, type ReportOptions, report } from "./report.js";
export { keyOf } from "./story.js";
export { type Snapshot, type Watch, type WatchOptions, watch } from "./watch.js";
