// The private end of a byte tunnel over bored-mplex: node agent.js TUNNEL_PORT CA UPSTREAM_HOST UPSTREAM_PORT
"use strict";

const fs = require("fs");
const net = require("net");
const { BoredMplex } = require("bored-mplex");
const { WebSocket, createWebSocketStream } = require("ws");
const { join } = require("./join");

const [tunnelPort, ca, upstreamHost, upstreamPort] = process.argv.slice(2);

const socket = new WebSocket(`wss://127.0.0.1:${tunnelPort}/`, { ca: fs.readFileSync(ca) });
socket.on("open", () => {
  const carrier = createWebSocketStream(socket);
  const tunnel = new BoredMplex((stream) => {
    join(net.connect({ host: upstreamHost, port: Number(upstreamPort), noDelay: true }), stream);
  });
  tunnel.pipe(carrier).pipe(tunnel);
  carrier.on("error", () => process.exit(1));
  console.log("ready");
});
socket.on("close", () => process.exit(1));
socket.on("error", (error) => {
  console.error(error.message);
  process.exit(1);
});
