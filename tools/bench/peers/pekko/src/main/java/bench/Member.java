package bench;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.time.Duration;
import java.util.Arrays;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.pekko.actor.typed.ActorRef;
import org.apache.pekko.actor.typed.ActorSystem;
import org.apache.pekko.actor.typed.Behavior;
import org.apache.pekko.actor.typed.javadsl.Behaviors;
import org.apache.pekko.cluster.MemberStatus;
import org.apache.pekko.cluster.sharding.typed.javadsl.ClusterSharding;
import org.apache.pekko.cluster.sharding.typed.javadsl.Entity;
import org.apache.pekko.cluster.sharding.typed.javadsl.EntityTypeKey;
import org.apache.pekko.cluster.typed.Cluster;
import org.apache.pekko.persistence.typed.PersistenceId;
import org.apache.pekko.persistence.typed.javadsl.CommandHandler;
import org.apache.pekko.persistence.typed.javadsl.EventHandler;
import org.apache.pekko.persistence.typed.javadsl.EventSourcedBehavior;

/**
 * A member of the cluster. The one with a load reads "run IN_FLIGHT SECONDS" lines, sends commands to its own sharding,
 * and prints "RATE P50 P99 LONGEST" (milliseconds). Arguments: members to wait for.
 */
public final class Member {
  private static final int AGGREGATES = 1000;
  private static final long WARM_NS = 1_000_000_000L;

  public interface Wire {}

  public record Put(byte[] payload, ActorRef<Done> replyTo) implements Wire {}

  public record WasPut(byte[] payload) implements Wire {}

  public record Done(long sequence) implements Wire {}

  static final EntityTypeKey<Put> KEY = EntityTypeKey.create(Put.class, "echo");

  /** An aggregate: one event for each command; its state is how many there are. */
  static final class Aggregate extends EventSourcedBehavior<Put, WasPut, Long> {
    Aggregate(String id) {
      super(PersistenceId.of("echo", id));
    }

    @Override
    public Long emptyState() {
      return 0L;
    }

    @Override
    public CommandHandler<Put, WasPut, Long> commandHandler() {
      return newCommandHandlerBuilder().forAnyState().onCommand(Put.class, (state, put) ->
          Effect().persist(new WasPut(put.payload())).thenReply(put.replyTo(), Done::new)).build();
    }

    @Override
    public EventHandler<Long, WasPut> eventHandler() {
      return newEventHandlerBuilder().forAnyState().onEvent(WasPut.class, (state, event) -> state + 1).build();
    }
  }

  private final ClusterSharding sharding;
  private final byte[] payload = new byte[256];
  private final long[] latencies = new long[1 << 22];
  private final AtomicInteger done = new AtomicInteger();
  private final AtomicLong next = new AtomicLong();
  private volatile long counted;
  private volatile long until;
  private volatile CountDownLatch open;

  private Member(ClusterSharding sharding) {
    this.sharding = sharding;
  }

  private void send() {
    String id = "bench-" + next.getAndIncrement() % AGGREGATES;
    long begun = System.nanoTime();
    sharding.entityRefFor(KEY, id).<Done>ask(replyTo -> new Put(payload, replyTo), Duration.ofSeconds(60))
        .whenComplete((reply, failure) -> {
          long now = System.nanoTime();
          if (failure != null) {
            System.err.println(failure);
          } else if (now >= counted && now < until) {
            latencies[done.getAndIncrement()] = now - begun;
          }
          if (now < until) {
            send();
          } else {
            open.countDown();
          }
        });
  }

  private void run(int inFlight, int seconds) throws InterruptedException {
    done.set(0);
    open = new CountDownLatch(inFlight);
    counted = System.nanoTime() + WARM_NS;
    until = counted + seconds * 1_000_000_000L;
    for (int i = 0; i < inFlight; i++) {
      send();
    }
    open.await();
    int n = done.get();
    Arrays.sort(latencies, 0, n);
    System.out.printf("%.1f %.3f %.3f %.3f%n", (double) n / seconds, latencies[n / 2] / 1e6, latencies[(int) (n * 99L / 100)] / 1e6,
        latencies[n - 1] / 1e6);
  }

  public static void main(String[] arguments) throws Exception {
    int members = Integer.parseInt(arguments[0]);
    Behavior<Void> nothing = Behaviors.empty();
    ActorSystem<Void> system = ActorSystem.create(nothing, "bench");
    ClusterSharding sharding = ClusterSharding.get(system);
    sharding.init(Entity.of(KEY, context -> new Aggregate(context.getEntityId())));
    Cluster cluster = Cluster.get(system);
    while (up(cluster) < members) {
      Thread.sleep(100);
    }
    System.out.println("ready");
    Member member = new Member(sharding);
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
    for (String line = lines.readLine(); line != null; line = lines.readLine()) {
      String[] words = line.split(" ");
      member.run(Integer.parseInt(words[1]), Integer.parseInt(words[2]));
    }
    system.terminate();
  }

  private static long up(Cluster cluster) {
    long count = 0;
    for (org.apache.pekko.cluster.Member member : cluster.state().getMembers()) {
      count += member.status() == MemberStatus.up() ? 1 : 0;
    }
    return count;
  }
}
