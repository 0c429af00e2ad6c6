// Serves the example pages, and passes `/events` and `/api` on to Tidings, as a proxy in front of both would:
//
//     TIDINGS_URL=http://127.0.0.1:8000 TIDINGS_TOKEN=… node examples/server.js
import { readFile } from "node:fs/promises";
import { createServer, request as forward } from "node:http";
import { createRequire } from "node:module";
import { extname, join } from "node:path";
import { build } from "esbuild";

const folder = new URL(".", import.meta.url).pathname;
const { resolve } = createRequire(import.meta.url);
const TYPES = { ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css" };
const VENDOR = {
  "htmx.js": () => join(resolve("htmx.org/package.json"), "../dist/htmx.js"),
  "hx-sse.js": () => join(resolve("htmx.org/package.json"), "../dist/ext/hx-sse.js"),
  "datastar.js": () => join(folder, "../node_modules/@starfederation/datastar/dist/datastar.js"),
};

/** `tidings` returns the server's URL, `token` a token for the pages. Returns the HTTP server. */
export function examples({ tidings, token }) {
  const pages = {
    "/token": async (response) => response.end(await token()),
    "/react.js": async (response) => {
      const { outputFiles } = await build({
        entryPoints: [join(folder, "react.jsx")],
        bundle: true,
        format: "esm",
        jsx: "automatic",
        define: { "process.env.NODE_ENV": '"production"' },
        write: false,
      });
      response.setHeader("Content-Type", TYPES[".js"]);
      response.end(outputFiles[0].text);
    },
  };
  return createServer(async (request, response) => {
    const { pathname, searchParams } = new URL(request.url, "http://x");
    try {
      if (pathname.startsWith("/events") || pathname.startsWith("/api/")) return pass(request, response, tidings());
      if (pathname === "/tickets") {
        // A server that knows its user asks for a ticket in the user's name.
        const headers = { ...request.headers, authorization: `Bearer ${await token()}` };
        return pass({ method: "POST", url: "/api/tickets", headers, pipe: (to) => request.pipe(to) }, response, tidings());
      }
      if (pages[pathname]) return await pages[pathname](response);
      if (pathname === "/row") {
        const id = searchParams.get("job");
        const answer = await fetch(`${tidings()}/api/jobs/${encodeURIComponent(id)}`, { headers: { Authorization: `Bearer ${await token()}` } });
        const { status, progress } = await answer.json();
        response.setHeader("Content-Type", TYPES[".html"]);
        return response.end(`<tidings-progress job="${id}"><progress value="${progress}" max="100"></progress></tidings-progress><p class="rendered">${status}</p>`);
      }
      const [, first, name] = pathname.split("/");
      const file =
        first === "client" ? join(folder, "../dist", name) : first === "vendor" ? VENDOR[name]() : join(folder, first || "plain.html");
      const content = await readFile(file);
      response.setHeader("Content-Type", TYPES[extname(file)] ?? "application/octet-stream");
      // Pages that cannot send a header, such as those of htmx, use the cookie.
      if (extname(file) === ".html") response.setHeader("Set-Cookie", `tidings_token=${await token()}; HttpOnly; SameSite=Strict; Path=/`);
      response.end(content);
    } catch (error) {
      response.statusCode = error.code === "ENOENT" ? 404 : 500;
      response.setHeader("Content-Type", TYPES[".html"]);
      response.end(error.code === "ENOENT" ? "<!doctype html><title>Not found</title>" : "<!doctype html><title>Error</title>");
    }
  });
}

/** Passes a request on, and its response as it comes. */
function pass(request, response, to) {
  const { method, headers, url } = request;
  const onward = forward(new URL(url, to), { method, headers }, (answer) => {
    response.writeHead(answer.statusCode, answer.headers);
    answer.pipe(response);
    answer.on("error", () => response.destroy());
  });
  onward.on("error", () => response.destroy());
  response.on("close", () => onward.destroy());
  request.pipe(onward);
}

if (process.argv[1] === import.meta.filename) {
  const { TIDINGS_URL = "http://127.0.0.1:8000", TIDINGS_TOKEN = "" } = process.env;
  const server = examples({ tidings: () => TIDINGS_URL, token: () => TIDINGS_TOKEN });
  server.listen(3000, "127.0.0.1", () => console.log("http://127.0.0.1:3000/plain.html, /htmx.html?job=…, /datastar.html?job=…, /react.html"));
}
