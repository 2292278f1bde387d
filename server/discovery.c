/*
 * Finds addresses that may be other nodes': DNS names (c-ares) and UDP multicast on the local network. It only
 * proposes them to the membership; who belongs to the cluster is decided by the peer handshake. Owns a thread.
 *
 *   dns:NAME     A and AAAA with this node's port, or SRV when NAME begins with `_`
 *   multicast    announces this node, and hears others of the same cluster name
 *
 * Always true: at most DISCOVERED_MAX addresses are proposed at once, and a flood costs bounded work. A name is
 * asked again while this node is alone or the cluster is short of its expected size.
 */
#include <ares.h>
#include <ares_nameser.h>
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "node.h"

enum {
    ASK_MS = 2000,          /* between two questions while short of members */
    ASK_MANY_MS = 600,      /* when the answers have more than may be tried at once */
    AT_ONCE = 48,           /* then so many are tried at a time, about */
    QUERY_TIMEOUT_MS = 1500,
    ANNOUNCE_MS = 1000,
    ANNOUNCE_SETTLED_MS = 10000,
    HEARD_MS = 30000,       /* an announcement is believed for so long */
    PACKETS_PER_TURN = 64,
    PACKET_BYTES_MAX = 600,
    SOCKETS_MAX = ARES_GETSOCK_MAXNUM,
};

static const char multicast_group[] = "239.255.74.11";
static const char multicast_port[] = "7411";

struct found {
    char address[ADDRESS_BYTES_MAX + 1];
    uint64_t until_ms; /* UINT64_MAX: until the next answer */
};

struct discovery;

struct name {
    struct discovery *discovery;
    char name[ADDRESS_BYTES_MAX + 1];
    uint16_t port;
    int open; /* questions without an answer */
    struct found fresh[DISCOVERED_MAX];
    size_t fresh_count;
    size_t seen; /* addresses in the answers, with those whose turn it isn't */
    size_t last_seen; /* the same of the round before */
    size_t turn;
    uint64_t salt; /* who has which turn; another one once all have had theirs */
    bool failed;
    bool failure_told;
    struct found known[DISCOVERED_MAX]; /* of the last answer */
    size_t known_count;
};

struct discovery {
    struct node *node;
    pthread_t thread;
    int wake;
    atomic_bool stopping;
    ares_channel channel;
    struct name names[DISCOVER_MAX];
    size_t name_count;
    uint64_t next_ask_ms;
    int udp; /* -1: no multicast */
    struct sockaddr_in group;
    uint64_t next_announce_ms;
    struct found heard[DISCOVERED_MAX];
    size_t heard_count;
    uint64_t refused; /* announcements of other clusters, or that don't decode */
    bool changed;
};

/* ---- what was found ---- */

/* More than there is room for: each has the same chance to stay. */
static void add(struct found *list, size_t *count, size_t seen, const char *address, uint64_t until_ms)
{
    size_t at = 0;

    while (at < *count && strcmp(list[at].address, address) != 0)
        at++;
    if (at == *count && *count == DISCOVERED_MAX) {
        at = random_u64() % (seen + 1);
        if (at >= DISCOVERED_MAX)
            return;
    } else if (at == *count) {
        (*count)++;
    }
    snprintf(list[at].address, sizeof list[at].address, "%s", address);
    list[at].until_ms = until_ms;
}

static void propose(struct discovery *d)
{
    char (*all)[ADDRESS_BYTES_MAX + 1] = memory_take(DISCOVERED_MAX * sizeof *all);
    size_t count = 0;

    for (size_t i = 0; i < d->name_count; i++)
        for (size_t k = 0; k < d->names[i].known_count && count < DISCOVERED_MAX; k++)
            memcpy(all[count++], d->names[i].known[k].address, sizeof *all);
    for (size_t k = 0; k < d->heard_count && count < DISCOVERED_MAX; k++)
        memcpy(all[count++], d->heard[k].address, sizeof *all);
    control_discovered(d->node->control, all, count);
}

/* ---- DNS ---- */

static size_t turns_of(const struct name *n)
{
    return n->last_seen <= DISCOVERED_MAX ? 1 : n->last_seen / AT_ONCE + 1;
}

