// A client and a worker that know nothing of Postbus but its contracts: amqplib, @bufbuild/protobuf.
// node foreign.mjs DESCRIPTORS AMQP_URL NAME call METHOD REQUEST_JSON    prints the reply as JSON
// node foreign.mjs DESCRIPTORS AMQP_URL NAME serve METHOD RESPONSE_JSON  answers every call with it
// NAME is the broker account of this program.
import { createFileRegistry, create, fromBinary, fromJson, toBinary, toJson } from '@bufbuild/protobuf';
import { FileDescriptorSetSchema } from '@bufbuild/protobuf/wkt';
import amqp from 'amqplib';
import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';

const [, , descriptors, url, userId, role, name, json] = process.argv;
const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, readFileSync(descriptors)));
const Request = registry.getMessage('postbus.bus.v1.Request');
const Reply = registry.getMessage('postbus.bus.v1.Reply');
const [, service, method] = name.match(/(.*)\.(.*)/);
const { input, output } = registry.getService(service).methods.find((each) => each.name === method);
const owner = name.startsWith('postbus.bus.') ? name.split('.').at(-1) : name.split('.')[1];
const say = (message) => process.stdout.write(JSON.stringify(message) + '\n');

const connection = await amqp.connect(url);
const channel = await connection.createChannel();

if (role === 'call') {
  await channel.assertExchange(`postbus.replies.${userId}`, 'direct', { durable: true });
  const { queue } = await channel.assertQueue(`${userId}.replies.${randomUUID()}`, { exclusive: true });
  await channel.bindQueue(queue, `postbus.replies.${userId}`, queue);
  const correlationId = randomUUID();
  const answer = new Promise((resolve) => {
    channel.on('return', () => resolve({ returned: true }));
    channel.on('error', () => resolve({ returned: true })); // the service has never run: no exchange
    channel.consume(queue, ({ content, properties }) => {
      if (properties.correlationId !== correlationId || properties.userId !== owner) return;
      const { result } = fromBinary(Reply, content);
      resolve(
        result.case === 'payload'
          ? { response: toJson(output, fromBinary(output, result.value), { registry }) }
          : { error: { code: result.value.code, reason: result.value.reason } },
      );
    }, { noAck: true });
  });
  const budget = 5000;
  const request = create(Request, {
    payload: toBinary(input, fromJson(input, JSON.parse(json), { registry })),
    budgetMs: budget,
    operationId: randomUUID(),
  });
  channel.publish(`postbus.calls.${owner}`, name, Buffer.from(toBinary(Request, request)), {
    contentType: 'application/x-protobuf',
    correlationId,
    userId,
    replyTo: queue,
    expiration: String(budget),
    mandatory: true,
  });
  say(await answer);
  await connection.close();
} else {
  await channel.assertExchange(`postbus.calls.${userId}`, 'direct', { durable: true });
  await channel.assertExchange(`postbus.control.${userId}`, 'direct', { durable: true });
  const controls = await channel.assertQueue(`${userId}.control.${randomUUID()}`, { exclusive: true });
  await channel.bindQueue(controls.queue, `postbus.control.${userId}`, name);
  await channel.consume(controls.queue, () => {}, { noAck: true }); // cancels nothing
  const { queue } = await channel.assertQueue(`${userId}.${name}`, { autoDelete: true });
  await channel.bindQueue(queue, `postbus.calls.${userId}`, name);
  const response = toBinary(output, fromJson(output, JSON.parse(json), { registry }));
  await channel.prefetch(64);
  await channel.consume(queue, (message) => {
    const { replyTo, correlationId, userId: caller } = message.properties;
    if (!replyTo?.startsWith(`${caller}.`)) return channel.ack(message);
    const request = fromBinary(input, fromBinary(Request, message.content).payload);
    say({ request: toJson(input, request, { registry }) });
    const reply = create(Reply, { result: { case: 'payload', value: response } });
    const content = Buffer.from(toBinary(Reply, reply));
    channel.publish(`postbus.replies.${caller}`, replyTo, content, { correlationId, userId });
    channel.ack(message);
  });
  say('READY');
}
