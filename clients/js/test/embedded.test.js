// The copy of the elements in the server.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { embedded, path } from "../embedded.js";

test("the server embeds the elements as they are built now; `npm run embed` renews them", async () => {
  assert.equal(readFileSync(path, "utf8"), await embedded());
});
