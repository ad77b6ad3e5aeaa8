// Pipes a TCP connection and a stream of the multiplexer into one another, and ends each with the other.
"use strict";

function join(socket, stream) {
  socket.on("error", () => socket.destroy());
  socket.on("close", () => stream.end());
  // The multiplexer ends a stream's writable side when the peer closes it, and its readable side never.
  stream.on("finish", () => socket.end());
  socket.pipe(stream).pipe(socket);
}

module.exports = { join };
