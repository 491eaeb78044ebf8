// Another implementation of protobuf and its JSON: @bufbuild/protobuf, over descriptors.
// Reads lines of {"type", "binary" (base64) or "json"}, answers each with {"json", "binary"}.
import { createFileRegistry, fromBinary, fromJson, toBinary, toJson } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

const files = fromBinary(FileDescriptorSetSchema, readFileSync(process.argv[2]));
const registry = createFileRegistry(files);

for await (const line of createInterface({ input: process.stdin })) {
  const { type, binary, json } = JSON.parse(line);
  const schema = registry.getMessage(type);
  const message =
    binary === undefined
      ? fromJson(schema, json, { registry })
      : fromBinary(schema, Buffer.from(binary, "base64"));
  const answer = {
    json: toJson(schema, message, { registry, alwaysEmitImplicit: true }),
    binary: Buffer.from(toBinary(schema, message)).toString("base64"),
  };
  process.stdout.write(JSON.stringify(answer) + "\n");
}
