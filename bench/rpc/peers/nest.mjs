// NestJS microservices over RabbitMQ, as documented: JSON, a worker that does not acknowledge.
import 'reflect-metadata';
import { Controller, Module } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { ClientProxyFactory, MessagePattern, Payload, Transport } from '@nestjs/microservices';
import { firstValueFrom } from 'rxjs';
import { NEW_ID, POST, URL_, closedLoop, say } from './loop.mjs';

const options = { urls: [URL_], queue: 'bench.nest', prefetchCount: 256, queueOptions: { durable: false } };

if (process.argv[2] === 'worker') {
  class Echo {
    echo(post) {
      return { ...post, id: NEW_ID };
    }
  }
  MessagePattern('echo')(Echo.prototype, 'echo', Object.getOwnPropertyDescriptor(Echo.prototype, 'echo'));
  Payload()(Echo.prototype, 'echo', 0);
  Controller()(Echo);
  class App {}
  Module({ controllers: [Echo] })(App);
  const app = await NestFactory.createMicroservice(App, { transport: Transport.RMQ, options, logger: false });
  await app.listen();
  say('READY');
} else {
  const client = ClientProxyFactory.create({ transport: Transport.RMQ, options });
  await client.connect();
  const call = () => firstValueFrom(client.send('echo', POST));
  if ((await call()).id !== NEW_ID) throw new Error('bad reply');
  await closedLoop(call);
}
