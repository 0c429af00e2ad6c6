// Compiled, not run: the types as an application sees them.
import { type JobProgress, report, TidingsError, type Tiding, watch } from "tidings-client";
import { configure, type TidingsProgress, texts } from "tidings-client/elements";
import { useTidings } from "tidings-client/react";

export async function follow(): Promise<JobProgress | undefined> {
  const watching = watch(["jobs/1", "devices"], { token: async () => "t", query: { job_type: ["a"], tick_ms: 0 } });
  const end: () => void = watching.subscribe(() => {});
  for await (const tiding of watching) {
    if (tiding.type === "job_progress" && tiding.status === "failed") throw new TidingsError(tiding.error?.message ?? "");
    if (tiding.type === "device_status_update") tiding.last_seen satisfies string | null;
    if (tiding.type === "reset") tiding.reason satisfies string;
    // @ts-expect-error A status that does not exist.
    if (tiding.type === "job_progress" && tiding.status === "done") end();
  }
  const any: Tiding | undefined = watching.getSnapshot().subjects.get("jobs/1");
  return any?.type === "job_progress" ? any : undefined;
}

export async function work(rows: string[]) {
  const job = report("import", { server: new URL("https://x.example"), token: () => "t", title: "T" });
  for await (const row of job.track(rows)) row.toUpperCase();
  const sent: boolean = await job.complete({ rows: rows.length });
  return sent;
}

export function Job({ id }: { id: string }) {
  const { status, subjects } = useTidings(`jobs/${id}`, { token: () => null });
  return (
    <section title={status}>
      <tidings-progress job={id} token={() => "t"} label={String(subjects.size)} />
      <tidings-jobs job-type="import" limit={3} />
    </section>
  );
}

configure({ tickets: "/tickets" });
texts.more = (count) => `und ${count} weitere`;
export const element: TidingsProgress = document.createElement("tidings-progress");
