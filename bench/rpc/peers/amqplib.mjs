// amqplib by hand: direct reply-to, no confirms, prefetch 256, bytes. Without noDelay a single call
// in flight takes 42 ms.
import amqp from 'amqplib';
import { NEW_ID, POST, URL_, closedLoop, say } from './loop.mjs';

const QUEUE = 'bench.amqplib';
const REPLY_TO = 'amq.rabbitmq.reply-to';
const channel = await (await amqp.connect(URL_, { noDelay: true })).createChannel();

if (process.argv[2] === 'worker') {
  const head = Buffer.from(`{"id": "${NEW_ID}", `);
  await channel.assertQueue(QUEUE, { durable: false, autoDelete: true });
  await channel.prefetch(256);
  await channel.consume(QUEUE, (message) => {
    const { replyTo, correlationId } = message.properties;
    channel.sendToQueue(replyTo, Buffer.concat([head, message.content.subarray(1)]), { correlationId });
    channel.ack(message);
  });
  say('READY');
} else {
  const body = Buffer.from(JSON.stringify(POST));
  const waiting = new Map();
  let id = 0;
  const onReply = (message) => {
    const { correlationId } = message.properties;
    const done = waiting.get(correlationId);
    waiting.delete(correlationId);
    done(message.content);
  };
  await channel.consume(REPLY_TO, onReply, { noAck: true });
  const call = () =>
    new Promise((done) => {
      const correlationId = String(id++);
      waiting.set(correlationId, done);
      channel.sendToQueue(QUEUE, body, { correlationId, replyTo: REPLY_TO });
    });
  if (JSON.parse(await call()).id !== NEW_ID) throw new Error('bad reply');
  await closedLoop(call);
}
