package program;

import com.google.protobuf.ByteString;
import com.google.protobuf.InvalidProtocolBufferException;
import postbus.bus.v1.Batch;
import postbus.bus.v1.Code;
import postbus.bus.v1.Control;
import postbus.bus.v1.Event;
import postbus.bus.v1.Outcome;
import postbus.bus.v1.Reply;
import postbus.bus.v1.Request;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Delivery;
import java.io.IOException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicInteger;

/** Serves methods of its service. */
final class Worker {
  /** Returns the encoded response to an encoded request, within the budget. */
  interface Handler {
    ByteString handle(ByteString request, Duration budget) throws Exception;
  }

  /** Processes an event; if it fails, the event becomes a dead letter. */
  interface EventHandler {
    void handle(Event event) throws Exception;
  }

  private static final int RUNNING = 64;

  private final Bus bus;
  private final Channel channel;
  private final String controls;
  private final ExecutorService threads = Executors.newFixedThreadPool(RUNNING);
  /** By reply-to and correlation id. */
  private final Map<String, Thread> running = new ConcurrentHashMap<>();

  /** Serves each method by its handler, until the connection is lost. */
  Worker(Bus bus, Map<String, Handler> handlers) throws IOException {
    this.bus = bus;
    channel = bus.connection.createChannel();
    channel.basicQos(RUNNING);
    controls = bus.service + ".control." + UUID.randomUUID();
    takeControls(handlers.keySet()); // bound before the first call
    for (var entry : handlers.entrySet()) serve(entry.getKey(), entry.getValue());
  }

  private void takeControls(Iterable<String> methods) throws IOException {
    channel.queueDeclare(controls, false, true, true, null);
    channel.queueBind(controls, bus.exchange("control"), controls);
    for (var method : methods) channel.queueBind(controls, bus.exchange("control"), method);
    channel.basicConsume(controls, true, (tag, delivery) -> control(delivery), tag -> {});
  }

  /** Cancels a call. Probes need no answer, and there are no streams that need credit. */
  private void control(Delivery delivery) throws IOException {
    var control = Control.parseFrom(delivery.getBody());
    var caller = control.getReplyTo().split("\\.")[0];
    if (!control.getCancel() || !caller.equals(delivery.getProperties().getUserId())) return;
    running.computeIfPresent(
        control.getReplyTo() + " " + control.getCorrelationId(),
        (key, thread) -> {
          thread.interrupt();
          return thread;
        });
  }

  /** Shares the queue of the method with all other processes that serve it. */
  private void serve(String method, Handler handler) throws IOException {
    var queue = bus.service + "." + method;
    channel.queueDeclare(queue, false, false, true, Map.of("x-expires", 1000));
    channel.queueBind(queue, bus.exchange("retry"), method);
    channel.basicConsume(queue, false, (tag, call) -> answer(call, handler), tag -> {});
    channel.queueBind(queue, bus.exchange("calls"), method);
    channel.queueBind(queue, bus.exchange("calls"), method + "/batch");
  }

  /** Replies to a call, or to each call of a batch, and acknowledges it after the last reply. */
  private void answer(Delivery delivery, Handler handler) throws IOException {
    var properties = delivery.getProperties();
    var replyTo = String.valueOf(properties.getReplyTo());
    var calls = new ArrayList<Map.Entry<String, ByteString>>();
    if (!replyTo.split("\\.")[0].equals(properties.getUserId())
        && !bus.service.equals(properties.getUserId())) {
      acknowledge(delivery);
    } else if (delivery.getEnvelope().getRoutingKey().endsWith("/batch")) {
      var batch = Batch.parseFrom(delivery.getBody());
      for (var index = 0; index < batch.getMessagesCount(); index++)
        calls.add(Map.entry(batch.getCorrelationIds(index), batch.getMessages(index)));
    } else {
      calls.add(Map.entry(properties.getCorrelationId(), ByteString.copyFrom(delivery.getBody())));
    }
    var unfinished = new AtomicInteger(calls.size());
    for (var call : calls)
      threads.execute(
          () -> {
            reply(delivery, call.getKey(), call.getValue(), handler);
            if (unfinished.decrementAndGet() == 0) acknowledge(delivery);
          });
  }

