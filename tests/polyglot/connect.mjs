// The official Connect clients for JavaScript, with the published descriptors:
// connect.mjs DESCRIPTORS URL TOKEN. Prints a line of JSON for each transport and format.
import { createFileRegistry, fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport as nodeTransport } from "@connectrpc/connect-node";
import { createConnectTransport as webTransport } from "@connectrpc/connect-web";
import { codeToString } from "@connectrpc/connect/protocol-connect";
import { readFileSync } from "node:fs";

const [descriptors, baseUrl, token] = process.argv.slice(2);
const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, readFileSync(descriptors)));
const service = (name) => registry.getService(`postbus.posts.v1.${name}`);
const headers = { authorization: `Bearer ${token}` };

async function failure(call) {
  try {
    await call();
    return null;
  } catch (error) {
    const failed = ConnectError.from(error);
    return { code: codeToString(failed.code), details: failed.details.map((each) => each.type) };
  }
}

async function run(name, transport) {
  const posts = createClient(service("PostsService"), transport);
  const created = await posts.createPost(
    { title: "Hé", body: "b".repeat(3000), tags: ["tea"] },
    { headers: { ...headers, "idempotency-key": crypto.randomUUID() } },
  );
  const found = await posts.getPost({ id: created.post.id }, { headers });
  const cursors = [];
  const exports = createClient(service("ExportService"), transport);
  for await (const item of exports.exportMe({}, { headers })) cursors.push(item.item.case);
  const stopped = new AbortController();
  stopped.abort();
  console.log(
    JSON.stringify({
      name,
      title: found.post.title,
      body: found.post.body.length,
      cases: [...new Set(cursors)].sort(),
      invalid: await failure(() => posts.createPost({ title: "" }, { headers })),
      anonymous: await failure(() => posts.createPost({ title: "x" })),
      missing: await failure(() => posts.getPost({ id: "none" })),
      cancelled: await failure(() => posts.getPost({ id: "none" }, { signal: stopped.signal })),
    }),
  );
}

for (const useBinaryFormat of [false, true]) {
  const options = { baseUrl, useBinaryFormat, useHttpGet: true };
  await run("web", webTransport(options));
  await run("node", nodeTransport({ ...options, httpVersion: "1.1" }));
}
