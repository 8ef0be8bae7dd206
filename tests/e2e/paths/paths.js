// As paths.c, by Node.js; its sockets never block.
const [method, v4, v6, port] = process.argv.slice(2);
const to = method.includes("IPv6") ? v6 : method.includes("v4-mapped") ? "::ffff:" + v4 : v4;
const say = (line) => process.stdout.write(line);
const refused = (error) => say(`error ${error.code}\n`);
const text = (host, port) => (host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`);

if (method.startsWith("UDP")) {
  const socket = require("dgram").createSocket(method.includes("IPv6") ? "udp6" : "udp4");
  const done = (error) => (error ? refused(error) : say("sent\n"));
  if (method.includes("connect")) socket.connect(port, to, done);
  else socket.send("quic", port, to, done);
} else {
  const options = { port, host: to };
  if (method.includes("bind")) options.localAddress = v4;
  if (method.startsWith("happy")) {
    const both = [{ address: v6, family: 6 }, { address: v4, family: 4 }];
    Object.assign(options, { host: "both.example", autoSelectFamily: true, lookup: (_, __, done) => done(null, both) });
  }
  const socket = require("net").connect(options);
  let seen = "";
  socket.on("connect", () => socket.write("who\n"));
  socket.on("error", refused);
  socket.on("data", (data) => {
    seen += data;
    if (!seen.endsWith("\n")) return;
    // Node asks the kernel for both.
    say(`open ${process.pid} ${text(socket.localAddress, socket.localPort)} ${text(socket.remoteAddress, socket.remotePort)} ${seen}`);
  });
}
process.stdin.on("end", () => process.exit(0)).resume();
