// What the Node programs share; they say the same as loop.py.
import { readFileSync } from 'node:fs';

export const URL_ = process.env.BENCH_URL;
export const POST = JSON.parse(readFileSync(process.env.BENCH_PAYLOAD));
export const NEW_ID = '018f3b6e-7b1a-7c44-9d0e-5f2a1b3c4d5e';

export const say = (x) => process.stdout.write((typeof x === 'string' ? x : JSON.stringify(x)) + '\n');

const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

export async function closedLoop(call) {
  const seconds = Number(process.env.BENCH_SECONDS);
  for (const inFlight of process.env.BENCH_IN_FLIGHT.split(',').map(Number)) {
    let latencies = [];
    let running = true;
    const one = async () => {
      while (running) {
        const began = performance.now();
        await call();
        latencies.push(performance.now() - began);
      }
    };
    const all = Array.from({ length: inFlight }, one);
    await sleep(1);
    latencies = [];
    const began = performance.now();
    say('GO');
    await sleep(seconds);
    const measured = latencies.slice().sort((a, b) => a - b);
    const took = (performance.now() - began) / 1000;
    const calls = measured.length;
    say({
      in_flight: inFlight,
      calls,
      rate: calls / took,
      p50: measured[calls >> 1],
      p99: measured[Math.floor(calls * 0.99)],
    });
    running = false;
    await Promise.all(all);
  }
  process.exit(0);
}