/* When an answer has thousands of addresses each has its turn: by chance alone two nodes missed one another for
 * longer than 90 s, once in 13 times. */
static bool is_its_turn(const struct name *n, const char *address)
{
    return hash_mix(n->salt, bytes_of(address)) % turns_of(n) == n->turn;
}

static void next_turn(struct name *n)
{
    n->last_seen = n->seen;
    if (++n->turn >= turns_of(n)) {
        n->turn = 0;
        n->salt = random_u64();
    }
}

/* All answers of one round are here. */
static void round_over(struct name *n)
{
    struct discovery *d = n->discovery;

    if (n->open > 0)
        return;
    if (n->seen == 0) {
        if (!n->failure_told)
            journal(JOURNAL_INFO, "discovery", "%s has no address yet; asking again", n->name);
        n->failure_told = true;
    } else if (n->failure_told || n->seen != n->last_seen) {
        journal(JOURNAL_INFO, "discovery", "%s has %zu addresses%s", n->name, n->seen,
                n->seen > DISCOVERED_MAX ? "; trying some of them at a time" : "");
        n->failure_told = false;
    }
    /* An answer that never came leaves what is known: the server may be away for a moment. */
    if (!n->failed || n->seen > 0) {
        memcpy(n->known, n->fresh, sizeof n->known);
        n->known_count = n->fresh_count;
        d->changed = true;
        next_turn(n);
    }
}

static void take_addresses(struct name *n, const struct ares_addrinfo *info)
{
    for (const struct ares_addrinfo_node *at = info->nodes; at != NULL; at = at->ai_next) {
        char host[INET6_ADDRSTRLEN];
        char address[ADDRESS_BYTES_MAX + 1];

        if (at->ai_family == AF_INET) {
            const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)at->ai_addr;

            inet_ntop(AF_INET, &in->sin_addr, host, sizeof host);
            snprintf(address, sizeof address, "%s:%u", host, ntohs(in->sin_port));
        } else if (at->ai_family == AF_INET6) {
            const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)(const void *)at->ai_addr;

            inet_ntop(AF_INET6, &in->sin6_addr, host, sizeof host);
            snprintf(address, sizeof address, "[%s]:%u", host, ntohs(in->sin6_port));
        } else {
            continue;
        }
        n->seen++;
        if (is_its_turn(n, address))
            add(n->fresh, &n->fresh_count, n->seen, address, UINT64_MAX);
    }
}

static void on_addresses(void *context, int status, int timeouts, struct ares_addrinfo *info)
{
    struct name *n = context;

    (void)timeouts;
    n->open--;
    if (status == ARES_SUCCESS && info != NULL)
        take_addresses(n, info);
    n->failed = n->failed || (status != ARES_SUCCESS && status != ARES_ENOTFOUND && status != ARES_ENODATA);
    if (info != NULL)
        ares_freeaddrinfo(info);
    if (status != ARES_EDESTRUCTION)
        round_over(n);
}

static void ask_host(struct name *n, const char *host, uint16_t port)
{
    struct ares_addrinfo_hints hints = {.ai_flags = ARES_AI_NUMERICSERV | ARES_AI_NOSORT,
                                        .ai_family = AF_UNSPEC,
                                        .ai_socktype = SOCK_STREAM};
    char service[8];

    snprintf(service, sizeof service, "%u", port);
    n->open++;
    ares_getaddrinfo(n->discovery->channel, host, service, &hints, on_addresses, n);
}

static void on_services(void *context, int status, int timeouts, unsigned char *answer, int len)
{
    struct name *n = context;
    struct ares_srv_reply *replies = NULL;
    size_t asked = 0;

    (void)timeouts;
    if (status == ARES_SUCCESS && ares_parse_srv_reply(answer, len, &replies) == ARES_SUCCESS)
        for (const struct ares_srv_reply *at = replies; at != NULL && asked < DISCOVERED_MAX; at = at->next, asked++)
            ask_host(n, at->host, at->port);
    n->failed = n->failed || (status != ARES_SUCCESS && status != ARES_ENOTFOUND && status != ARES_ENODATA);
    if (replies != NULL)
        ares_free_data(replies);
    n->open--;
    if (status != ARES_EDESTRUCTION)
        round_over(n);
}

