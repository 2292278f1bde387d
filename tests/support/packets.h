/* Messages between replicas on their way, for tests that hold the network in their hands. */
#ifndef CAIRN_TESTS_PACKETS_H
#define CAIRN_TESTS_PACKETS_H

#include "wire/wire.h"

struct packet {
    struct packet *next;
    uint64_t from, to;
    struct arena arena; /* of what the message borrows */
    struct replica_message message;
};

struct packets {
    struct packet *first;
    struct packet **last;
};

static inline void packets_init(struct packets *packets)
{
    packets->first = NULL;
    packets->last = &packets->first;
}

static inline void packets_add(struct packets *packets, uint64_t from, uint64_t to,
                               const struct replica_message *message)
{
    struct packet *packet = memory_zero(1, sizeof *packet);
    struct log_entry *entries = arena_take(&packet->arena, message->entry_count * sizeof *entries);

    packet->from = from;
    packet->to = to;
    packet->message = *message;
    for (size_t i = 0; i < message->entry_count; i++) {
        entries[i] = message->entries[i];
        entries[i].payload = arena_copy(&packet->arena, message->entries[i].payload);
    }
    packet->message.entries = entries;
    packet->message.configuration = arena_copy(&packet->arena, message->configuration);
    *packets->last = packet;
    packets->last = &packet->next;
}

/* All that is under way, oldest first; the list is empty afterwards. */
static inline struct packet *packets_take(struct packets *packets)
{
    struct packet *first = packets->first;

    packets_init(packets);
    return first;
}

/* Gives the one behind it. */
static inline struct packet *packet_free(struct packet *packet)
{
    struct packet *next = packet->next;

    arena_release(&packet->arena);
    free(packet);
    return next;
}

static inline void packets_drop(struct packets *packets)
{
    for (struct packet *packet = packets_take(packets); packet != NULL;)
        packet = packet_free(packet);
}

#endif
