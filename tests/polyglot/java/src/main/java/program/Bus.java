package program;

import com.google.protobuf.ByteString;
import com.google.protobuf.Message;
import com.google.protobuf.Parser;
import postbus.bus.v1.Code;
import postbus.bus.v1.Control;
import postbus.bus.v1.Reply;
import postbus.bus.v1.Request;
import com.rabbitmq.client.AMQP.BasicProperties;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.Delivery;
import java.io.IOException;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/**
 * The connection of a service to the broker, with a queue for the replies to its calls.
 *
 * <p>It does not reconnect: the program ends with its connection, and its supervisor starts it again.
 */
final class Bus {
  static final String CONTENT_TYPE = "application/x-protobuf";

  final String service;
  final Connection connection;
  private final Channel channel;
  private final String replyTo;
  private final Map<String, CompletableFuture<Reply>> waiting = new ConcurrentHashMap<>();

  /** Connects as the service of the account in the URL. */
  Bus(String url) throws Exception {
    var factory = new ConnectionFactory();
    factory.setUri(url);
    factory.setAutomaticRecoveryEnabled(false); // it would keep the name of the reply queue
    service = factory.getUsername();
    connection = factory.newConnection();
    channel = connection.createChannel();
    replyTo = service + ".replies." + UUID.randomUUID();
    for (var kind : List.of("calls", "replies", "control", "retry", "dead", "events"))
      channel.exchangeDeclare(exchange(kind), kind.equals("events") ? "topic" : "direct", true);
    takeReplies();
  }

  String exchange(String kind) {
    return "postbus." + kind + "." + service;
  }

  private void takeReplies() throws IOException {
    channel.queueDeclare(replyTo, false, true, true, null);
    channel.queueBind(replyTo, exchange("replies"), replyTo);
    channel.addReturnListener(
        returned -> {
          var error = CallError.of(Code.CODE_UNAVAILABLE, "NO_ROUTE", "No worker serves the method.");
          var reply = Reply.newBuilder().setError(error.error).build();
          resolve(returned.getProperties().getCorrelationId(), reply);
        });
    channel.basicConsume(replyTo, true, (tag, reply) -> take(reply), tag -> {});
  }

  private void take(Delivery delivery) throws IOException {
    var properties = delivery.getProperties();
    var correlationId = String.valueOf(properties.getCorrelationId());
    if (correlationId.split("\\.")[0].equals(properties.getUserId()))
      resolve(correlationId, Reply.parseFrom(delivery.getBody()));
  }

  private void resolve(String correlationId, Reply reply) {
    var call = waiting.remove(correlationId);
    if (call != null) call.complete(reply);
  }

  /** Calls a method and returns its response. */
  <T> T call(String method, Message request, Parser<T> parser, Duration budget) throws Exception {
    var callee = method.split("\\.")[1];
    var correlationId = callee + "." + UUID.randomUUID(); // its service alone may reply
    var call = new CompletableFuture<Reply>();
    waiting.put(correlationId, call);
    try {
      send(callee, method, correlationId, request.toByteString(), budget);
      var reply = call.get(budget.toMillis(), TimeUnit.MILLISECONDS);
      if (reply.hasError()) throw new CallError(reply.getError());
      return parser.parseFrom(reply.getPayload());
    } catch (TimeoutException late) {
      cancel(callee, method, correlationId);
      throw CallError.of(Code.CODE_DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "No reply in time.");
    } catch (InterruptedException cancelled) {
      cancel(callee, method, correlationId);
      throw cancelled;
    } finally {
      waiting.remove(correlationId);
    }
  }

  private void send(
      String callee, String method, String correlationId, ByteString payload, Duration budget)
      throws IOException {
    var milliseconds = Math.max(budget.toMillis(), 1);
    var request =
        Request.newBuilder()
            .setPayload(payload)
            .setOperationId(UUID.randomUUID().toString()) // for a repetition: that of the first call
            .setBudgetMs((int) milliseconds)
            .setDeadlineUnixMs(System.currentTimeMillis() + milliseconds); // for the previous release
    var properties =
        properties()
            .correlationId(correlationId)
            .replyTo(replyTo)
            .expiration(String.valueOf(milliseconds));
    publish("postbus.calls." + callee, method, true, properties, request.build().toByteArray());
  }

  private void cancel(String callee, String method, String correlationId) throws IOException {
    var control = Control.newBuilder().setReplyTo(replyTo).setCorrelationId(correlationId);
    var body = control.setCancel(true).build().toByteArray();
    publish("postbus.control." + callee, method, false, properties(), body);
  }

  BasicProperties.Builder properties() {
    return new BasicProperties.Builder().contentType(CONTENT_TYPE).userId(service);
  }

  /** Publishes a message; a channel is not for two threads at once. */
  void publish(
      String exchange, String key, boolean mandatory, BasicProperties.Builder properties, byte[] body)
      throws IOException {
    synchronized (channel) {
      channel.basicPublish(exchange, key, mandatory, properties.build(), body);
    }
  }
}