static void ask(struct discovery *d)
{
    for (size_t i = 0; i < d->name_count; i++) {
        struct name *n = &d->names[i];

        if (n->open > 0)
            continue;
        n->fresh_count = n->seen = 0;
        n->failed = false;
        if (n->name[0] == '_') {
            n->open++;
            ares_query(d->channel, n->name, C_IN, T_SRV, on_services, n);
        } else {
            ask_host(n, n->name, n->port);
        }
    }
}

/* ---- multicast ---- */

static void announce(struct discovery *d)
{
    struct announcement announcement = {bytes_of(d->node->config.cluster_name), d->node->id,
                                        bytes_of(d->node->advertise)};
    struct buffer out = {0};

    wire_announcement_pack(&out, &announcement);
    if (sendto(d->udp, out.data, out.len, MSG_DONTWAIT, (const struct sockaddr *)&d->group, sizeof d->group) < 0)
        journal(JOURNAL_DEBUG, "discovery", "cannot announce this node: %s", strerror(errno));
    buffer_release(&out);
}

static void hear(struct discovery *d, struct bytes packet, uint64_t now_ms)
{
    struct arena arena = {0};
    struct announcement announcement;
    struct fault fault;

    if (wire_announcement_decode(packet, &arena, &announcement, &fault) != STATUS_OK ||
        !bytes_equal(announcement.cluster_name, bytes_of(d->node->config.cluster_name))) {
        d->refused++;
    } else if (announcement.node_id != d->node->id) {
        char address[ADDRESS_BYTES_MAX + 1];

        snprintf(address, sizeof address, "%.*s", (int)announcement.address.len,
                 (const char *)announcement.address.data);
        add(d->heard, &d->heard_count, DISCOVERED_MAX, address, now_ms + HEARD_MS);
        d->changed = true;
    }
    arena_release(&arena);
}

/* A turn takes so many packets; the kernel drops what comes faster than we turn. */
static void listen_to_others(struct discovery *d, uint64_t now_ms)
{
    uint8_t packet[PACKET_BYTES_MAX];

    for (int i = 0; i < PACKETS_PER_TURN; i++) {
        ssize_t len = recv(d->udp, packet, sizeof packet, MSG_DONTWAIT);

        if (len < 0)
            return;
        hear(d, (struct bytes){packet, (size_t)len}, now_ms);
    }
}

static void forget_the_silent(struct discovery *d, uint64_t now_ms)
{
    for (size_t i = 0; i < d->heard_count;)
        if (d->heard[i].until_ms < now_ms)
            d->heard[i] = d->heard[--d->heard_count];
        else
            i++;
}

/* ---- the thread ---- */

static bool short_of_members(const struct discovery *d)
{
    size_t counts[MEMBER_LEFT + 1];
    size_t wanted = d->node->config.bootstrap_expect > 2 ? d->node->config.bootstrap_expect : 2;

    control_member_counts(d->node->control, counts);
    return counts[MEMBER_ALIVE] < wanted;
}

static void wait(struct discovery *d, uint64_t until_ms)
{
    struct pollfd fds[SOCKETS_MAX + 2] = {{.fd = d->wake, .events = POLLIN}, {.fd = d->udp, .events = POLLIN}};
    ares_socket_t sockets[SOCKETS_MAX];
    unsigned bits = d->name_count > 0 ? (unsigned)ares_getsock(d->channel, sockets, SOCKETS_MAX) : 0;
    uint64_t now = clock_monotonic_ms();
    int timeout = until_ms <= now ? 0 : (int)(until_ms - now);
    struct timeval most = {timeout / 1000, timeout % 1000 * 1000};
    struct timeval least;
    nfds_t count = 2;

    for (int i = 0; i < SOCKETS_MAX; i++) {
        /* As ARES_GETSOCK_READABLE and _WRITABLE, which shift a signed 1 out of its int at the last socket. */
        short events = (short)(((bits >> i & 1) != 0 ? POLLIN : 0) |
                               ((bits >> (i + SOCKETS_MAX) & 1) != 0 ? POLLOUT : 0));

        if (events != 0)
            fds[count++] = (struct pollfd){.fd = sockets[i], .events = events};
    }
    if (d->name_count > 0) {
        const struct timeval *soon = ares_timeout(d->channel, &most, &least);

        timeout = (int)(soon->tv_sec * 1000 + soon->tv_usec / 1000 + 1);
    }
    (void)poll(fds, count, timeout);
    for (nfds_t i = 2; i < count; i++)
        ares_process_fd(d->channel, (fds[i].revents & (POLLIN | POLLERR | POLLHUP)) != 0 ? fds[i].fd : ARES_SOCKET_BAD,
                        (fds[i].revents & POLLOUT) != 0 ? fds[i].fd : ARES_SOCKET_BAD);
    if (d->name_count > 0)
        ares_process_fd(d->channel, ARES_SOCKET_BAD, ARES_SOCKET_BAD); /* what timed out */
}

