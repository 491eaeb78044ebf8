// A worker and a client of Postbus in TypeScript, with types generated from the published contracts.
//
//   main serve AMQP_URL                 serves GetPost of the service of the account, until it is killed
//   main call AMQP_URL GATEWAY_URL ID   calls by REST, Connect and AMQP; prints the results as JSON
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { timestampNow } from "@bufbuild/protobuf/wkt";
import { ConnectError, createClient } from "@connectrpc/connect";
import { codeToString } from "@connectrpc/connect/protocol-connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { Bus, CallError, failure } from "./bus.ts";
import type { Event } from "./gen/postbus/bus/v1/envelope_pb.ts";
import { Code } from "./gen/postbus/bus/v1/error_pb.ts";
import { CheckResponseSchema } from "./gen/postbus/bus/v1/health_pb.ts";
import { GetPostRequestSchema, GetPostResponseSchema, PostsService } from "./gen/postbus/posts/v1/posts_pb.ts";
import { UserRegisteredSchema } from "./gen/postbus/users/v1/events_pb.ts";
import { BatchGetUsersRequestSchema, UsersService } from "./gen/postbus/users/v1/users_pb.ts";
import { type Call, consume, serve } from "./worker.ts";

const UNKNOWN = "00000000-0000-7000-8000-000000000000";

/** Serves one post for each user that has registered; its author's name comes from `users`. */
class Posts {
  private readonly authors = new Set<string>();

  constructor(private readonly bus: Bus) {}

  async onRegistered(event: Event): Promise<void> {
    this.authors.add(fromBinary(UserRegisteredSchema, event.data).userId); // once, however often it comes
  }

  async getPost(request: Uint8Array, { deadline, signal }: Call): Promise<Uint8Array> {
    const { id } = fromBinary(GetPostRequestSchema, request);
    if (!this.authors.has(id))
      throw new CallError(failure(Code.NOT_FOUND, "POST_NOT_FOUND", "There is no such post."));
    const username = await usernameOf(this.bus, id, deadline - performance.now(), signal);
    const post = { id, title: "From TypeScript", author: { id, username }, version: 1n };
    return toBinary(GetPostResponseSchema, create(GetPostResponseSchema, { post }));
  }
}

async function check(): Promise<Uint8Array> {
  return toBinary(CheckResponseSchema, create(CheckResponseSchema, { time: timestampNow() }));
}

async function usernameOf(bus: Bus, id: string, budgetMs: number, signal?: AbortSignal): Promise<string> {
  const request = create(BatchGetUsersRequestSchema, { ids: [id] });
  const { profiles } = await bus.call(UsersService.method.batchGetUsers, request, budgetMs, signal);
  return profiles[0]!.username;
}

async function run(bus: Bus): Promise<void> {
  const posts = new Posts(bus);
  await consume(bus, "postbus.users.v1.UserRegistered", (event) => posts.onRegistered(event));
  await serve(bus, {
    "postbus.posts.v1.PostsService.GetPost": (request, call) => posts.getPost(request, call),
    [`postbus.bus.v1.HealthService.Check.${bus.service}`]: check,
  });
  console.log("READY");
}

async function call(bus: Bus, baseUrl: string, id: string): Promise<void> {
  const rest = await (await fetch(`${baseUrl}/v1/posts/${id}`)).json();
  const client = createClient(PostsService, createConnectTransport({ baseUrl, httpVersion: "1.1" }));
  const { post } = await client.getPost({ id });
  const missing = await failed(client.getPost({ id: UNKNOWN }));
  const invalid = await failed(usernameOf(bus, "not a UUID", 5000));
  const { batchGetUsers } = UsersService.method;
  const unserved = { ...batchGetUsers, name: "Unserved", parent: UsersService };
  const returned = await failed(bus.call(unserved, create(BatchGetUsersRequestSchema), 5000));
  const results = {
    rest: [rest.title, rest.author.username],
    connect: [post?.title, post?.author?.username],
    missing: codeToString(ConnectError.from(missing).code),
    amqp: await usernameOf(bus, id, 5000),
    invalid: (invalid as CallError).error.reason,
    unserved: (returned as CallError).error.reason,
  };
  console.log(JSON.stringify(results));
}

async function failed(running: Promise<unknown>): Promise<unknown> {
  try {
    await running;
  } catch (error) {
    return error;
  }
  throw new Error("it did not fail");
}

const [, , role, amqpUrl, gatewayUrl, id] = process.argv;
const bus = await Bus.open(amqpUrl!);
bus.connection.on("close", () => process.exit(1));
if (role === "serve") await run(bus);
else {
  await call(bus, gatewayUrl!, id!);
  process.exit(0);
}
