/**
 * `<tidings-progress job="…">` shows one job, `<tidings-jobs>` a list of jobs. Both work in any page: server-rendered, htmx, React, …
 *
 * They are styled through their parts (docs/clients.md). To assistive technology a job is a `progressbar`, whose value changes silently.
 * Only that a job stalls or ends is announced, once for each attempt.
 */
import { rejection } from "./error.js";
import { Hub } from "./hub.js";
import type { Secret } from "./link.js";
import type { JobProgress, TidingsEvent } from "./messages.js";
import { type Snapshot, type Watch, type WatchOptions, watch } from "./watch.js";

/** Applies to all elements that do not say otherwise. */
export interface Defaults {
  server?: string;
  token?: Secret;
  /** URL on the page's own server that answers `POST {"channels": […]}` with `{"ticket": "…"}`. */
  tickets?: string;
  identity?: string;
}

const defaults: Defaults = {};
const hubs = new Map<string, Hub>();

/** Sets the defaults of all elements. Call it before the elements are connected. */
export function configure(options: Defaults): void {
  Object.assign(defaults, options);
}

/** The texts that elements show and announce. Replace them for other languages. */
export const texts = {
  pending: "pending",
  queued: "queued",
  in_progress: "",
  completed: "completed",
  failed: "failed",
  cancelled: "cancelled",
  stalled: "stalled",
  offline: "not connected",
  missing: "not found",
  refused: "no access",
  none: "No jobs",
  more: (count: number) => `and ${count} more`,
  percent: (value: number) => `${value} %`,
  announce: (label: string, what: string) => `${label}: ${what}`,
};

const STYLE = `
:host { display: block; }
:host([hidden]) { display: none; }
[part=head], [part=detail] { display: flex; justify-content: space-between; gap: 1em; }
[part=label], [part=message] { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
[part=percent], [part=eta] { white-space: nowrap; font-variant-numeric: tabular-nums; }
[part=detail] { font-size: smaller; }
[part=bar] { height: .5em; border-radius: .25em; overflow: hidden; background: color-mix(in srgb, currentColor 18%, transparent); }
[part=fill] { height: 100%; width: 0; background: var(--tidings-color, #1668b8); transition: width .2s; }
:host([status=completed]) [part=fill] { background: var(--tidings-completed-color, #1a7f37); }
:host([status=failed]) [part=fill] { background: var(--tidings-failed-color, #b3261e); }
:host([status=cancelled]) [part=fill], :host([stalled]) [part=fill] { background: var(--tidings-idle-color, #767676); }
:host([indeterminate]) [part=fill] { width: 30%; animation: t 1.6s ease-in-out infinite alternate; }
@keyframes t { to { transform: translateX(233%); } }
@media (prefers-reduced-motion: reduce) { [part=fill] { transition: none; animation: none !important; } }
@media (forced-colors: active) { [part=bar] { border: 1px solid; } [part=fill] { background: Highlight !important; forced-color-adjust: none; } }
[part=list] { list-style: none; margin: 0; padding: 0; display: grid; gap: .75em; }
[part=announcement] { position: absolute; width: 1px; height: 1px; margin: -1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
`;
const ENDED = ["completed", "failed", "cancelled"];
const JOBS_MAX = 50;
const BAR_PARTS = "head, label, percent, bar, fill, detail, message, eta";

// So that the module can be imported where there is no document, for rendering on a server.
const Base = globalThis.HTMLElement ?? (class {} as typeof HTMLElement);

/** What both elements have in common: where they connect, and a place for announcements. */
abstract class TidingsElement extends Base {
  #token: Secret | undefined;
  #sheet: CSSStyleSheet | undefined;
  #renewal = false;
  protected stop: (() => void) | undefined;

  protected abstract open(): void;
  /** Forgets what is shown. */
  protected abstract reset(): void;

  constructor() {
    super();
    // A framework may have set a property before the element was defined.
    for (const name of ["token", "job"] as const)
      if (Object.hasOwn(this, name)) {
        const early = (this as Record<string, unknown>)[name];
        delete (this as Record<string, unknown>)[name];
        queueMicrotask(() => Object.assign(this, { [name]: early }));
      }
  }

