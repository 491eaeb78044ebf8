package program;

import com.google.protobuf.ByteString;
import com.google.protobuf.Timestamp;
import postbus.bus.v1.CheckResponse;
import postbus.bus.v1.Code;
import postbus.bus.v1.Event;
import postbus.posts.v1.Author;
import postbus.posts.v1.GetPostRequest;
import postbus.posts.v1.GetPostResponse;
import postbus.posts.v1.Post;
import postbus.users.v1.BatchGetUsersRequest;
import postbus.users.v1.BatchGetUsersResponse;
import postbus.users.v1.UserRegistered;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.Duration;
import java.time.Instant;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.Callable;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.regex.Pattern;

/**
 * A worker and a client of Postbus in Java, with types generated from the published contracts.
 *
 * <pre>
 * serve AMQP_URL                 serves GetPost of the service of the account, until it is killed
 * call AMQP_URL GATEWAY_URL ID   calls by REST, Connect and AMQP; prints the results as JSON
 * </pre>
 *
 * The Connect protocol has no official client for Java alone: a unary call is a POST of the binary
 * request.
 */
final class Main {
  private static final String UNKNOWN = "00000000-0000-7000-8000-000000000000";
  private static final Duration BUDGET = Duration.ofSeconds(5);
  private static final HttpClient HTTP = HttpClient.newHttpClient();

  private final Bus bus;
  /** Ids of the users that have registered: each has one post. */
  private final Set<String> authors = ConcurrentHashMap.newKeySet();

  private Main(Bus bus) {
    this.bus = bus;
  }

  public static void main(String[] arguments) throws Exception {
    var program = new Main(new Bus(arguments[1]));
    if (arguments[0].equals("serve")) {
      program.serve();
    } else {
      program.call(arguments[2], arguments[3]);
      System.exit(0);
    }
  }

  private void serve() throws Exception {
    Worker.consume(bus, "postbus.users.v1.UserRegistered", this::onRegistered);
    new Worker(
        bus,
        Map.of(
            "postbus.posts.v1.PostsService.GetPost", this::getPost,
            "postbus.bus.v1.HealthService.Check." + bus.service, Main::check));
    var lost = new CountDownLatch(1);
    bus.connection.addShutdownListener(cause -> lost.countDown());
    System.out.println("READY");
    lost.await();
    System.exit(1);
  }

  private void onRegistered(Event event) throws Exception {
    authors.add(UserRegistered.parseFrom(event.getData()).getUserId()); // once, however often it comes
  }

  private ByteString getPost(ByteString request, Duration budget) throws Exception {
    var id = GetPostRequest.parseFrom(request).getId();
    if (!authors.contains(id))
      throw CallError.of(Code.CODE_NOT_FOUND, "POST_NOT_FOUND", "There is no such post.");
    var author = Author.newBuilder().setId(id).setUsername(usernameOf(id, budget));
    var post = Post.newBuilder().setId(id).setTitle("From Java").setAuthor(author).setVersion(1);
    return GetPostResponse.newBuilder().setPost(post).build().toByteString();
  }

  private static ByteString check(ByteString request, Duration budget) {
    var now = Instant.now();
    var time = Timestamp.newBuilder().setSeconds(now.getEpochSecond());
    return CheckResponse.newBuilder().setTime(time).build().toByteString();
  }

  private String usernameOf(String id, Duration budget) throws Exception {
    var request = BatchGetUsersRequest.newBuilder().addIds(id).build();
    return usersOf("BatchGetUsers", request, budget).getProfiles(0).getUsername();
  }

  private BatchGetUsersResponse usersOf(String name, BatchGetUsersRequest request, Duration budget)
      throws Exception {
    var method = "postbus.users.v1.UsersService." + name;
    return bus.call(method, request, BatchGetUsersResponse.parser(), budget);
  }

  private void call(String gateway, String id) throws Exception {
    var rest = HTTP.send(request(gateway + "/v1/posts/" + id).build(), BodyHandlers.ofString()).body();
    var found = GetPostResponse.parseFrom(connect(gateway, id).body()).getPost();
    var missing = new String(connect(gateway, UNKNOWN).body());
    System.out.printf(
        "{\"rest\": [\"%s\", \"%s\"], \"connect\": [\"%s\", \"%s\"], \"missing\": \"%s\","
            + " \"amqp\": \"%s\", \"invalid\": \"%s\", \"unserved\": \"%s\"}%n",
        member("title", rest),
        member("username", rest),
        found.getTitle(),
        found.getAuthor().getUsername(),
        member("code", missing),
        usernameOf(id, BUDGET),
        reasonOf(() -> usernameOf("not a UUID", BUDGET)),
        reasonOf(() -> usersOf("Unserved", BatchGetUsersRequest.getDefaultInstance(), BUDGET)));
  }

  private static HttpResponse<byte[]> connect(String gateway, String id) throws Exception {
    var body = GetPostRequest.newBuilder().setId(id).build().toByteArray();
    var request = request(gateway + "/postbus.posts.v1.PostsService/GetPost");
    request.header("Content-Type", "application/proto").header("Connect-Protocol-Version", "1");
    return HTTP.send(request.POST(BodyPublishers.ofByteArray(body)).build(), BodyHandlers.ofByteArray());
  }

  private static HttpRequest.Builder request(String url) {
    return HttpRequest.newBuilder(URI.create(url)).timeout(BUDGET);
  }

  /** Returns the first text member of a name in a JSON document. */
  private static String member(String name, String json) {
    var found = Pattern.compile("\"" + name + "\":\\s*\"([^\"]*)\"").matcher(json);
    return found.find() ? found.group(1) : "";
  }

  private static String reasonOf(Callable<?> failing) throws Exception {
    try {
      failing.call();
      return "";
    } catch (CallError failed) {
      return failed.error.getReason();
    }
  }
}
