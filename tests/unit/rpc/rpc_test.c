/* A server and a channel in one process, over a real socket. */
#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "rpc/rpc.h"

enum { WAIT_S = 20, MESSAGE_MAX = 100000 };

/* What a client's stream was told. */
struct client {
    struct rpc_stream *stream;
    size_t messages;
    size_t bytes;
    bool closed;
    bool drained;
    int code;
    char text[200];
    char details[40];
};

struct fixture {
    struct rpc_loop *loop;
    struct rpc_server *server;
    struct rpc_channel *channel;
    char address[40];
    struct client client;
    bool server_closed;
    int server_code;
    bool server_finished;
    uint64_t deadline_ms;
    struct rpc_stream *held; /* the server's, of /test.Test/Hold */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct fixture *now;

/* ---- waiting for what another thread says ---- */

#define TELL(statement)                 \
    do {                                \
        pthread_mutex_lock(&lock);      \
        statement;                      \
        pthread_cond_broadcast(&changed); \
        pthread_mutex_unlock(&lock);    \
    } while (0)

#define WAIT_FOR(condition)                                                          \
    do {                                                                             \
        struct timespec until;                                                       \
        int late = 0;                                                                \
                                                                                     \
        clock_gettime(CLOCK_REALTIME, &until);                                       \
        until.tv_sec += WAIT_S;                                                      \
        pthread_mutex_lock(&lock);                                                   \
        while (!(condition) && late == 0)                                            \
            late = pthread_cond_timedwait(&changed, &lock, &until);                  \
        pthread_mutex_unlock(&lock);                                                 \
        if (late != 0)                                                               \
            fail_msg("%s did not become true within %d s", #condition, WAIT_S);      \
    } while (0)

/* ---- the server ---- */

static void on_unary(void *context, struct rpc_call *call, struct bytes request)
{
    (void)context;
    TELL(now->deadline_ms = rpc_call_deadline_ms(call));
    if (request.len == 4 && memcmp(request.data, "fail", 4) == 0)
        rpc_call_fail(call, 9, "no, thank you", BYTES_LITERAL("details"));
    else
        rpc_call_reply(call, request);
}

static void echo_opened(void *context, struct rpc_stream *stream)
{
    (void)context;
    rpc_stream_set_user(stream, stream);
}

static void echo_message(void *user, struct rpc_stream *stream, struct bytes message)
{
    (void)user;
    rpc_stream_send(stream, message);
}

static void echo_finished(void *user, struct rpc_stream *stream)
{
    (void)user;
    TELL(now->server_finished = true);
    rpc_stream_finish(stream, 0, NULL, BYTES_NONE);
}

static void server_closed(void *user, struct rpc_stream *stream, int code, const char *text)
{
    (void)user;
    (void)stream;
    (void)text;
    TELL(now->server_closed = true; now->server_code = code);
}

static void hold_opened(void *context, struct rpc_stream *stream)
{
    (void)context;
    TELL(now->held = rpc_stream_hold(stream));
}

static void ignore_message(void *user, struct rpc_stream *stream, struct bytes message)
{
    (void)user;
    (void)stream;
    (void)message;
}

static const struct rpc_stream_events echo = {echo_opened, echo_message, echo_finished, server_closed, NULL};
static const struct rpc_stream_events hold = {hold_opened, ignore_message, NULL, server_closed, NULL};

/* ---- the client ---- */

static void client_message(void *user, struct rpc_stream *stream, struct bytes message)
{
    struct client *client = user;

    (void)stream;
    TELL(client->messages++; client->bytes += message.len);
}

static void client_closed(void *user, struct rpc_stream *stream, int code, const char *text)
{
    struct client *client = user;
    struct bytes details = rpc_stream_details(stream);

    snprintf(client->text, sizeof client->text, "%s", text);
    snprintf(client->details, sizeof client->details, "%.*s", (int)details.len,
             (const char *)details.data);
    TELL(client->closed = true; client->code = code);
}

static void client_drained(void *user, struct rpc_stream *stream)
{
    struct client *client = user;

    (void)stream;
    TELL(client->drained = true);
}

static const struct rpc_stream_events client_events = {NULL, client_message, NULL, client_closed,
                                                       client_drained};

static struct rpc_stream *open_stream(struct fixture *f, const char *path, uint32_t timeout_ms)
{
    f->client.stream = rpc_stream_open(f->channel, path, &client_events, &f->client, timeout_ms);
    return f->client.stream;
}

static void call(struct fixture *f, const char *path, struct bytes request)
{
    struct rpc_stream *stream = open_stream(f, path, 10000);

    rpc_stream_send(stream, request);
    rpc_stream_finish(stream, 0, NULL, BYTES_NONE);
    WAIT_FOR(f->client.closed);
}

/* ---- life ---- */

static void serve(struct fixture *f)
{
    const struct rpc_method methods[] = {
        {"/test.Test/Unary", f, 0, on_unary, NULL},
        {"/test.Test/Echo", f, 0, NULL, &echo},
        {"/test.Test/Hold", f, 0, NULL, &hold},
    };
    struct rpc_server_settings settings = {.listen = f->address,
                                           .methods = methods,
                                           .method_count = COUNT_OF(methods),
                                           .message_bytes_max = MESSAGE_MAX};
    struct fault fault;
    int port = 20000 + getpid() % 20000;

    do
        snprintf(f->address, sizeof f->address, "127.0.0.1:%d", ++port);
    while (rpc_server_new(&f->server, f->loop, &settings, &fault) != STATUS_OK);
}

static int set_up(void **state)
{
    struct fixture *f = memory_zero(1, sizeof *f);

    now = f;
    rpc_begin();
    assert_ok(rpc_loop_new(&f->loop));
    serve(f);
    f->channel = rpc_channel_new(f->loop, f->address, MESSAGE_MAX, NULL);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    rpc_stream_drop(f->held);
    rpc_stream_drop(f->client.stream);
    rpc_channel_free(f->channel);
    rpc_server_stop(f->server, 0);
    rpc_server_free(f->server);
    rpc_loop_free(f->loop);
    rpc_end();
    free(f);
    return 0;
}

/* ---- the tests ---- */

static void a_call_is_answered(void **state)
{
    struct fixture *f = *state;

    call(f, "/test.Test/Unary", BYTES_LITERAL("hello"));
    assert_int_equal(f->client.code, 0);
    assert_int_equal(f->client.messages, 1);
    assert_int_equal(f->client.bytes, 5);
    assert_true(f->deadline_ms < clock_monotonic_ms() + 11000); /* it travels, rounded up by gRPC */
}

static void a_failed_call_tells_code_text_and_details(void **state)
{
    struct fixture *f = *state;

    call(f, "/test.Test/Unary", BYTES_LITERAL("fail"));
    assert_int_equal(f->client.code, 9);
    assert_string_equal(f->client.text, "no, thank you");
    assert_string_equal(f->client.details, "details");
    assert_int_equal(f->client.messages, 0);
}

static void an_unknown_method_is_named(void **state)
{
    struct fixture *f = *state;

    call(f, "/test.Test/Nothing", BYTES_LITERAL("x"));
    assert_int_equal(f->client.code, 12);
    assert_non_null(strstr(f->client.text, "/test.Test/Nothing"));
}

static void too_long_a_message_ends_its_call_alone(void **state)
{
    struct fixture *f = *state;
    uint8_t *data = memory_zero(1, MESSAGE_MAX + 1);

    call(f, "/test.Test/Unary", (struct bytes){data, MESSAGE_MAX + 1});
    free(data);
    assert_int_equal(f->client.code, 8);
    rpc_stream_drop(f->client.stream);
    f->client = (struct client){0};
    call(f, "/test.Test/Unary", BYTES_LITERAL("next"));
    assert_int_equal(f->client.code, 0);
}

static void a_stream_carries_all_both_ways_in_order(void **state)
{
    struct fixture *f = *state;
    struct rpc_stream *stream = open_stream(f, "/test.Test/Echo", 0);

    for (int i = 0; i < 2000; i++)
        rpc_stream_send(stream, BYTES_LITERAL("0123456789"));
    WAIT_FOR(f->client.messages == 2000);
    WAIT_FOR(f->client.drained);
    assert_int_equal(rpc_stream_pending(stream), 0);
    rpc_stream_finish(stream, 0, NULL, BYTES_NONE);
    WAIT_FOR(f->client.closed);
    assert_int_equal(f->client.code, 0);
    assert_int_equal(f->client.bytes, 20000);
    WAIT_FOR(f->server_closed);
    assert_int_equal(f->server_code, 0);
    rpc_stream_send(stream, BYTES_LITERAL("late")); /* nothing happens */
}

static void what_is_sent_together_waits_for_the_end_and_comes_in_order(void **state)
{
    struct fixture *f = *state;
    struct rpc_stream *stream = open_stream(f, "/test.Test/Echo", 0);

    rpc_together_begin();
    for (int i = 0; i < 100; i++)
        rpc_stream_send(stream, BYTES_LITERAL("0123456789"));
    assert_int_equal(rpc_stream_pending(stream), 100);
    rpc_together_end();
    WAIT_FOR(f->client.messages == 100);
    assert_int_equal(f->client.bytes, 1000);
    rpc_together_begin(); /* the stream ends meanwhile */
    rpc_stream_send(stream, BYTES_LITERAL("last"));
    rpc_stream_finish(stream, 0, NULL, BYTES_NONE);
    WAIT_FOR(f->client.closed);
    rpc_stream_send(stream, BYTES_LITERAL("late"));
    rpc_together_end();
    assert_int_equal(f->client.messages, 101);
    assert_int_equal(f->client.code, 0);
}

static void a_paused_stream_reads_nothing_until_it_goes_on(void **state)
{
    struct fixture *f = *state;
    struct rpc_stream *stream = open_stream(f, "/test.Test/Echo", 0);

    rpc_stream_send(stream, BYTES_LITERAL("first"));
    WAIT_FOR(f->client.messages == 1);
    rpc_stream_pause(stream, true); /* one read is under way already */
    for (int i = 0; i < 10; i++)
        rpc_stream_send(stream, BYTES_LITERAL("more"));
    rpc_stream_finish(stream, 0, NULL, BYTES_NONE);
    WAIT_FOR(f->server_finished);
    pthread_mutex_lock(&lock);
    assert_true(f->client.messages <= 2);
    assert_false(f->client.closed);
    pthread_mutex_unlock(&lock);
    rpc_stream_pause(stream, false);
    WAIT_FOR(f->client.closed);
    assert_int_equal(f->client.messages, 11);
}

static void a_cancelled_stream_is_told_to_the_server(void **state)
{
    struct fixture *f = *state;
    struct rpc_stream *stream = open_stream(f, "/test.Test/Hold", 0);

    WAIT_FOR(f->held != NULL);
    rpc_stream_cancel(stream);
    WAIT_FOR(f->server_closed && f->client.closed);
    assert_int_equal(f->client.code, 1);
    assert_int_equal(f->server_code, 1);
}

static void a_server_ends_a_stream_with_a_status(void **state)
{
    struct fixture *f = *state;
    char peer[80];

    (void)open_stream(f, "/test.Test/Hold", 60000);
    WAIT_FOR(f->held != NULL);
    assert_non_null(strstr(rpc_stream_peer(f->held, peer, sizeof peer), "127.0.0.1"));
    assert_true(rpc_stream_deadline_ms(f->held) < clock_monotonic_ms() + 66000); /* gRPC rounds up */
    rpc_stream_send(f->held, BYTES_LITERAL("last words"));
    rpc_stream_finish(f->held, 14, "going", BYTES_LITERAL("why"));
    WAIT_FOR(f->client.closed);
    assert_int_equal(f->client.messages, 1);
    assert_int_equal(f->client.code, 14);
    assert_string_equal(f->client.text, "going");
    assert_string_equal(f->client.details, "why");
}

static void a_deadline_ends_a_stream(void **state)
{
    struct fixture *f = *state;

    (void)open_stream(f, "/test.Test/Hold", 50);
    WAIT_FOR(f->client.closed);
    assert_int_equal(f->client.code, 4);
}

static void a_stopping_server_cancels_what_stays_open(void **state)
{
    struct fixture *f = *state;

    (void)open_stream(f, "/test.Test/Hold", 0);
    WAIT_FOR(f->held != NULL);
    rpc_server_stop(f->server, 10);
    WAIT_FOR(f->client.closed && f->server_closed);
    assert_int_not_equal(f->client.code, 0);
    rpc_server_free(f->server);
    serve(f); /* for tear_down */
}

static void a_taken_port_is_named(void **state)
{
    struct fixture *f = *state;
    struct rpc_server *second;
    const struct rpc_method methods[] = {{"/test.Test/Unary", f, 0, on_unary, NULL}};
    struct rpc_server_settings settings = {
        .listen = f->address, .methods = methods, .method_count = 1, .message_bytes_max = MESSAGE_MAX};
    struct fault fault;

    assert_int_equal(rpc_server_new(&second, f->loop, &settings, &fault), STATUS_FAILED);
    assert_string_equal(fault.reason, "PORT_TAKEN");
    assert_non_null(strstr(fault.message, f->address));
}

static void nobody_there_is_unavailable(void **state)
{
    struct fixture *f = *state;

    rpc_channel_free(f->channel);
    f->channel = rpc_channel_new(f->loop, "127.0.0.1:1", MESSAGE_MAX, NULL);
    call(f, "/test.Test/Unary", BYTES_LITERAL("hello"));
    assert_int_equal(f->client.code, 14);
}

/* ---- connections ---- */

/* Connects to the server, from that address of this machine. */
static int knock_with(int fd, const struct fixture *f, const char *from)
{
    struct sockaddr_in here = {.sin_family = AF_INET};
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(strchr(f->address, ':') + 1))};

