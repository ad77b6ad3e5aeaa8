// The public end of a byte tunnel over bored-mplex: node hub.js CERTIFICATE KEY
//
// Two listeners on free loopback ports, told on stdout: one for the agent's WebSocket (wss), one for
// clients, each of whose connections becomes a stream. Wired as Lens' BoreD wires it: a WebSocket as a
// Node stream, piped through the multiplexer and back.
"use strict";

const fs = require("fs");
const https = require("https");
const net = require("net");
const { BoredMplexClient } = require("bored-mplex");
const { WebSocketServer, createWebSocketStream } = require("ws");
const { join } = require("./join");

const [certificate, key] = process.argv.slice(2);
let tunnel = null;

const tunnels = https.createServer({ cert: fs.readFileSync(certificate), key: fs.readFileSync(key) });
new WebSocketServer({ server: tunnels }).on("connection", (socket) => {
  const carrier = createWebSocketStream(socket);
  tunnel = new BoredMplexClient();
  tunnel.pipe(carrier).pipe(tunnel);
  tunnel.enableKeepAlive();
  carrier.on("error", () => process.exit(1));
  console.log("joined");
});

const clients = net.createServer({ noDelay: true }, (socket) => {
  if (tunnel === null) {
    socket.destroy();
    return;
  }
  join(socket, tunnel.openStream());
});

tunnels.listen(0, "127.0.0.1", () => {
  clients.listen({ port: 0, host: "127.0.0.1", backlog: 4096 }, () => {
    console.log(`ready ${tunnels.address().port} ${clients.address().port}`);
  });
});