  /** Returns a token; the one of `configure` if absent. */
  get token(): Secret | undefined {
    return this.#token;
  }
  set token(token: Secret | undefined) {
    if (token === this.#token) return;
    this.#token = token;
    this.#restart();
  }

  connectedCallback(): void {
    this.#renew();
  }

  disconnectedCallback(): void {
    this.#renew();
  }

  attributeChangedCallback(_name: string, before: string | null, now: string | null): void {
    if (before !== now) this.#restart();
  }

  #restart() {
    this.reset();
    this.stop?.();
    this.stop = undefined;
    this.#renew();
  }

  /** Connects or disconnects, once for all changes of the moment: a page that moves an element takes it out and puts it in again. */
  #renew() {
    if (this.#renewal) return;
    this.#renewal = true;
    queueMicrotask(() => {
      this.#renewal = false;
      if (this.isConnected) {
        if (!this.stop) this.open();
      } else {
        this.stop?.();
        this.stop = undefined;
      }
    });
  }

  /** Returns how to watch these channels. */
  protected options(channels: string[], query?: WatchOptions["query"]): WatchOptions {
    const server = this.getAttribute("server") ?? defaults.server;
    const token = this.token ?? defaults.token;
    const tickets = this.getAttribute("tickets") ?? defaults.tickets;
    const fixed = this.getAttribute("ticket");
    const ticket = tickets
      ? async () => {
          const body = JSON.stringify({ channels });
          const answer = await fetch(tickets, { method: "POST", body, headers: { "Content-Type": "application/json" } });
          if (!answer.ok) throw await rejection(answer);
          return (await answer.json()).ticket as string;
        }
      : fixed && (() => fixed);
    return { server, query, identity: defaults.identity, ...(ticket ? { ticket } : { token: token && (() => token()) }) };
  }

  /** Returns the hub of the elements that connect in the same way; a new one for an element with a token of its own. */
  protected hub(): Hub {
    const place = ["server", "tickets", "ticket"].map((name) => this.getAttribute(name)).join("\n");
    const found = this.token ? undefined : hubs.get(place);
    const hub = found ?? new Hub((channels) => this.options(channels));
    if (!this.token) hubs.set(place, hub);
    return hub;
  }

  protected root(html: string): ShadowRoot {
    const root = this.shadowRoot ?? this.attachShadow({ mode: "open" });
    this.#sheet ??= new CSSStyleSheet();
    // Not a style element, which a content security policy may forbid.
    this.#sheet.replaceSync(STYLE);
    root.adoptedStyleSheets = [this.#sheet];
    root.innerHTML = html;
    return root;
  }

  protected announce(text: string): void {
    set(this.shadowRoot as ShadowRoot, "announcement", text);
  }
}

/** One job. */
export class TidingsProgress extends TidingsElement {
  static readonly observedAttributes = ["job", "server", "ticket", "tickets"];
  #shown: JobProgress | undefined;
  #told = new Set<string>();

  get job(): string | null {
    return this.getAttribute("job");
  }
  set job(id: string | null) {
    if (id == null) this.removeAttribute("job");
    else this.setAttribute("job", id);
  }

  /** The latest event of the job. */
  get event(): JobProgress | undefined {
    return this.#shown;
  }

  protected open(): void {
    this.#draw();
    if (this.job) this.stop = this.hub().add(`jobs/${encodeURIComponent(this.job)}`, (event, status) => this.show(event, status));
  }

  protected reset(): void {
    this.#shown = undefined;
    this.#told.clear();
    if (this.shadowRoot) this.root("<slot></slot>");
    for (const name of ["status", "stalled", "indeterminate", "connection"]) this.removeAttribute(name);
  }

  #draw() {
    // Until something is known, the page's own content is shown: a progress element, for example.
    if (!this.shadowRoot) this.root("<slot></slot>");
  }