    assert_int_equal(inet_pton(AF_INET, from, &here.sin_addr), 1);
    assert_int_equal(inet_pton(AF_INET, "127.0.0.1", &there.sin_addr), 1);
    assert_int_equal(bind(fd, (struct sockaddr *)&here, sizeof here), 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&there, sizeof there), 0);
    return fd;
}

static int knock(const struct fixture *f, const char *from)
{
    return knock_with(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), f, from);
}

/* A server greets with its settings; who is let go reads the end. */
static bool is_greeted(int fd)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    char byte;

    assert_int_equal(poll(&wait, 1, WAIT_S * 1000), 1);
    return recv(fd, &byte, 1, MSG_PEEK) == 1;
}

static void too_many_connections_are_let_go(void **state)
{
    struct fixture *f = *state;
    uint64_t until_ms = clock_monotonic_ms() + WAIT_S * 1000;
    int fds[12];

    rpc_limit_connections(10, 4, 0);
    for (size_t i = 0; i < 12; i++)
        fds[i] = knock(f, i < 6 ? "127.0.0.2" : "127.0.0.3");
    for (size_t i = 0; i < 12; i++)
        assert_int_equal(is_greeted(fds[i]), i % 6 < 4);
    for (size_t i = 4; i < 6; i++) {
        (void)close(fds[i]);
        fds[i] = knock(f, "127.0.0.4"); /* the ninth and tenth */
        assert_true(is_greeted(fds[i]));
    }
    assert_int_equal(rpc_connections_refused(), 4);
    (void)close(fds[11]);
    fds[11] = knock(f, "127.0.0.5"); /* in all */
    assert_false(is_greeted(fds[11]));
    for (size_t i = 0; i < 12; i++)
        (void)close(fds[i]);
    while (f->client.messages == 0 && clock_monotonic_ms() < until_ms) { /* until it has seen that they are gone */
        rpc_stream_drop(f->client.stream);
        f->client = (struct client){0};
        call(f, "/test.Test/Unary", BYTES_LITERAL("hello"));
    }
    assert_int_equal(f->client.code, 0);
    rpc_limit_connections(0, 0, 0);
}

