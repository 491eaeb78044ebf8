// NestJS over RabbitMQ as documented, without validation: `worker`, or a gateway with the adapter
// `fastify` or `express`.
import 'reflect-metadata';
import { Body, Controller, HttpCode, Inject, Module, Post } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { ClientsModule, MessagePattern, Payload, Transport } from '@nestjs/microservices';

const NEW_ID = '018f3b6e-7b1a-7c44-9d0e-5f2a1b3c4d5e';
const role = process.argv[2];
const options = {
  urls: [process.env.BENCH_URL],
  queue: 'bench.http.nest',
  prefetchCount: 256,
  queueOptions: { durable: false },
};

if (role === 'worker') {
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
} else {
  class Posts {
    constructor(client) {
      this.client = client;
    }
    create(post) {
      return this.client.send('echo', post);
    }
  }
  const create = Object.getOwnPropertyDescriptor(Posts.prototype, 'create');
  Post('posts')(Posts.prototype, 'create', create);
  HttpCode(200)(Posts.prototype, 'create', create);
  Body()(Posts.prototype, 'create', 0);
  Inject('RMQ')(Posts, undefined, 0);
  Controller()(Posts);
  class App {}
  const client = { name: 'RMQ', transport: Transport.RMQ, options };
  Module({ imports: [ClientsModule.register([client])], controllers: [Posts] })(App);
  const fastify = async () => new (await import('@nestjs/platform-fastify')).FastifyAdapter();
  const adapter = role === 'fastify' ? [await fastify()] : [];
  const app = await NestFactory.create(App, ...adapter, { logger: false });
  await app.listen(Number(process.env.BENCH_PORT), '127.0.0.1');
}
process.stdout.write('READY\n');
