// Existing clients in Node, with `ws`.
//
// Reads `[name, what, value]` as lines of JSON: open (an address), send (a text), close.
// Tells what happens in the same way: opened, text, closed (with the code).

const readline = require("node:readline");
const WebSocket = require("ws");

const tell = (name, what, value = null) => console.log(JSON.stringify([name, what, value]));
const sockets = {};

const obey = {
  open(name, url) {
    const socket = (sockets[name] = new WebSocket(url));
    socket.on("open", () => tell(name, "opened"));
    socket.on("message", (data) => tell(name, "text", data.toString()));
    socket.on("close", (code) => tell(name, "closed", code));
  },
  send: (name, text) => sockets[name].send(text),
  close: (name) => sockets[name].close(1000),
};

readline
  .createInterface({ input: process.stdin })
  .on("line", (line) => {
    const [name, what, value] = JSON.parse(line);
    obey[what](name, value);
  })
  .on("close", () => process.exit());
