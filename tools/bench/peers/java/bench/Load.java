package bench;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.util.Arrays;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.BiConsumer;

/**
 * A closed loop of so many commands in flight, as cairn-bench makes it. Reads "run IN_FLIGHT SECONDS" lines and prints
 * "RATE P50 P99 LONGEST" (milliseconds) for each.
 */
public final class Load {
  private static final int AGGREGATES = 1000;
  private static final long WARM_NS = 1_000_000_000L;

  /** Sends one command to an aggregate; `after` gets its reply, or why there is none. */
  public interface Dispatch {
    void send(String aggregate, byte[] payload, BiConsumer<Object, Throwable> after);
  }

  private final Dispatch dispatch;
  private final byte[] payload = new byte[256];
  private final long[] latencies = new long[1 << 22];
  private final AtomicInteger done = new AtomicInteger();
  private final AtomicLong next = new AtomicLong();
  private final AtomicLong longest = new AtomicLong(); // also of what ends behind the run, or never does
  private volatile long counted;
  private volatile long until;
  private volatile CountDownLatch open;

  public Load(Dispatch dispatch) {
    this.dispatch = dispatch;
  }

  private void send() {
    send("bench-" + next.getAndIncrement() % AGGREGATES, System.nanoTime());
  }

  /** One that fails is tried again, and is timed from its first try. */
  private void send(String aggregate, long begun) {
    dispatch.send(aggregate, payload, (reply, failure) -> {
      long now = System.nanoTime();
      longest.accumulateAndGet(now - begun, Math::max);
      if (failure != null && now < until) {
        System.err.println(failure);
        send(aggregate, begun);
        return;
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
    longest.set(0);
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
        longest.get() / 1e6);
  }

  /** Until its input ends. */
  public void serve() throws IOException, InterruptedException {
    System.out.println("ready");
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
    for (String line = lines.readLine(); line != null; line = lines.readLine()) {
      String[] words = line.split(" ");
      run(Integer.parseInt(words[1]), Integer.parseInt(words[2]));
    }
  }
}
