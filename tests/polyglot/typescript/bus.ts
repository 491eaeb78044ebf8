import { create, fromBinary, toBinary, type DescMessage, type MessageShape } from "@bufbuild/protobuf";
import amqp from "amqplib";
import { randomUUID } from "node:crypto";
import { ControlSchema, ReplySchema, RequestSchema, type Reply } from "./gen/postbus/bus/v1/envelope_pb.ts";
import { Code, ErrorSchema, Outcome, type Error as BusError } from "./gen/postbus/bus/v1/error_pb.ts";

export const CONTENT_TYPE = "application/x-protobuf";

/** The error in a reply. */
export class CallError extends Error {
  readonly error: BusError;

  constructor(error: BusError) {
    super(`${error.reason}: ${error.message}`);
    this.error = error;
  }
}

export function failure(code: Code, reason: string, message: string): BusError {
  return create(ErrorSchema, { code, reason, message, outcome: Outcome.NO_EFFECT });
}

/**
 * The connection of a service to the broker, with a queue for the replies to its calls.
 *
 * It does not reconnect: the program ends with its connection, and its supervisor starts it again.
 */
export class Bus {
  private readonly waiting = new Map<string, (reply: Reply) => void>();
  readonly replyTo: string;

  private constructor(
    readonly service: string,
    readonly connection: amqp.ChannelModel,
    readonly channel: amqp.Channel,
  ) {
    this.replyTo = `${service}.replies.${randomUUID()}`;
  }

  /** Connect as the service of the account in the URL. */
  static async open(url: string): Promise<Bus> {
    const connection = await amqp.connect(url);
    const bus = new Bus(new URL(url).username, connection, await connection.createChannel());
    for (const kind of ["calls", "replies", "control", "retry", "dead"])
      await bus.channel.assertExchange(bus.exchange(kind), "direct");
    await bus.channel.assertExchange(bus.exchange("events"), "topic");
    await bus.takeReplies();
    return bus;
  }

  exchange(kind: string): string {
    return `postbus.${kind}.${this.service}`;
  }

  private async takeReplies(): Promise<void> {
    const { channel, replyTo } = this;
    await channel.assertQueue(replyTo, { exclusive: true, autoDelete: true, durable: false });
    await channel.bindQueue(replyTo, this.exchange("replies"), replyTo);
    channel.on("return", ({ properties }: amqp.Message) => {
      const value = failure(Code.UNAVAILABLE, "NO_ROUTE", "No worker serves the method.");
      this.resolve(properties.correlationId, create(ReplySchema, { result: { case: "error", value } }));
    });
    await channel.consume(
      replyTo,
      (message) => {
        const { correlationId, userId } = message!.properties;
        const owner = String(correlationId).split(".")[0];
        if (userId === owner) this.resolve(correlationId, fromBinary(ReplySchema, message!.content));
      },
      { noAck: true },
    );
  }

  private resolve(correlationId: string, reply: Reply): void {
    this.waiting.get(correlationId)?.(reply);
  }

  /** Call a method; the signal ends the call. */
  async call<Input extends DescMessage, Output extends DescMessage>(
    method: { parent: { typeName: string }; name: string; input: Input; output: Output },
    request: MessageShape<Input>,
    budgetMs: number,
    signal?: AbortSignal,
  ): Promise<MessageShape<Output>> {
    const name = `${method.parent.typeName}.${method.name}`;
    const callee = name.split(".")[1];
    const correlationId = `${callee}.${randomUUID()}`; // its service alone may reply
    const { promise, resolve, reject } = Promise.withResolvers<Reply>();
    this.waiting.set(correlationId, resolve);
    const cancel = (): void => {
      const control = create(ControlSchema, { replyTo: this.replyTo, correlationId, cancel: true });
      this.publish(`postbus.control.${callee}`, name, toBinary(ControlSchema, control));
      reject(new CallError(failure(Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "No reply in time.")));
    };
    const timer = setTimeout(cancel, budgetMs);
    signal?.addEventListener("abort", cancel);
    try {
      this.send(callee, name, correlationId, toBinary(method.input, request), budgetMs);
      const { result } = await promise;
      if (result.case === "error") throw new CallError(result.value);
      return fromBinary(method.output, result.value as Uint8Array);
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", cancel);
      this.waiting.delete(correlationId);
    }
  }

  private send(
    callee: string,
    method: string,
    correlationId: string,
    payload: Uint8Array,
    budgetMs: number,
  ): void {
    const request = create(RequestSchema, {
      payload,
      operationId: randomUUID(), // for a repetition: that of the first call
      budgetMs: Math.max(Math.floor(budgetMs), 1),
      deadlineUnixMs: BigInt(Date.now() + Math.floor(budgetMs)), // for workers of the previous release
    });
    this.publish(`postbus.calls.${callee}`, method, toBinary(RequestSchema, request), {
      correlationId,
      replyTo: this.replyTo,
      expiration: String(request.budgetMs),
      mandatory: true,
    });
  }

  publish(exchange: string, key: string, body: Uint8Array, options: amqp.Options.Publish = {}): void {
    const properties = { contentType: CONTENT_TYPE, userId: this.service, ...options };
    this.channel.publish(exchange, key, Buffer.from(body), properties);
  }
}