static bool has_many(const struct discovery *d)
{
    for (size_t i = 0; i < d->name_count; i++)
        if (turns_of(&d->names[i]) > 1)
            return true;
    return false;
}

static void turn(struct discovery *d)
{
    uint64_t now = clock_monotonic_ms();
    bool alone = short_of_members(d);
    uint64_t next = now + ASK_MS;

    if (now >= d->next_ask_ms && alone && d->name_count > 0) {
        d->next_ask_ms = now + (has_many(d) ? ASK_MANY_MS : ASK_MS) + random_u64() % (ASK_MANY_MS / 2);
        ask(d);
    }
    if (alone && d->name_count > 0 && d->next_ask_ms < next)
        next = d->next_ask_ms;
    if (d->udp >= 0) {
        listen_to_others(d, now);
        forget_the_silent(d, now);
        if (now >= d->next_announce_ms) {
            d->next_announce_ms = now + (alone ? ANNOUNCE_MS : ANNOUNCE_SETTLED_MS);
            announce(d);
        }
        next = d->next_announce_ms < next ? d->next_announce_ms : next;
        if (alone && now + ANNOUNCE_MS < next)
            next = now + ANNOUNCE_MS;
    }
    if (d->changed) {
        d->changed = false;
        propose(d);
    }
    wait(d, next);
}

static void *run(void *context)
{
    struct discovery *d = context;

    while (!atomic_load(&d->stopping))
        turn(d);
    return NULL;
}

/* ---- birth and death ---- */

static uint16_t port_of(const char *address)
{
    const char *colon = strrchr(address, ':');

    return colon == NULL ? 7411 : (uint16_t)atoi(colon + 1);
}

static enum status add_name(struct discovery *d, const char *what, struct fault *fault)
{
    struct name *n = &d->names[d->name_count];
    const char *colon = strchr(what, ':');
    size_t len = colon == NULL ? strlen(what) : (size_t)(colon - what);

    if (len == 0 || len > 253 || (colon != NULL && atoi(colon + 1) <= 0))
        return fault_set(fault, STATUS_INVALID, "SETTING_INVALID",
                         "discover is `dns:%s`; it must be dns:NAME or dns:NAME:PORT", what);
    n->discovery = d;
    snprintf(n->name, sizeof n->name, "%.*s", (int)len, what);
    n->port = colon == NULL ? port_of(d->node->config.listen) : (uint16_t)atoi(colon + 1);
    d->name_count++;
    return STATUS_OK;
}

/* On the interface that others reach this node by, when its address says which. */
static enum status open_multicast(struct discovery *d, const char *what, struct fault *fault)
{
    char group[ADDRESS_BYTES_MAX + 1];
    struct ip_mreq membership = {0};
    unsigned char hops = 1; /* this network only */
    int yes = 1;
    char *colon;

