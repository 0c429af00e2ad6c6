// Each example of the README runs as printed, against a real server: in Node, or in a page in Chromium.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { after, before, describe, test } from "node:test";
import { build } from "esbuild";
import { examples } from "../examples/server.js";
import { chromium, tidings, token, until } from "./support.js";

const folder = new URL("..", import.meta.url).pathname;
const README = readFileSync(`${folder}README.md`, "utf8");
/** The server in the examples. */
const NAMED = "http://127.0.0.1:8000";
const BLOCKS = [...README.matchAll(/^```(\w+)\n(.*?)^```/gms)].map(([, language, code]) => ({ language, code }));

/** Returns the example in a language in which the text occurs. */
function example(language, text) {
  const found = BLOCKS.filter((block) => block.language === language && block.code.includes(text));
  assert.equal(found.length, 1, `one example in ${language} has ${text}`);
  return found[0].code;
}

describe("README", () => {
  let server;
  let site;
  let browser;
  const running = [];

  before(async () => {
    server = await tidings();
    site = examples({ tidings: () => server.url, token: () => token() });
    // A site in whose folder the package is installed.
    site.prependListener("request", (request) => {
      request.url = request.url.replace("/node_modules/tidings-client/dist/", "/client/");
    });
    site.listen(0, "127.0.0.1");
    await once(site, "listening");
    browser = await chromium();
  });
  after(async () => {
    for (const child of running) child.kill();
    await browser?.close();
    site?.closeAllConnections();
    site?.close();
    await server?.remove();
  });

  /** Runs an example in Node, where `prelude` has made the names that the README takes as given. The example's server is the test's. */
  const node = (code, prelude = "") => {
    const named = `const { fetch } = globalThis; globalThis.fetch = (url, init) => fetch(String(url).replace("${NAMED}", "${server.url}"), init);`;
    const child = spawn(process.execPath, ["--import", `data:text/javascript,${encodeURIComponent(named + prelude)}`, "--input-type=module"], {
      cwd: folder, // in which the package's own name is known
      env: { ...process.env, TIDINGS_TOKEN: token("worker") },
    });
    running.push(child);
    const own = { output: "", exited: once(child, "exit") };
    for (const stream of [child.stdout, child.stderr])
      stream.on("data", (piece) => {
        own.output += piece;
      });
    child.stdin.end(code);
    return own;
  };
  const page = async (html) => {
    const opened = await browser.newPage();
    opened.problems = [];
    opened.on("pageerror", (error) => opened.problems.push(error.message));
    await opened.goto(`http://127.0.0.1:${site.address().port}/blank.html`);
    await opened.setContent(html);
    return opened;
  };

  test("each example has a test", () => {
    const languages = BLOCKS.map(({ language }) => language).filter((language) => language !== "sh");
    assert.deepEqual(languages, ["js", "js", "html", "css", "jsx"]);
  });

  test("watch", async () => {
    await server.post("jobs", { job_id: "watched", job_type: "watched" });
    const own = node(example("js", "watch("));
    await until(() => own.output.includes("watched pending 0\n"), "the present state");
    await server.post("jobs/watched/progress", { progress: 40 });
    await until(() => own.output.includes("watched in_progress 40\n"), "an event");
  });

  test("report", async () => {
    const own = node(example("js", "report("), "Object.assign(globalThis, { rows: [1, 2, 3], store: async (row) => console.log(row) });");
    const [code] = await own.exited;
    assert.deepEqual([code, own.output], [0, "1\n2\n3\n"]);
    const { jobs } = await server.call("GET", "/api/jobs?job_type=import");
    assert.deepEqual(
      jobs.filter(({ job_id }) => job_id !== "of-type").map(({ status, progress, result, metadata }) => [status, progress, result, metadata.title]),
      [["completed", 100, { rows: 3 }, "Customers"]],
    );
  });

  test("elements, with their style", async () => {
    await server.post("jobs", { job_id: "42", job_type: "elements" });
    await server.post("jobs/42/progress", { progress: 40 });
    await server.post("jobs", { job_id: "of-type", job_type: "import" });
    const opened = await page(example("html", "<tidings-progress"));
    await opened.addStyleTag({ content: example("css", "tidings-progress::part(bar)") });
    const read = (selector, code) => opened.$eval(selector, (element, code) => new Function("element", `return ${code}`)(element), code).catch(() => undefined);
    const own = "element.shadowRoot.querySelector";
    await until(async () => (await read("tidings-progress", `${own}("[role=progressbar]").ariaValueNow`)) === "40", "the progress");
    await until(async () => (await read("tidings-jobs", `element.shadowRoot.querySelectorAll("li > tidings-progress").length`)) > 0, "the list");
    await server.post("jobs/42/fail", { error: "The disk is full" });
    await until(async () => (await read("tidings-progress", `element.getAttribute("status")`)) === "failed", "the failure");
    const size = await read("tidings-progress", `[getComputedStyle(element).fontSize, getComputedStyle(${own}("[part=bar]")).height]`);
    assert.equal(size[0], size[1], "the bar has the height of the text");
    assert.equal(await read("tidings-progress", `getComputedStyle(${own}("[part=message]")).color`), "rgb(220, 20, 60)");
    assert.deepEqual(opened.problems, []);
  });

  test("React", async () => {
    await server.post("jobs", { job_id: "reacted", job_type: "reacted" });
    const rendering = `import { createRoot } from "react-dom/client"; createRoot(document.body).render(<Jobs />);`;
    const { outputFiles } = await build({
      stdin: { contents: example("jsx", "useTidings(") + rendering, loader: "jsx", resolveDir: folder },
      bundle: true,
      format: "esm",
      jsx: "automatic",
      define: { "process.env.NODE_ENV": '"production"' },
      write: false,
    });
    const opened = await page("<!doctype html>");
    await opened.addScriptTag({ type: "module", content: outputFiles[0].text });
    const shown = () => opened.$$eval("p", (all) => all.map(({ textContent }) => textContent));
    await until(async () => (await shown()).includes("reacted: pending"), "the present state");
    await server.post("jobs/reacted/complete");
    await until(async () => (await shown()).includes("reacted: completed"), "an event");
    assert.deepEqual(opened.problems, []);
  });
});
