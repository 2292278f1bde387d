/* Bytes on the HTTP port, through a real socket and libmicrohttpd into our handler, over a node that is
 * empty but for what the pages show. The connection must end, and the next request be answered. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../server/access.h"
#include "../../server/shard.h"
#include "fuzz.h"

/* ---- what http.c asks of the rest of the daemon ---- */

bool node_is_serving(struct node *node)
{
    (void)node;
    return true;
}

const struct shard_view *shard_view(const struct shard *shard)
{
    return &shard->view;
}

void control_member_counts(struct control *control, size_t counts[MEMBER_LEFT + 1])
{
    (void)control;
    memset(counts, 0, (MEMBER_LEFT + 1) * sizeof *counts);
}

bool placements_draining(struct placements *placements, uint64_t node_id)
{
    (void)placements;
    (void)node_id;
    return false;
}

void console_json(struct console *console, struct buffer *out)
{
    (void)console;
    (void)out;
}

const uint8_t cairn_console_page[] = {'x'};
const size_t cairn_console_page_len = 1;

size_t workers_count(struct workers *workers)
{
    (void)workers;
    return 0;
}

bool access_certificate_days(const struct node *node, double *days)
{
    (void)node;
    *days = 1;
    return true;
}

void feeder_group_metrics(struct feeder *feeder, struct buffer *out)
{
    (void)feeder;
    (void)out;
}

size_t feeder_count(const struct feeder *feeder)
{
    (void)feeder;
    return 0;
}

/* ---- the target ---- */

static struct sockaddr_in address;

static void start(void)
{
    static struct node node;
    struct http *http;
    struct fault fault;
    int port = 20000 + getpid() % 20000;

    if (store_open_memory(&node.store) != STATUS_OK)
        abort();
    do {
        snprintf(node.config.http, sizeof node.config.http, "127.0.0.1:%d", ++port);
    } while (http_new(&http, &node, &fault) != STATUS_OK);
    address = (struct sockaddr_in){.sin_family = AF_INET,
                                   .sin_port = htons((uint16_t)port),
                                   .sin_addr = {htonl(INADDR_LOOPBACK)}};
}

/* What came back before the other side closed. */
static size_t exchange(const void *request, size_t len, char *answer, size_t room)
{
    int s = socket(AF_INET, SOCK_STREAM, 0);
    struct linger at_once = {1, 0}; /* no port stays in TIME_WAIT */
    struct timeval patience = {0, len > 0 && memmem(request, len, "\n\r\n", 3) != NULL ? 500000 : 1000};
    size_t got = 0;
    ssize_t n;

    if (s < 0 || connect(s, (struct sockaddr *)&address, sizeof address) != 0)
        abort();
    (void)!setsockopt(s, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    (void)!send(s, request, len, MSG_NOSIGNAL);
    shutdown(s, SHUT_WR);
    /* Half a request waits for its other half until the server's timeout; we have seen enough before. */
    (void)!setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    while ((n = recv(s, answer + got % room, room - got % room, 0)) > 0)
        got += (size_t)n;
    close(s);
    return got;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char sound[] = "GET /healthz HTTP/1.0\r\n\r\n";
    static char answer[65536];
    static unsigned count;

    if (address.sin_port == 0)
        start();
    (void)exchange(data, size, answer, sizeof answer);
    if (++count % 64 == 0) {
        size_t len = exchange(sound, sizeof sound - 1, answer, sizeof answer - 1);

        answer[len] = '\0';
        assert(strstr(answer, "200 OK") != NULL && strstr(answer, "ok\n") != NULL);
    }
    return 0;
}