static void a_server_that_had_no_file_left_goes_on(void **state)
{
    struct fixture *f = *state;
    struct rlimit before, few;
    uint64_t refused = rpc_connections_refused();
    uint64_t until_ms = clock_monotonic_ms() + WAIT_S * 1000;
    int fds[40];

    rpc_limit_connections(1000, 0, 0);
    for (size_t i = 0; i < COUNT_OF(fds); i++)
        fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    few = before;
    few.rlim_cur = (rlim_t)fds[COUNT_OF(fds) - 1] + 1;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    for (size_t i = 0; i < COUNT_OF(fds); i++)
        (void)knock_with(fds[i], f, "127.0.0.1");
    while (rpc_connections_refused() < refused + COUNT_OF(fds) && clock_monotonic_ms() < until_ms)
        sched_yield();
    assert_int_equal(rpc_connections_refused(), refused + COUNT_OF(fds));
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    for (size_t i = 0; i < COUNT_OF(fds); i++)
        (void)close(fds[i]);
    call(f, "/test.Test/Unary", BYTES_LITERAL("hello"));
    assert_int_equal(f->client.code, 0);
    rpc_limit_connections(0, 0, 0);
}

static bool send_frame(int fd, uint8_t type, const uint8_t *payload, size_t len)
{
    uint8_t head[9] = {(uint8_t)(len >> 16), (uint8_t)(len >> 8), (uint8_t)len, type, 0, 0, 0, 0, 1};

    return send(fd, head, sizeof head, MSG_NOSIGNAL) == sizeof head &&
           send(fd, payload, len, MSG_NOSIGNAL) == (ssize_t)len;
}