  /** Shows this state. `<tidings-jobs>` calls it for its own; pages need not. */
  show(event: TidingsEvent | undefined, status: Snapshot["status"] | "missing" = "live"): void {
    this.#draw();
    let root = this.shadowRoot as ShadowRoot;
    const trouble = { offline: "offline", missing: "missing", failed: "refused" }[status as string] as "offline" | undefined;
    attribute(this, "connection", status);
    if (!event && !trouble) return;
    if (!root.querySelector("[part=bar]"))
      root = this.root(`<div part="head"><span part="label" id="label"></span><span part="percent"></span></div>
<div part="bar" role="progressbar" aria-labelledby="label" aria-valuemin="0" aria-valuemax="100"><div part="fill"></div></div>
<div part="detail"><span part="message"></span><time part="eta"></time></div><div part="announcement" role="status"></div>`);
    const before = this.#shown;
    if (event) this.#shown = event as JobProgress;
    const job = this.#shown;
    const label = this.getAttribute("label") || labelOf(job) || this.job || "";
    const state = job ? (job.stalled ? "stalled" : job.status) : undefined;
    const said = texts[trouble ?? state ?? "missing"];
    const percent = job?.progress == null ? undefined : Math.floor(job.progress);
    set(root, "label", label);
    set(root, "percent", percent === undefined || job?.status === "pending" || job?.status === "queued" ? "" : texts.percent(percent));
    set(root, "message", [said, job?.error?.message ?? job?.message].filter((text) => text && text.toLowerCase() !== said).join(" · ") || said);
    const eta = root.querySelector("time") as HTMLTimeElement;
    const at = job?.status === "in_progress" ? job.eta_at : null;
    if (eta.dateTime !== (at ?? "")) {
      eta.dateTime = at ?? "";
      eta.textContent = at ? new Date(at).toLocaleTimeString(undefined, { timeStyle: "short" }) : "";
    }
    const bar = root.querySelector("[part=bar]") as HTMLElement;
    const unknown = job?.status === "in_progress" && percent === undefined;
    attribute(bar, "aria-valuenow", unknown || percent === undefined ? null : String(percent));
    attribute(bar, "aria-valuetext", said && percent !== undefined ? `${texts.percent(percent)}, ${said}` : said || null);
    (bar.firstChild as HTMLElement).style.width = unknown ? "" : `${job?.progress ?? 0}%`;
    attribute(this, "status", job?.status ?? null);
    attribute(this, "stalled", job?.stalled ? "" : null);
    attribute(this, "indeterminate", unknown ? "" : null);
    if (!event || event === before || !job) return;
    // Only what changes before the reader's eyes is news.
    const news = `${job.attempt} ${state}`;
    const isNews = (state === "stalled" || ENDED.includes(job.status)) && !this.#told.has(news);
    this.#told.add(news);
    if (isNews && before) {
      const text = texts.announce(label, [said, job.error?.message].filter(Boolean).join(", "));
      if (this.dispatchEvent(new CustomEvent("tidings-announce", { detail: text, bubbles: true, cancelable: true }))) this.announce(text);
    }
    this.dispatchEvent(new CustomEvent("tidings-change", { detail: job, bubbles: true, composed: true }));
    if (ENDED.includes(job.status) && !(before && before.attempt === job.attempt && ENDED.includes(before.status)))
      this.dispatchEvent(new CustomEvent("tidings-end", { detail: job, bubbles: true, composed: true }));
  }
}

/** The jobs of a school, or those of some types or statuses: active ones first. */
export class TidingsJobs extends TidingsElement {
  static readonly observedAttributes = ["job-type", "status", "limit", "server", "ticket", "tickets"];
  #rows = new Map<string, TidingsProgress>();
  #watch: Watch | undefined;

