/* librabbitmq in C as documented: direct reply-to, prefetch 256, one publish for each call.
 * It says the same as loop.py. */
#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ID "{\"id\": \"018f3b6e-7b1a-7c44-9d0e-5f2a1b3c4d5e\", "
#define QUEUE "bench.librabbitmq"
#define REPLY_TO "amq.rabbitmq.reply-to"
#define MOST 8000000

static amqp_connection_state_t connection;
static char request[4096], answer[8192];
static int request_length, in_flight, running;
static long calls;
static double began[65536], *latencies;

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec + time.tv_nsec * 1e-9;
}

static int compare(const void *a, const void *b) {
  double difference = *(double *)a - *(double *)b;
  return (difference > 0) - (difference < 0);
}

static void publish(amqp_bytes_t key, amqp_bytes_t correlation_id, const char *reply_to, void *body, int length) {
  amqp_basic_properties_t properties;
  properties._flags = AMQP_BASIC_CORRELATION_ID_FLAG | (reply_to ? AMQP_BASIC_REPLY_TO_FLAG : 0);
  properties.correlation_id = correlation_id;
  properties.reply_to = amqp_cstring_bytes(reply_to ? reply_to : "");
  amqp_bytes_t bytes = {length, body};
  if (amqp_basic_publish(connection, 1, amqp_empty_bytes, key, 0, 0, &properties, bytes)) errx(1, "publish");
}

static void receive(amqp_envelope_t *envelope) {
  amqp_maybe_release_buffers(connection);
  if (amqp_consume_message(connection, envelope, NULL, 0).reply_type != AMQP_RESPONSE_NORMAL) errx(1, "consume");
}

static void worker(void) {
  amqp_bytes_t queue = amqp_cstring_bytes(QUEUE);
  amqp_queue_declare(connection, 1, queue, 0, 0, 0, 1, amqp_empty_table);
  amqp_basic_qos(connection, 1, 0, 256, 0);
  amqp_basic_consume(connection, 1, queue, amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
  puts("READY");
  fflush(stdout);
  memcpy(answer, ID, sizeof ID - 1);
  for (;;) {
    amqp_envelope_t envelope;
    receive(&envelope);
    int length = envelope.message.body.len - 1;
    memcpy(answer + sizeof ID - 1, (char *)envelope.message.body.bytes + 1, length);
    amqp_basic_properties_t *properties = &envelope.message.properties;
    publish(properties->reply_to, properties->correlation_id, NULL, answer, sizeof ID - 1 + length);
    amqp_basic_ack(connection, 1, envelope.delivery_tag, 0);
    amqp_destroy_envelope(&envelope);
  }
}

static void call(int slot) {
  char text[8];
  amqp_bytes_t correlation_id = {sprintf(text, "%04x", slot), text};
  began[slot] = now();
  in_flight++;
  publish(amqp_cstring_bytes(QUEUE), correlation_id, REPLY_TO, request, request_length);
}

static void step(void) {
  amqp_envelope_t envelope;
  char text[8] = {0};
  receive(&envelope);
  memcpy(text, envelope.message.properties.correlation_id.bytes, 4);
  int slot = strtol(text, NULL, 16);
  if (memcmp(envelope.message.body.bytes, ID, sizeof ID - 1)) errx(1, "bad reply");
  amqp_destroy_envelope(&envelope);
  if (calls < MOST) latencies[calls++] = now() - began[slot];
  in_flight--;
  if (running) call(slot);
}

static void client(void) {
  FILE *file = fopen(getenv("BENCH_PAYLOAD"), "r");
  if (!file) err(1, "BENCH_PAYLOAD");
  request_length = fread(request, 1, sizeof request, file);
  double seconds = atof(getenv("BENCH_SECONDS"));
  latencies = malloc(MOST * sizeof *latencies);
  amqp_basic_consume(connection, 1, amqp_cstring_bytes(REPLY_TO), amqp_empty_bytes, 0, 1, 0, amqp_empty_table);
  for (char *each = strtok(strdup(getenv("BENCH_IN_FLIGHT")), ","); each; each = strtok(NULL, ",")) {
    int number = atoi(each);
    running = 1;
    for (int slot = 0; slot < number; slot++) call(slot);
    for (double end = now() + 1; now() < end;) step();
    puts("GO");
    fflush(stdout);
    calls = 0;
    double start = now();
    while (now() < start + seconds) step();
    double took = now() - start;
    qsort(latencies, calls, sizeof *latencies, compare);
    printf("{\"in_flight\": %d, \"calls\": %ld, \"rate\": %f, \"p50\": %f, \"p99\": %f}\n", number, calls,
           calls / took, latencies[calls / 2] * 1e3, latencies[(long)(calls * .99)] * 1e3);
    fflush(stdout);
    running = 0;
    while (in_flight) step();
  }
}

int main(int count, char **arguments) {
  struct amqp_connection_info url;
  if (count < 2 || amqp_parse_url(strdup(getenv("BENCH_URL")), &url)) errx(1, "BENCH_URL");
  connection = amqp_new_connection();
  if (amqp_socket_open(amqp_tcp_socket_new(connection), url.host, url.port)) errx(1, "connect");
  if (amqp_login(connection, url.vhost, 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, url.user, url.password).reply_type !=
      AMQP_RESPONSE_NORMAL)
    errx(1, "login");
  amqp_channel_open(connection, 1);
  strcmp(arguments[1], "worker") ? client() : worker();
  return 0;
}