static void who_talks_without_end_is_let_go(void **state)
{
    enum { LIMIT = 1 << 20, PIECE = 16000, PIECES = 4000, BUFFERED = 8 << 20, HEADERS = 1, CONTINUATION = 9 };
    static const uint8_t hello[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0"; /* and empty settings */
    static uint8_t piece[PIECE] = {0, 3, 'a', 'b', 'c', 0x7F, 0xFF, 0x7F}; /* a field that goes on */
    struct fixture *f = *state;
    size_t sent = 0;
    int fd;

    rpc_limit_connections(0, 0, LIMIT);
    fd = knock(f, "127.0.0.6");
    assert_int_equal(send(fd, hello, sizeof hello, MSG_NOSIGNAL), sizeof hello);
    assert_true(send_frame(fd, HEADERS, piece, PIECE));
    while (sent < PIECES && send_frame(fd, CONTINUATION, piece, PIECE))
        sent++;
    assert_true(sent * PIECE < LIMIT + BUFFERED); /* the kernel holds some */
    (void)close(fd);
    rpc_limit_connections(0, 0, 0);
}

static void who_calls_may_send_as_much_as_it_likes(void **state)
{
    enum { LIMIT = 1 << 16, PIECE = 8000, CALLS = 40 };
    static uint8_t piece[PIECE];
    struct fixture *f = *state;

    rpc_limit_connections(0, 0, LIMIT);
    for (int i = 0; i < CALLS; i++) {
        call(f, "/test.Test/Unary", (struct bytes){piece, PIECE});
        assert_int_equal(f->client.code, 0);
        rpc_stream_drop(f->client.stream);
        f->client = (struct client){0};
    }
    call(f, "/test.Test/Unary", BYTES_LITERAL("hello"));
    rpc_limit_connections(0, 0, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_call_is_answered),
        TEST(a_failed_call_tells_code_text_and_details),
        TEST(an_unknown_method_is_named),
        TEST(too_long_a_message_ends_its_call_alone),
        TEST(a_stream_carries_all_both_ways_in_order),
        TEST(what_is_sent_together_waits_for_the_end_and_comes_in_order),
        TEST(a_paused_stream_reads_nothing_until_it_goes_on),
        TEST(a_cancelled_stream_is_told_to_the_server),
        TEST(a_server_ends_a_stream_with_a_status),
        TEST(a_deadline_ends_a_stream),
        TEST(a_stopping_server_cancels_what_stays_open),
        TEST(a_taken_port_is_named),
        TEST(nobody_there_is_unavailable),
        TEST(too_many_connections_are_let_go),
        TEST(a_server_that_had_no_file_left_goes_on),
        TEST(who_talks_without_end_is_let_go),
        TEST(who_calls_may_send_as_much_as_it_likes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
