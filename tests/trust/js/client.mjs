// For each line of input one request, and a line on how it went, in Node, Deno and Bun.
// usage: client.mjs https|fetch|grpc HOST TOKEN
import https from "node:https";
import process from "node:process";
import { createInterface } from "node:readline";

const [library, host, token] = process.argv.slice(2);
const url = `https://${host}/user`;
const headers = { authorization: `Bearer ${token}` };

const libraries = {
  https: () =>
    new Promise((resolve, reject) => {
      const request = https.get(url, { headers, agent: false }, (answer) => {
        let text = "";
        answer.on("data", (piece) => (text += piece));
        answer.on("end", () => resolve([answer.statusCode, text]));
      });
      request.on("error", reject);
    }),
  fetch: async () => {
    const answer = await fetch(url, { headers });
    return [answer.status, await answer.text()];
  },
  grpc: async () => {
    const grpc = await import("@grpc/grpc-js");
    const client = new grpc.Client(`${host}:443`, grpc.credentials.createSsl());
    const metadata = new grpc.Metadata();
    metadata.set("authorization", headers.authorization);
    const same = (bytes) => bytes;
    const deadline = Date.now() + 60_000;
    try {
      return await new Promise((resolve, reject) => {
        client.makeUnaryRequest("/tv.Echo/Unary", same, same, Buffer.from("echo"), metadata, { deadline }, (error, answer) =>
          error ? reject(error) : resolve([200, answer.toString()]),
        );
      });
    } finally {
      client.close();
    }
  },
};

for await (const _ of createInterface({ input: process.stdin })) {
  let line;
  try {
    line = (await libraries[library]()).join(" ");
  } catch (error) {
    line = `error ${error} ${error.cause ?? ""} ${error.code ?? ""}`;
  }
  console.log(line.replaceAll(/\s+/g, " "));
}
