// Publish and subscribe with Bun, whose WebSockets are those of uWebSockets: GET /sub/<channel>, POST /pub/<channel>.
const server = Bun.serve({
  hostname: "127.0.0.1",
  port: 0,
  async fetch(request, server) {
    const [, verb, channel] = new URL(request.url).pathname.split("/");
    if (verb === "sub") {
      if (server.upgrade(request, { data: { channel } })) return;
      return new Response("a WebSocket is required", { status: 400 });
    }
    server.publish(channel, await request.text());
    return new Response("ok");
  },
  websocket: {
    perMessageDeflate: false,
    idleTimeout: 0,
    open(socket) {
      socket.subscribe(socket.data.channel);
    },
    message() {},
  },
});
console.log(`bun on http://127.0.0.1:${server.port}`);