    snprintf(group, sizeof group, "%s", what[0] == ':' ? what + 1 : "");
    if (group[0] == '\0')
        snprintf(group, sizeof group, "%s:%s", multicast_group, multicast_port);
    colon = strrchr(group, ':');
    if (colon != NULL)
        *colon++ = '\0';
    d->group = (struct sockaddr_in){.sin_family = AF_INET};
    if (colon == NULL || inet_pton(AF_INET, group, &d->group.sin_addr) != 1 ||
        !IN_MULTICAST(ntohl(d->group.sin_addr.s_addr)) || atoi(colon) <= 0 || atoi(colon) > 65535)
        return fault_set(fault, STATUS_INVALID, "SETTING_INVALID",
                         "discover is `multicast%s`; it must be multicast or multicast:GROUP:PORT with an IPv4 "
                         "multicast group",
                         what);
    d->group.sin_port = htons((uint16_t)atoi(colon));
    membership.imr_multiaddr = d->group.sin_addr;
    snprintf(group, sizeof group, "%.*s", (int)strcspn(d->node->advertise, ":"), d->node->advertise);
    (void)inet_pton(AF_INET, group, &membership.imr_interface);
    d->udp = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (d->udp < 0 || setsockopt(d->udp, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) != 0 ||
        bind(d->udp, (const struct sockaddr *)&d->group, sizeof d->group) != 0 ||
        setsockopt(d->udp, IPPROTO_IP, IP_MULTICAST_TTL, &hops, sizeof hops) != 0 ||
        setsockopt(d->udp, IPPROTO_IP, IP_ADD_MEMBERSHIP, &membership, sizeof membership) != 0 ||
        setsockopt(d->udp, IPPROTO_IP, IP_MULTICAST_IF, &membership.imr_interface,
                   sizeof membership.imr_interface) != 0)
        return fault_set(fault, STATUS_FAILED, "DISCOVERY", "cannot use multicast on %s: %s", group,
                         strerror(errno));
    return STATUS_OK;
}

static enum status open_dns(struct discovery *d, struct fault *fault)
{
    struct ares_options options = {.timeout = QUERY_TIMEOUT_MS, .tries = 1};
    int code = ares_library_init(ARES_LIB_INIT_ALL);

    if (code == ARES_SUCCESS)
        code = ares_init_options(&d->channel, &options, ARES_OPT_TIMEOUTMS | ARES_OPT_TRIES);
    if (code == ARES_SUCCESS && d->node->config.dns_server[0] != '\0')
        code = ares_set_servers_ports_csv(d->channel, d->node->config.dns_server);
    return code == ARES_SUCCESS ? STATUS_OK
                                : fault_set(fault, STATUS_INVALID, "DISCOVERY", "cannot ask DNS: %s",
                                            ares_strerror(code));
}

enum status discovery_new(struct discovery **out, struct node *node, struct fault *fault)
{
    const struct config *config = &node->config;
    struct discovery *d = memory_zero(1, sizeof *d);
    enum status status = STATUS_OK;

    d->node = node;
    d->udp = -1;
    d->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    for (size_t i = 0; i < config->discover_count && status == STATUS_OK; i++)
        if (strncmp(config->discover[i], "dns:", 4) == 0)
            status = add_name(d, config->discover[i] + 4, fault);
        else if (strncmp(config->discover[i], "multicast", 9) == 0 && d->udp < 0)
            status = open_multicast(d, config->discover[i] + 9, fault);
    if (status == STATUS_OK && d->name_count > 0)
        status = open_dns(d, fault);
    if (status == STATUS_OK && (d->name_count > 0 || d->udp >= 0)) {
        if (pthread_create(&d->thread, NULL, run, d) != 0)
            abort(); /* no thread at start-up: nothing can work */
        pthread_setname_np(d->thread, "discovery");
    } else if (status == STATUS_OK) {
        close(d->wake);
        free(d);
        d = NULL;
    }
    if (status != STATUS_OK) {
        close(d->wake);
        if (d->udp >= 0)
            close(d->udp);
        free(d);
        return status;
    }
    *out = d;
    return STATUS_OK;
}

void discovery_free(struct discovery *d)
{
    uint64_t one = 1;

    if (d == NULL)
        return;
    atomic_store(&d->stopping, true);
    if (write(d->wake, &one, sizeof one) < 0)
        journal(JOURNAL_DEBUG, "discovery", "cannot wake the thread: %s", strerror(errno));
    pthread_join(d->thread, NULL);
    if (d->name_count > 0) {
        ares_destroy(d->channel);
        ares_library_cleanup();
    }
    if (d->udp >= 0)
        close(d->udp);
    close(d->wake);
    free(d);
}