  private void reply(Delivery delivery, String correlationId, ByteString body, Handler handler) {
    var replyTo = delivery.getProperties().getReplyTo();
    var key = replyTo + " " + correlationId;
    running.put(key, Thread.currentThread());
    try {
      var reply = handle(body, handler);
      if (reply.hasError() && delivery.getEnvelope().isRedeliver()) // it may have had an effect before
        reply.getErrorBuilder().setOutcome(Outcome.OUTCOME_UNKNOWN);
      var properties = bus.properties().correlationId(correlationId).replyTo(controls);
      var exchange = "postbus.replies." + replyTo.split("\\.")[0];
      bus.publish(exchange, replyTo, false, properties, reply.build().toByteArray());
    } catch (InterruptedException cancelled) { // by the caller, which needs no reply
    } catch (IOException lost) {
      System.exit(1);
    } finally {
      running.remove(key);
      Thread.interrupted(); // the thread goes on with another call
    }
  }

  /** Runs the handler within the budget of the call. */
  private Reply.Builder handle(ByteString body, Handler handler) throws InterruptedException {
    try {
      var request = Request.parseFrom(body);
      var budget = Duration.ofMillis(Math.min(request.getBudgetMs(), 60_000));
      return Reply.newBuilder().setPayload(handler.handle(request.getPayload(), budget));
    } catch (CallError failed) {
      return Reply.newBuilder().setError(failed.error);
    } catch (InvalidProtocolBufferException malformed) {
      return failed(Code.CODE_INVALID_ARGUMENT, "MALFORMED_MESSAGE");
    } catch (InterruptedException cancelled) {
      throw cancelled;
    } catch (Exception unexpected) {
      return failed(Code.CODE_INTERNAL, "INTERNAL");
    }
  }

  private static Reply.Builder failed(Code code, String reason) {
    return Reply.newBuilder().setError(CallError.of(code, reason, "The call failed.").error);
  }

  private void acknowledge(Delivery delivery) {
    try {
      synchronized (channel) {
        channel.basicAck(delivery.getEnvelope().getDeliveryTag(), false);
      }
    } catch (IOException lost) {
      System.exit(1);
    }
  }

  /** Passes the events of a type, published by its owner, to the handler. */
  static void consume(Bus bus, String type, EventHandler handler) throws IOException {
    var channel = bus.connection.createChannel();
    var queue = bus.service + "." + type;
    var owner = type.split("\\.")[1];
    Map<String, Object> dead =
        Map.of(
            "x-queue-type", "quorum",
            "x-delivery-limit", Integer.MAX_VALUE,
            "x-message-ttl", 1_209_600_000);
    channel.queueDeclare(queue + ".dead", true, false, false, dead);
    channel.queueBind(queue + ".dead", bus.exchange("dead"), queue);
    Map<String, Object> arguments =
        Map.of(
            "x-queue-type", "quorum",
            "x-dead-letter-strategy", "at-least-once",
            "x-overflow", "reject-publish",
            "x-delivery-limit", 10,
            "x-dead-letter-exchange", bus.exchange("dead"),
            "x-dead-letter-routing-key", queue);
    channel.queueDeclare(queue, true, false, false, arguments);
    channel.queueBind(queue, bus.exchange("retry"), queue);
    channel.queueBind(queue, "postbus.events." + owner, type);
    channel.basicConsume(
        queue,
        false,
        (tag, delivery) -> {
          var sender = delivery.getProperties().getUserId();
          var number = delivery.getEnvelope().getDeliveryTag();
          try {
            if (!owner.equals(sender) && !bus.service.equals(sender)) throw new IOException("forged");
            handler.handle(Event.parseFrom(delivery.getBody()));
            channel.basicAck(number, false);
          } catch (Exception failed) {
            channel.basicReject(number, false); // to the dead letters
          }
        },
        tag -> {});
  }
}
