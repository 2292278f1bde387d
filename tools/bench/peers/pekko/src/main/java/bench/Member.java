package bench;

import java.time.Duration;
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

/** A member of the cluster, which can be asked for a load on its own sharding. Arguments: members to wait for. */
public final class Member {
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
    new Load((aggregate, payload, after) ->
        sharding.entityRefFor(KEY, aggregate).<Done>ask(replyTo -> new Put(payload, replyTo), Duration.ofSeconds(5))
            .whenComplete(after)).serve();
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