  protected open(): void {
    const root = this.root(`<ul part="list"></ul><p part="more" hidden></p><p part="none" hidden></p><div part="announcement" role="status"></div>`);
    this.#rows.clear();
    root.addEventListener("tidings-announce", (event) => {
      event.preventDefault();
      event.stopPropagation();
      this.announce((event as CustomEvent<string>).detail);
    });
    // The status is not the stream's filter: a job that leaves it would stay in the list.
    const opened = watch("jobs", this.options(["jobs"], { job_type: words(this.getAttribute("job-type")) }));
    this.#watch = opened;
    let due = false;
    const draw = () => {
      if (due) return;
      due = true;
      requestAnimationFrame(() => {
        due = false;
        if (this.#watch === opened) this.#draw(opened.getSnapshot());
      });
    };
    const end = opened.subscribe(draw);
    this.stop = () => {
      end();
      opened.close();
      this.#watch = undefined;
    };
  }

  protected reset(): void {
    this.#rows.clear();
    if (this.shadowRoot) this.root("");
  }

  #draw({ subjects, ready, status }: Snapshot) {
    const root = this.shadowRoot as ShadowRoot;
    const list = root.querySelector("ul") as HTMLUListElement;
    const statuses = words(this.getAttribute("status"));
    const jobs = ([...subjects.values()] as JobProgress[]).filter((job) => job.job_id != null && (!statuses.length || statuses.includes(job.status)));
    const active = jobs.filter((job) => !ENDED.includes(job.status));
    // Active jobs keep their places; what ended last is the first of the rest.
    const order = [...this.#rows.keys()];
    const place = (job: JobProgress) => (order.includes(job.job_id) ? order.indexOf(job.job_id) : order.length);
    active.sort((one, other) => place(one) - place(other));
    const ended = jobs.filter((job) => ENDED.includes(job.status)).reverse();
    const limit = Number(this.getAttribute("limit")) || JOBS_MAX;
    const shown = [...active, ...ended].slice(0, limit);
    const rows = new Map<string, TidingsProgress>();
    for (const [index, job] of shown.entries()) {
      let row = this.#rows.get(job.job_id);
      if (!row) {
        row = document.createElement("tidings-progress") as TidingsProgress;
        row.setAttribute("exportparts", BAR_PARTS);
        const item = document.createElement("li");
        item.setAttribute("part", "job");
        item.append(row);
      }
      const item = row.parentElement as HTMLElement;
      if (list.children[index] !== item) list.insertBefore(item, list.children[index] ?? null);
      if (row.event !== job || row.getAttribute("connection") !== status) row.show(job, status);
      rows.set(job.job_id, row);
    }
    for (const [id, row] of this.#rows) if (rows.get(id) !== row) row.parentElement?.remove();
    this.#rows = rows;
    const more = jobs.length - shown.length;
    set(root, "more", more ? texts.more(more) : "");
    set(root, "none", status === "failed" ? texts.refused : ready && !jobs.length ? texts.none : "");
    attribute(this, "connection", status);
  }
}

/** Returns the name of a job for people. */
function labelOf(job: JobProgress | undefined): string | undefined {
  const own = [job?.metadata?.title, job?.metadata?.path, job?.job_id];
  return own.find((text): text is string => typeof text === "string" && text.trim() !== "");
}

const words = (text: string | null) => text?.split(/[\s,]+/).filter(Boolean) ?? [];

/** Sets the text of a part, if it differs: assistive technology reads what is set again. */
function set(root: ShadowRoot, part: string, text: string) {
  const own = root.querySelector(`[part=${part}]`) as HTMLElement;
  if (own.textContent !== text) own.textContent = text;
  if (part === "more" || part === "none") own.hidden = !text;
}

function attribute(own: Element, name: string, value: string | null) {
  if (value === null) own.removeAttribute(name);
  else if (own.getAttribute(name) !== value) own.setAttribute(name, value);
}

if (globalThis.customElements && !customElements.get("tidings-progress")) {
  customElements.define("tidings-progress", TidingsProgress);
  customElements.define("tidings-jobs", TidingsJobs);
}

declare global {
  interface HTMLElementTagNameMap {
    "tidings-progress": TidingsProgress;
    "tidings-jobs": TidingsJobs;
  }
}
