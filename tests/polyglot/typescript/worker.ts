import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import type amqp from "amqplib";
import { randomUUID } from "node:crypto";
import { type Bus, CallError, failure } from "./bus.ts";
import { BatchSchema, ControlSchema, EventSchema, ReplySchema, RequestSchema } from "./gen/postbus/bus/v1/envelope_pb.ts";
import type { Event, Reply } from "./gen/postbus/bus/v1/envelope_pb.ts";
import { Code, Outcome } from "./gen/postbus/bus/v1/error_pb.ts";

export interface Call {
  /** The time until which the caller waits, by `performance.now()`. */
  deadline: number;
  /** Aborted if the caller cancels the call. */
  signal: AbortSignal;
}

/** Returns the encoded response to an encoded request, or throws CallError. */
export type Handler = (request: Uint8Array, call: Call) => Promise<Uint8Array>;

/** Serve each method by its handler, until the connection is lost. */
export async function serve(bus: Bus, handlers: Record<string, Handler>): Promise<void> {
  const worker = new Worker(bus, await bus.connection.createChannel());
  await worker.takeControls(Object.keys(handlers)); // bound before the first call
  for (const [method, handler] of Object.entries(handlers)) await worker.serve(method, handler);
}

class Worker {
  private readonly running = new Map<string, AbortController>(); // by reply-to and correlation id
  private readonly controls: string;

  constructor(
    private readonly bus: Bus,
    private readonly channel: amqp.Channel,
  ) {
    this.controls = `${bus.service}.control.${randomUUID()}`;
  }

  async takeControls(methods: string[]): Promise<void> {
    const { bus, channel, controls } = this;
    await channel.prefetch(64);
    await channel.assertQueue(controls, { exclusive: true, autoDelete: true, durable: false });
    for (const key of [controls, ...methods]) await channel.bindQueue(controls, bus.exchange("control"), key);
    await channel.consume(controls, (message) => this.control(message!), { noAck: true });
  }

  /** Cancel a call. Probes need no answer, and there are no streams that need credit. */
  private control({ content, properties }: amqp.ConsumeMessage): void {
    const control = fromBinary(ControlSchema, content);
    if (control.cancel && control.replyTo.split(".")[0] === properties.userId)
      this.running.get(`${control.replyTo} ${control.correlationId}`)?.abort();
  }

  /** Share the queue of the method with all other processes that serve it. */
  async serve(method: string, handler: Handler): Promise<void> {
    const { bus, channel } = this;
    const queue = `${bus.service}.${method}`;
    await channel.assertQueue(queue, { durable: false, autoDelete: true, arguments: { "x-expires": 1000 } });
    await channel.bindQueue(queue, bus.exchange("retry"), method);
    await channel.consume(queue, (message) => this.answer(message!, handler));
    for (const key of [method, `${method}/batch`]) await channel.bindQueue(queue, bus.exchange("calls"), key);
  }

  /** Reply to a call, or to each call of a batch, and then acknowledge it. */
  private async answer(message: amqp.ConsumeMessage, handler: Handler): Promise<void> {
    const { replyTo, userId, correlationId } = message.properties;
    const caller = String(replyTo ?? "").split(".")[0];
    try {
      if (!caller || (userId !== caller && userId !== this.bus.service)) return;
      if (!message.fields.routingKey.endsWith("/batch"))
        return await this.reply(message, correlationId, message.content, handler);
      const { correlationIds, messages } = fromBinary(BatchSchema, message.content);
      if (correlationIds.length === messages.length)
        await Promise.all(
          messages.map((body, index) => this.reply(message, correlationIds[index]!, body, handler)),
        );
    } finally {
      this.channel.ack(message);
    }
  }

  private async reply(
    message: amqp.ConsumeMessage,
    correlationId: string,
    body: Uint8Array,
    handler: Handler,
  ): Promise<void> {
    const { replyTo } = message.properties;
    const reply = await this.handle(`${replyTo} ${correlationId}`, body, handler);
    if (!reply) return; // the caller has cancelled the call
    if (message.fields.redelivered && reply.result.case === "error")
      reply.result.value.outcome = Outcome.UNKNOWN; // the first delivery may have had an effect
    const properties = { correlationId, replyTo: this.controls };
    const exchange = `postbus.replies.${replyTo.split(".")[0]}`;
    this.bus.publish(exchange, replyTo, toBinary(ReplySchema, reply), properties);
  }

  /** Run the handler within the budget of the call. */
  private async handle(key: string, body: Uint8Array, handler: Handler): Promise<Reply | null> {
    const arrived = performance.now();
    const cancelled = new AbortController();
    this.running.set(key, cancelled);
    try {
      const request = fromBinary(RequestSchema, body);
      const deadline = arrived + Math.min(request.budgetMs, 60_000);
      const value = await handler(request.payload, { deadline, signal: cancelled.signal });
      return create(ReplySchema, { result: { case: "payload", value } });
    } catch (error) {
      if (cancelled.signal.aborted) return null;
      const internal = failure(Code.INTERNAL, "INTERNAL", "An internal error occurred.");
      const value = error instanceof CallError ? error.error : internal;
      return create(ReplySchema, { result: { case: "error", value } });
    } finally {
      this.running.delete(key);
    }
  }
}

/** Pass the events of a type, published by its owner, to the handler. */
export async function consume(
  bus: Bus,
  type: string,
  handler: (event: Event) => Promise<void>,
): Promise<void> {
  const channel = await bus.connection.createChannel();
  const [queue, owner] = [`${bus.service}.${type}`, type.split(".")[1]];
  await channel.assertQueue(`${queue}.dead`, {
    arguments: { "x-queue-type": "quorum", "x-delivery-limit": 2 ** 31 - 1, "x-message-ttl": 1_209_600_000 },
  });
  await channel.bindQueue(`${queue}.dead`, bus.exchange("dead"), queue);
  await channel.assertQueue(queue, {
    arguments: {
      "x-queue-type": "quorum",
      "x-dead-letter-strategy": "at-least-once",
      "x-overflow": "reject-publish",
      "x-delivery-limit": 10,
      "x-dead-letter-exchange": bus.exchange("dead"),
      "x-dead-letter-routing-key": queue,
    },
  });
  await channel.bindQueue(queue, bus.exchange("retry"), queue);
  await channel.bindQueue(queue, `postbus.events.${owner}`, type);
  await channel.consume(queue, async (message) => {
    try {
      const sender = message!.properties.userId;
      if (sender !== owner && sender !== bus.service) throw new Error("forged");
      await handler(fromBinary(EventSchema, message!.content));
      channel.ack(message!);
    } catch {
      channel.reject(message!, false); // to the dead letters
    }
  });
}
