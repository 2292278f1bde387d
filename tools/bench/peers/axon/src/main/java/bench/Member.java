package bench;

import static org.axonframework.modelling.command.AggregateLifecycle.apply;

import com.hazelcast.cluster.MembershipAdapter;
import com.hazelcast.cluster.MembershipEvent;
import com.hazelcast.config.Config;
import com.hazelcast.core.ExecutionCallback;
import com.hazelcast.core.Hazelcast;
import com.hazelcast.core.HazelcastInstance;
import com.hazelcast.core.IExecutorService;
import com.zaxxer.hikari.HikariDataSource;
import java.io.Serializable;
import java.util.Comparator;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.function.BiConsumer;
import org.axonframework.commandhandling.AsynchronousCommandBus;
import org.axonframework.commandhandling.CommandHandler;
import org.axonframework.commandhandling.gateway.CommandGateway;
import org.axonframework.common.caching.WeakReferenceCache;
import org.axonframework.common.jdbc.DataSourceConnectionProvider;
import org.axonframework.common.jdbc.UnitOfWorkAwareConnectionProviderWrapper;
import org.axonframework.common.transaction.NoTransactionManager;
import org.axonframework.config.AggregateConfigurer;
import org.axonframework.config.Configuration;
import org.axonframework.config.DefaultConfigurer;
import org.axonframework.eventsourcing.EventSourcingHandler;
import org.axonframework.eventsourcing.eventstore.jdbc.JdbcEventStorageEngine;
import org.axonframework.eventsourcing.eventstore.jdbc.PostgresEventTableFactory;
import org.axonframework.modelling.command.AggregateCreationPolicy;
import org.axonframework.modelling.command.AggregateIdentifier;
import org.axonframework.modelling.command.CreationPolicy;
import org.axonframework.modelling.command.TargetAggregateIdentifier;
import org.axonframework.serialization.json.JacksonSerializer;
import org.postgresql.ds.PGSimpleDataSource;

/**
 * A member: commands go to the one that the aggregate's id hashes to, by Hazelcast's executor, and are decided there by
 * Axon's command bus on aggregates in its cache. It can be asked for a load. Arguments: members, own port, first port,
 * URL of the database.
 */
public final class Member {
  public static final class Put implements Serializable {
    @TargetAggregateIdentifier public final String id;
    public final byte[] payload;

    Put(String id, byte[] payload) {
      this.id = id;
      this.payload = payload;
    }
  }

  public static final class WasPut {
    public String id;
    public byte[] payload;
  }

  /** An aggregate: one event for each command; its state is how many there are. */
  public static final class Echo {
    @AggregateIdentifier private String id;
    private long count;

    public Echo() {}

    @CommandHandler
    @CreationPolicy(AggregateCreationPolicy.CREATE_IF_MISSING)
    public void handle(Put put) {
      WasPut event = new WasPut();
      event.id = put.id;
      event.payload = put.payload;
      apply(event);
    }

    @EventSourcingHandler
    public void on(WasPut event) {
      id = event.id;
      count++;
    }
  }

  /** Carries a command to its owner. */
  public static final class Carried implements Callable<Boolean>, Serializable {
    private final Put put;

    Carried(Put put) {
      this.put = put;
    }

    @Override
    public Boolean call() {
      gateway.sendAndWait(put);
      return true;
    }
  }

  private static volatile CommandGateway gateway;
  private static volatile List<com.hazelcast.cluster.Member> owners;

  private static List<com.hazelcast.cluster.Member> owners(HazelcastInstance hazelcast) {
    return hazelcast.getCluster().getMembers().stream()
        .sorted(Comparator.comparing(member -> member.getAddress().getPort())).toList();
  }

  private static void dispatch(IExecutorService executor, List<com.hazelcast.cluster.Member> owners, Put put,
      BiConsumer<Object, Throwable> after) {
    if (owners.size() == 1) {
      gateway.send(put).whenComplete(after);
      return;
    }
    executor.submitToMember(new Carried(put), owners.get(Math.floorMod(put.id.hashCode(), owners.size())),
        new ExecutionCallback<Boolean>() {
          @Override
          public void onResponse(Boolean response) {
            after.accept(response, null);
          }

          @Override
          public void onFailure(Throwable failure) {
            after.accept(null, failure);
          }
        });
  }

  private static Configuration axon(String url, boolean first) {
    HikariDataSource database = new HikariDataSource();
    database.setJdbcUrl(url);
    database.setUsername("postgres");
    database.setMaximumPoolSize(Integer.getInteger("bench.pool", 10));
    database.setAutoCommit(false);
    JacksonSerializer serializer = JacksonSerializer.defaultSerializer();
    JdbcEventStorageEngine engine = JdbcEventStorageEngine.builder().eventSerializer(serializer).snapshotSerializer(serializer)
        .connectionProvider(new UnitOfWorkAwareConnectionProviderWrapper(new DataSourceConnectionProvider(database)))
        .transactionManager(NoTransactionManager.instance()).build();
    if (first) {
      PGSimpleDataSource committing = new PGSimpleDataSource();
      committing.setUrl(url);
      committing.setUser("postgres");
      JdbcEventStorageEngine.builder().eventSerializer(serializer).snapshotSerializer(serializer)
          .connectionProvider(new DataSourceConnectionProvider(committing)).transactionManager(NoTransactionManager.instance())
          .build().createSchema(PostgresEventTableFactory.INSTANCE);
    }
    Configuration configuration = DefaultConfigurer.defaultConfiguration(false).configureSerializer(c -> serializer)
        .configureCommandBus(c -> AsynchronousCommandBus.builder().build()).configureEmbeddedEventStore(c -> engine)
        .configureAggregate(AggregateConfigurer.defaultConfiguration(Echo.class).configureCache(c -> new WeakReferenceCache()))
        .buildConfiguration();
    configuration.start();
    return configuration;
  }

  public static void main(String[] arguments) throws Exception {
    int members = Integer.parseInt(arguments[0]);
    int port = Integer.parseInt(arguments[1]);
    gateway = axon(arguments[3], arguments[1].equals(arguments[2])).commandGateway();
    Config config = new Config();
    config.setProperty("hazelcast.phone.home.enabled", "false");
    config.getNetworkConfig().setPort(port).setPortAutoIncrement(false);
    config.getNetworkConfig().getInterfaces().setEnabled(true).addInterface("127.0.0.1");
    config.getNetworkConfig().getJoin().getMulticastConfig().setEnabled(false);
    config.getNetworkConfig().getJoin().getTcpIpConfig().setEnabled(true).addMember("127.0.0.1:" + arguments[2]);
    config.getExecutorConfig("commands").setPoolSize(Integer.getInteger("bench.executor", 16));
    HazelcastInstance hazelcast = Hazelcast.newHazelcastInstance(config);
    while (hazelcast.getCluster().getMembers().size() < members) {
      Thread.sleep(100);
    }
    owners = owners(hazelcast);
    hazelcast.getCluster().addMembershipListener(new MembershipAdapter() {
      @Override
      public void memberRemoved(MembershipEvent event) {
        owners = owners(hazelcast);
      }
    });
    IExecutorService executor = hazelcast.getExecutorService("commands");
    new Load((aggregate, payload, after) -> dispatch(executor, owners, new Put(aggregate, payload), after)).serve();
    System.exit(0);
  }
}
